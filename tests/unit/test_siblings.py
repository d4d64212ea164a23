"""Other versions beside the target of a fetch are found by their names, and a few chunks tell whether they are worth it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from filestore.repository.local import LocalRepository
from filestore.transfer.fetch import fetch
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from filestore.transfer.siblings import SiblingFinder, find_siblings, version_free
from tests.support.trees import plant, standing

MIB = 1 << 20
OLD = random.Random(1).randbytes(12 * MIB)
NEW = OLD[: 5 * MIB] + b"changed" + OLD[5 * MIB :]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model-v2.safetensors", "model-v1.safetensors"),
        ("model-v2.safetensors", "model.safetensors"),
        ("Model_2.1.gguf", "model_2.0.gguf"),
        ("model.bin", "model.bin.old"),
        ("model.bin", "model-copy.bin"),
        ("model-v2", "model-v1"),
        ("model-2024-05-01.pt", "model-2024-04-01.pt"),
        ("model (1).bin", "model.bin"),
    ],
)
def test_names_of_versions(one: str, other: str) -> None:
    """They are equal without the version."""
    assert version_free(one) == version_free(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.safetensors", "model.gguf"),
        ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"),
        ("model.bin", "tokenizer.bin"),
        ("renew.bin", "rebak.bin"),
    ],
)
def test_names_of_other_files(one: str, other: str) -> None:
    """A part of a model is not another version of another part."""
    assert version_free(one) != version_free(other)


def test_which_siblings_are_looked_at(tmp_path: Path) -> None:
    """Files of about the same size, the newest first; no links, hidden files, FIFOs and folders."""
    plant(tmp_path, {"m-v1.bin": bytes(100), "m-v2.bin": bytes(90), "m-v3.bin": bytes(9), "m-v4.bin/x": b"", "other": bytes(99)})
    os.utime(tmp_path / "m-v1.bin", (1, 1))
    (tmp_path / "m-v5.bin").symlink_to("m-v1.bin")
    (tmp_path / ".m-v6.bin").write_bytes(bytes(100))
    os.mkfifo(tmp_path / "m-v7.bin")
    target = tmp_path / "m-v9.bin"

    assert [tmp_path / "m-v2.bin", tmp_path / "m-v1.bin"] == find_siblings(target, range(50, 200), is_tree=False)
    assert [tmp_path / "m-v4.bin"] == find_siblings(target, range(50, 200), is_tree=True)
    assert [] == find_siblings(tmp_path / "absent/m-v9.bin", range(50, 200), is_tree=False)
    assert [] == find_siblings(tmp_path / "1", range(50, 200), is_tree=False)


async def test_a_fetch_copies_a_sibling(repository: LocalRepository, tmp_path: Path) -> None:
    """A file beside the target that has a chunk of it. A file without one is not hashed."""
    (tmp_path / "pushed").write_bytes(NEW)
    record = (await push(repository, tmp_path / "pushed", name="model-v3.bin")).record
    place = plant(tmp_path / "place", {"model-v1.bin": random.Random(3).randbytes(12 * MIB), "model-v2.bin": OLD})
    fetched = await fetch(repository, record, target=place / "model-v3.bin", seeds=[SiblingFinder(is_tree=False)])

    assert NEW == fetched.path.read_bytes()
    assert fetched.bytes_received < 3 * MIB
    assert {place / "model-v2.bin": fetched.bytes_reused} == fetched.reused_from


async def test_a_fetch_copies_a_sibling_tree(repository: LocalRepository, tmp_path: Path) -> None:
    """A folder beside the target, as a push of it is cut."""
    new = {"model.bin": NEW, "config.json": b"{}"}
    record = (await push(repository, plant(tmp_path / "pushed", new), name="model-v2.zip")).record
    place = plant(tmp_path / "place", {"model-v1/model.bin": OLD, "model-v0/small": b"x"})
    fetched = await fetch_tree(repository, record, target=place / "model-v2", seeds=[SiblingFinder(is_tree=True)])

    assert new == standing(fetched.path)
    assert fetched.bytes_received < 3 * MIB
    assert [place / "model-v1"] == list(fetched.reused_from)


async def test_a_sibling_that_cannot_be_read(
    repository: LocalRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not named, so this is not an error."""
    (tmp_path / "pushed").write_bytes(NEW)
    record = (await push(repository, tmp_path / "pushed", name="model-v3.bin")).record
    place = plant(tmp_path / "place", {"model-v2.bin": OLD})
    opened = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == place / "model-v2.bin":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    fetched = await fetch(repository, record, target=place / "model-v3.bin", seeds=[SiblingFinder(is_tree=False)])

    assert NEW == fetched.path.read_bytes()
    assert {} == fetched.reused_from
