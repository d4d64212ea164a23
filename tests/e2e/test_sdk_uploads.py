from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.generator import octets
from tests.support.sdks import VERSIONS, Sdk
from tests.support.trees import plant, standing

ID = re.compile(r"file_[0-9a-f]{32}")

STATIC = """
import json, sys
from pathlib import Path
from pipeline.cloud import files
files.FILE_CHUNK_SIZE = int(sys.argv[1])
stored = [files.upload_multipart_file(Path(path), progress=True) for path in sys.argv[2:]]
print(json.dumps([[file.id, file.path] for file in stored]))
"""
"""Uploads static files as `upload_pipeline` does, in parts of a size that a test can pay for."""

INPUTS = """
import json, sys
from pathlib import Path
from pipeline.cloud.pipelines import _data_to_run_input
from pipeline.objects import Directory, File
path, version = sys.argv[1:]
items = [File(path=path), open(path, "rb"), 7]
if version == "sdk1":
    from pipeline.objects import FileURL
    items += [FileURL("http://models.example/a/b.bin")]
else:
    from pipeline.objects.graph import InputField, InputSchema
    class Given(InputSchema):
        inside: File = InputField()
    stored = File(path=path)
    from pipeline.cloud.files import upload_multipart_file
    remote_id = upload_multipart_file(Path(path)).id
    items += [File(url="http://models.example/a/b.bin"), File(remote_id=remote_id), Directory(path=Path(path).parent)]
print(json.dumps([json.loads(item.json()) for item in _data_to_run_input(tuple(items))]))
"""
"""What `run_pipeline` uploads and puts into its request, for each kind of input."""

REMOTE = """
import json, sys
from pipeline.objects import File, Directory
if sys.argv[2] == "sdk1":
    print(json.dumps([str(File.from_remote(id=sys.argv[1]).path), str(Directory.from_remote(id=sys.argv[1]).path)]))
else:
    from pipeline.cloud.files import get_path_from_id
    print(json.dumps([get_path_from_id(sys.argv[1])]))
"""

SAVE = """
import json, sys
from pathlib import Path
from urllib.request import urlretrieve
from pipeline.cloud.files import upload_file
from pipeline.cloud.schemas.runs import RunInput
from pipeline.objects import File
url = upload_file(Path(sys.argv[1])).url
File(url=url).save(sys.argv[2])
urlretrieve(RunInput.encode_url(url), sys.argv[3])
print(json.dumps(url))
"""
"""Reads the URL of an upload as a caller does, and as the container of a pipeline does."""


@pytest.fixture(scope="module", params=VERSIONS)
def sdk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    """Each version, and a server with two workers that says nothing bad until its end."""
    folder = tmp_path_factory.mktemp("user")
    home = Home(folder)
    with home.server("--workers", "2", root=tmp_path_factory.mktemp("served") / "root") as server:
        yield Sdk(request.param, home, server)


def stored_content(sdk: Sdk, reference: str, folder: Path) -> bytes:
    """Return what our fetch gives for an id or a path."""
    sdk.home.result("fetch", reference.lstrip("/"), "--output", folder / "fetched", environ=sdk.server.environ)
    return (folder / "fetched").read_bytes()


@pytest.mark.slow
def test_login(sdk: Sdk, tmp_path: Path) -> None:
    """The server is asked whether the token is valid; then the stored login counts, and not the variables."""
    own = {"PIPELINE_DIR": str(tmp_path), "PIPELINE_API_URL": "http://127.0.0.1:9/", "PIPELINE_API_TOKEN": "none"}
    said = sdk.pipeline("cluster", "login", "wrong", "no-token", "-u", sdk.server.url, environ=own)
    assert f"Couldn't authenticate with {sdk.server.url}" in said
    said = sdk.pipeline("cluster", "login", "right", sdk.server.token, "-u", sdk.server.url, "-a", environ=own)
    assert "Successfully authenticated with right" in said
    assert "Created At" in sdk.pipeline("get", "file", environ=own)


@pytest.mark.slow
def test_without_a_token(sdk: Sdk, tmp_path: Path) -> None:
    """The SDK sends the word None, and gets an error in `detail`."""
    path = tmp_path / "my_file.txt"
    path.write_text("content")
    assert "refused the token" in sdk.refusal("create", "file", path, environ={"PIPELINE_API_TOKEN": "None"})


@pytest.mark.slow
def test_create_and_get_a_file(sdk: Sdk, tmp_path: Path) -> None:
    """By its absolute path; its name stays, an alias is a second one; it is listed, shown and downloaded by its id."""
    path = tmp_path / "my file é.txt"
    path.write_bytes(octets(1, 3_000_000))
    file_id = ID.findall(sdk.pipeline("create", "file", path))[-1]
    alias_id = ID.findall(sdk.pipeline("create", "file", path, "--name", "an alias"))[-1]
    assert file_id == alias_id

    names = [record["name"] for record in sdk.home.result("ls", environ=sdk.server.environ)["files"]]
    assert {"my file é.txt", "an alias"} <= set(names)
    for said in (sdk.pipeline("get", "file"), sdk.pipeline("get", "file", file_id)):
        (line,) = [line for line in said.splitlines() if file_id in line]
        assert line.rstrip(" |").endswith("/my file é.txt")
    sdk.pipeline("get", "file", file_id, "--download", "--output-file", tmp_path / "copy")
    assert path.read_bytes() == (tmp_path / "copy").read_bytes()
    assert "404" in sdk.refusal("get", "file", f"file_{'0' * 32}")


@pytest.mark.slow
def test_create_a_directory(sdk: Sdk, tmp_path: Path) -> None:
    """The SDK's zip unpacks to the directory that it was made from."""
    folder = tmp_path / f"dir_{sdk.version}"
    plant(folder, {"a/x": b"one", "b/x": b"two"})
    file_id = ID.findall(sdk.pipeline("create", "file", "-r", folder))[-1]
    sdk.home.result("fetch", file_id, "--unzip", "--output", tmp_path / "again", environ=sdk.server.environ)
    assert standing(folder) == standing(tmp_path / "again")


@pytest.mark.slow
def test_static_files_in_parts(sdk: Sdk, tmp_path: Path) -> None:
    """Of no part, of one, of several; the record's path ends in the file's name, as loaders want it."""
    sizes = {"empty.bin": 0, "one.bin": 1_000_000, "exact.bin": 8_000_000, "several.bin": 27_000_001}
    for seed, (name, size) in enumerate(sizes.items()):
        (tmp_path / name).write_bytes(octets(seed, size))
    stored = sdk.python(STATIC, "4000000", *(tmp_path / name for name in sizes))
    for name, (file_id, path) in zip(sizes, stored, strict=True):
        assert path.endswith(f"/{name}")
        assert (tmp_path / name).read_bytes() == stored_content(sdk, file_id, tmp_path)
        pushed = sdk.home.result("push", tmp_path / name, environ=sdk.server.environ)
        assert (file_id, 0) == (pushed["id"], pushed["bytes_sent"])


@pytest.mark.slow
def test_every_kind_of_run_input(sdk: Sdk, tmp_path: Path) -> None:
    """A file that the SDK uploads has the path that the SDK puts into the request. URLs do not change."""
    path = tmp_path / "in" / "my input.bin"
    path.parent.mkdir()
    path.write_bytes(octets(5, 500_000))
    items = sdk.python(INPUTS, path, sdk.version)
    file, handle, number, url, *more = items
    for item in (file, handle, *more[:1]):
        assert "my input.bin" == item["file_name"]
        assert path.read_bytes() == stored_content(sdk, item["file_path"], tmp_path)
    assert 7 == number["value"]
    assert ("http://models.example/a/b.bin", "b.bin") == (url["file_path"], url["file_name"])
    if more:
        reference = more[1]["file_path"].lstrip("/")
        sdk.home.result("fetch", reference, "--unzip", "--output", tmp_path / "tree", environ=sdk.server.environ)
        assert standing(path.parent) == standing(tmp_path / "tree")
        assert file["file_url"].startswith(f"{sdk.server.url}/signed/")


@pytest.mark.slow
def test_stored_files_are_named_by_their_ids(sdk: Sdk, tmp_path: Path) -> None:
    """`from_remote`, and a `remote_id`."""
    path = tmp_path / "named.zip"
    path.write_bytes(b"content")
    pushed = sdk.home.result("push", path, environ=sdk.server.environ)
    assert {pushed["path"]} == set(sdk.python(REMOTE, pushed["id"], sdk.version))


@pytest.mark.slow
def test_save(sdk: Sdk, tmp_path: Path) -> None:
    """`File.save()` of version 2 has no token and needs a length; the URL of an upload is good for it, spaces in a name too."""
    if sdk.version == "sdk1":
        return  # it has no `save`
    for name, last in {"to save.bin": "to%20save.bin", "plain.bin": "plain.bin"}.items():
        path = tmp_path / name
        path.write_bytes(octets(6, 2_000_000))
        url = sdk.python(SAVE, path, tmp_path / "saved", tmp_path / "retrieved")
        assert url.endswith(f"/{last}")
        assert path.read_bytes() == (tmp_path / "saved").read_bytes() == (tmp_path / "retrieved").read_bytes()
