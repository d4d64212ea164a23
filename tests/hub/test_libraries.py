"""Libraries that read from the Hub by its client: transformers, safetensors, pandas, pyarrow and file systems."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.hub.conftest import MODEL, by
from tests.support.hub_clients import Hub, HubClient, contents, steps

pytestmark = pytest.mark.slow


@by("0.36", "1.19", "newest")
def test_transformers_loads_a_configuration_and_a_tokenizer(hub: Hub, client: HubClient, stored: str, model: Path) -> None:
    """They are those of the folder, by transformers 4.57, 5.17 and 5.24. Absent files are answered as such."""
    local, remote = client.script("load.py", model, stored)
    assert local == remote
    absent = [one for one in hub.relay.asked if "/resolve/" in one.path and one.status == 404]
    assert {"EntryNotFound"} == {one.answered["x-error-code"] for one in absent}
    assert all("x-repo-commit" in one.answered for one in absent)


@by("0.36")
def test_transformers_downloads_once(hub: Hub, client: HubClient, stored: str) -> None:
    """A second process downloads nothing."""
    loaded = client.script("load.py", stored)
    hub.relay.asked.clear()
    assert loaded == client.script("load.py", stored)
    assert "GET resolve" not in steps(hub.relay.asked)


@by("1.19")
def test_transformers_pushes(client: HubClient, name: str, model: Path) -> None:
    """`push_to_hub` of a configuration and a tokenizer makes a repository from which both can be loaded."""
    client.script("push_to_hub.py", model, name)
    local, remote = client.script("load.py", model, name)
    assert local == remote


@by("newest")
def test_transformers_loads_real_weights(client: HubClient, real: str) -> None:
    """The real model makes the same numbers from the repository as from its own folder."""
    if not list(client.bin.parent.glob("lib/python*/site-packages/torch")):
        pytest.skip("torch for processors was not at hand when the environment was made")
    local, remote = client.script("load.py", "--weights", MODEL, real)
    assert local == remote


@by("0.36")
def test_numpy_loads_real_weights(client: HubClient, real: str) -> None:
    """All tensors of the real model are those of its own file."""
    tensors = load_file(MODEL / "model.safetensors")
    expected = {name: sha256(tensor.tobytes()).hexdigest() for name, tensor in tensors.items()}
    assert expected == client.script("weights.py", real, "model.safetensors")


@by("0.36", "newest")
def test_a_repository_is_a_file_system(hub: Hub, client: HubClient, stored: str, model: Path) -> None:
    """Lists, patterns, sizes and parts of files are those of the folder; a part is read by a range."""
    files = contents(model)
    found = client.script("file_system.py", stored)
    assert sorted({f"{stored}/{path.partition('/')[0]}" for path in files}) == found["top"]
    assert sorted(f"{stored}/{path}" for path in files) == found["found"]
    assert sorted(f"{stored}/{path}" for path in files if path.endswith(".json")) == found["matched"]
    assert (len(files["data.bin"]), True, [True, False, False]) == (found["size"], found["is_folder"], found["is_there"])
    assert (files["README.md"].decode(), files["data.bin"][200_000:200_100].hex()) == (found["text"], found["part"])
    ranged = [one for one in hub.relay.asked if one.path.endswith("/data.bin") and one.method == "GET"]
    assert [206] == [one.status for one in ranged]


@by("1.0")
def test_a_file_system_is_written(client: HubClient, name: str) -> None:
    """Files are written, copied and removed, each by a commit."""
    left = client.script("write_files.py", name)
    assert "written" == left["folder/copied.txt"]
    assert "written.txt" not in left


@pytest.mark.parametrize(("client", "library"), [("1.19", "pyarrow"), ("newest", "pandas")], indirect=["client"])
def test_a_table_is_read_from_afar(hub: Hub, client: HubClient, name: str, tmp_path: Path, library: str) -> None:
    """The library reads the table that it wrote, through a URL or a file system of the client."""
    folder = tmp_path / "table"
    folder.mkdir()
    client.script("tables.py", library, "make", folder)
    hub.push(folder, name)
    assert [sum(range(20_000)), "word 1"] == client.script("tables.py", library, "read", name)
