from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.core.signing import PREFIX as SIGNED_PREFIX
from filestore.errors import NotFound
from filestore.http.server.app import ROUTES
from filestore.http.server.routes.hub.routes import HUB_ROUTES
from filestore.http.wire import API, encode_problem, status_of
from tests.support.errors import classes
from tests.support.frames import encoded, manifest
from tests.support.generator import octets
from tests.support.server import RunningServer, batch, running_server
from tests.support.uploads import PartsUpload

# The runtime's part is that of `test_runtime_api_doc.py`.
DOC = (Path(__file__).parents[2] / "docs/http-api.md").read_text().partition("\n## The runtime\n")[0]
LINE = re.compile(r"^curl (.*?) +# (\d{3})$", re.MULTILINE)
HEADING = re.compile(r"^### `(\S+) (\S+)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `([a-z-]+)` \| (\d{3}) \| (.*?) \|", re.MULTILINE)
LINES = [line for block in re.findall(r"^```bash\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
CONTENT = octets(1, 50_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server for the lines of the page."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_every_curl_line_does_what_it_says(server: RunningServer, tmp_path: Path, line: str) -> None:
    """There is a stored file, and the folder has what the lines name."""
    typed = LINE.fullmatch(line)
    assert typed is not None, "a line of a bash block is a curl command, and its status behind #"
    built = manifest([CONTENT])
    chunk = built.chunks[0].digest
    for name, content in {
        "my_file.txt": CONTENT,
        "digests.bin": chunk,
        "batch.bin": batch([encoded(CONTENT)]),
        "manifest.bin": built.encoded,
    }.items():
        (tmp_path / name).write_bytes(content)
    server.put([encoded(CONTENT)])
    record = server.commit(built.encoded, name="my_file.txt").json

    known = {"URL": server.url, "TOKEN": server.token, "CHUNK": str(chunk)}
    known |= {"ID": record["id"], "DIGEST": record["digest"], "NAME": record["name"]}
    known["SIGNED"] = server.ask("POST", f"{API}/files/{record['id']}/sign").json["path"]
    known["RUN_PATH"] = known["SIGNED"].split("/", 4)[4]
    upload = PartsUpload(server, "my_file.txt")
    tag = upload.put(1, CONTENT).tag.strip('"')
    known |= {"UPLOAD": upload.id, "TAG": tag, "PART_URL": upload.url(1).json["upload_url"]}
    post = server.ask("POST", "/v4/files/presigned-post", b'{"name": "my_file.txt"}').json
    known |= {"POST_URL": post["upload_url"], "POST_ID": post["upload_id"]}
    options = '--silent --show-error --output /dev/null --write-out "%{http_code}"'
    done = subprocess.run(
        ["bash", "-c", f"curl {options} {typed[1]}"],
        env={"PATH": os.environ["PATH"], **known},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (typed[2], "") == (done.stdout, done.stderr)


def test_every_route_is_described_with_a_curl_line() -> None:
    """Neither more nor fewer."""
    described = {f"{method} {path}": text for method, path, text in HEADING.findall(DOC)}
    written = {
        "/{path:pipeline_files/.*}": "/pipeline_files/ab/cd/{digest}/{name}",
        "/{path:run_files/.*}": "/run_files/ab/cd/{uuid}/{name}",
    }
    signed = f"{SIGNED_PREFIX}{written['/{path:run_files/.*}']}"
    # The routes of the Hub have a page of their own.
    own = [route for route in ROUTES if route not in HUB_ROUTES]
    routes = {f"{route.method} {written.get(route.path, route.path)}" for route in own}
    assert {"GET /healthz", "GET /readyz", f"GET {signed}", *routes} == set(described)
    assert [] == [route for route, text in described.items() if LINE.search(text) is None]


def test_every_problem_has_the_status_and_the_members_that_are_documented() -> None:
    """And every status that is not 500 is in the table."""
    documented = {slug: (int(status), re.findall(r"`(\w+)`", members)) for slug, status, members in ROW.findall(DOC)}
    problems = {kind.slug: (status_of(kind), list(kind.facts)) for kind in classes()}
    assert documented == {slug: problems[slug] for slug in documented}
    client_side = {"invalid-reference", "invalid-url", "invalid-setting", "invalid-content", "nothing-matches", "not-an-archive"}
    # Only a cache or a client raises these.
    client_side |= {
        "cache-full",
        "download-refused",
        "invalid-tensors",
        "token-missing",
        "unexpected-content",
        "unexpected-record",
        "other-repository",
    }
    assert {slug for slug, (status, _) in problems.items() if status != 500} - client_side <= set(documented)


def test_the_problem_that_is_shown() -> None:
    """It is what a server answers."""
    shown = re.search(r"^```json\n(\{\n  \"type\": \"urn:.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert encode_problem(NotFound("model.bin")).document == json.loads(shown[1])
