"""Folders of the cache of Hugging Face's programs are recognised, and what is wrong with one is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from filestore.errors import SourceRefused
from filestore.transfer.sources.hub_cache import HubSnapshot, find_snapshot
from tests.support.generator import octets
from tests.support.trees import snapshot

OTHER = octets(6, 20).hex()
NAME = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The folder of a snapshot."""
    return snapshot(tmp_path).path


def found(path: Path) -> HubSnapshot:
    """The snapshot that must be found, and whole."""
    snapshot = find_snapshot(path)
    assert snapshot is not None
    snapshot.check()
    return snapshot


def test_a_snapshot_and_the_folder_of_its_repository(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both mean the same, also by a relative path."""
    home = path.parent.parent
    expected = HubSnapshot(path, NAME, path.name, (f"hf-{path.name}",), has_unfinished=False)
    assert expected == found(path) == found(home)
    monkeypatch.chdir(path)
    assert expected == found(Path()) == found(Path("../.."))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models--gpt2", "gpt2"),
        ("datasets--org--data", "org/data"),
        ("spaces--org--demo", "org/demo"),
        ("kernels--org--fast", "org/fast"),
    ],
)
def test_names(path: Path, folder: str, name: str) -> None:
    """All types of repositories, with and without an owner."""
    home = path.parent.parent.rename(path.parents[2] / folder)
    assert name == found(home).name


@pytest.mark.parametrize(
    "folder", ["my-model", "models--", "models--a--b--c", "models--a b--c", "xmodels--a--b", "models--a--b:c"]
)
def test_other_folders_are_not_recognised(path: Path, folder: str) -> None:
    """They are pushed as any folder."""
    home = path.parent.parent.rename(path.parents[2] / folder)
    assert None is find_snapshot(home)
    assert None is find_snapshot(home / "snapshots" / path.name)
    assert None is find_snapshot(home / "blobs")
    assert None is find_snapshot(home / "absent")


def test_refs_become_tags(path: Path) -> None:
    """Those that mean this revision and can be tags."""
    refs = path.parent.parent / "refs"
    (refs / "refs/pr").mkdir(parents=True)
    refs_of = {"v1.0": path.name, "v2.0": OTHER, "refs/pr/1": path.name, "a b": path.name, "bad": "../../x", "large": "a" * 5000}
    for name, revision in refs_of.items():
        (refs / name).write_text(revision)
    (refs / "binary").write_bytes(b"\xff")
    assert (f"hf-{path.name}", "v1.0") == found(path).tags


def test_several_snapshots(path: Path) -> None:
    """The one that refs/main names is meant. Otherwise the user chooses."""
    home = path.parent.parent
    (home / "snapshots" / OTHER).mkdir()
    assert path == found(home).path
    (home / "refs/main").write_text("e" * 40)
    with pytest.raises(SourceRefused, match="it has 2 snapshots, and refs/main names none of them; give one: ") as caught:
        find_snapshot(home)
    assert str(path) in str(caught.value)
    path.rename(home / "snapshots" / "a..b")
    (home / "snapshots" / "a..b").rename(home / "moved")
    assert OTHER == found(home).revision
    (home / "snapshots" / OTHER).rmdir()
    with pytest.raises(SourceRefused, match="no snapshot is in it"):
        find_snapshot(home)


def test_a_blob_that_is_missing_is_named(path: Path) -> None:
    """By the file of the snapshot, unless that is left out."""
    (path / "tokenizer.json").resolve().unlink()
    snapshot = find_snapshot(path)
    assert snapshot is not None
    with pytest.raises(SourceRefused, match=r"tokenizer\.json"):
        snapshot.check()
    snapshot.check(exclude=["tokenizer.json"])
    snapshot.check(include=["config.json"])


def test_a_shard_that_is_missing_is_named(path: Path) -> None:
    """An index of weights names it. Other files that end like one are not looked into."""
    (path / "odd.index.json").write_text("[")
    shards = {f"layer{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (path / shards["layer1"]).write_bytes(b"weights")
    snapshot = find_snapshot(path)
    assert snapshot is not None
    with pytest.raises(SourceRefused, match="00002-of-00002.safetensors.* was refused: it is missing"):
        snapshot.check()
    snapshot.check(include=["*.json"])
    (path / shards["layer2"]).write_bytes(b"weights")
    snapshot.check()


def test_a_download_that_was_interrupted_is_noticed(path: Path) -> None:
    """A blob that is not whole has no link, so nobody knows which file it is."""
    (path.parent.parent / "blobs" / f"{OTHER}.incomplete").write_bytes(b"")
    assert found(path).has_unfinished


def test_a_link_that_leads_out_of_the_cache_is_refused(path: Path, tmp_path: Path) -> None:
    """A folder that somebody else made may have one to a secret."""
    (tmp_path / "secret").write_text("secret")
    (path / "extra").symlink_to(tmp_path / "secret")
    snapshot = find_snapshot(path)
    assert snapshot is not None
    with pytest.raises(SourceRefused, match="leads out of the cache"):
        snapshot.check()


def test_a_folder_that_is_a_link_gives_no_secret(path: Path, tmp_path: Path) -> None:
    """What is behind such a link is not content of the repository, unless it has the names of blobs."""
    home, secrets = path.parent.parent, tmp_path / "keys"
    secrets.mkdir()
    (secrets / "id_rsa").write_text("secret")
    (path / "extra").symlink_to("../../blobs/id_rsa")
    (home / "blobs").rename(tmp_path / "moved")
    (home / "blobs").symlink_to(secrets)
    for blob in (tmp_path / "moved").iterdir():
        blob.rename(secrets / blob.name)
    snapshot = find_snapshot(home)
    assert snapshot is not None
    with pytest.raises(SourceRefused, match="leads out of the cache"):
        snapshot.check()

    (path / "extra").unlink()
    assert NAME == found(home).name
    path.rename(home / "snapshots" / "other")
    path.symlink_to(secrets)
    snapshot = find_snapshot(home)
    assert snapshot is not None
    assert path == snapshot.path
    with pytest.raises(SourceRefused, match="leads out of the cache"):
        snapshot.check()


def test_blobs_on_another_disk(path: Path, tmp_path: Path) -> None:
    """A link may be in the place of the folder of blobs."""
    blobs = path.parent.parent / "blobs"
    blobs.rename(tmp_path / "disk")
    blobs.symlink_to(tmp_path / "disk")
    assert NAME == found(path).name
