"""Requests that a tool makes from `docs/openapi.yaml`, sent to a real server, whose answers must be in the document."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from blake3 import blake3

from filestore.core.paths import run_path
from tests.fuzz import fuzzer
from tests.fuzz.needs import needs_own_venv
from tests.support.server import FORM, RunningServer, form, running_server

DOCUMENT = fuzzer.REPOSITORY / "docs" / "openapi.yaml"
SEED = 20261129
EXAMPLES = int(os.environ.get("FILESTORE_TEST_REQUESTS", "6"))
"""The most requests of one kind that are made at random; those at the limits of each parameter come on top."""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def _with_examples(server: RunningServer, folder: Path) -> Path:
    """Write the document with examples that the server has, so that not every request is one of something unknown."""
    record = server.ask("POST", "/v3/pipeline_files", form("model.bin", b"content " * 9000), headers=FORM).json
    upload = server.ask("POST", "/v3/pipeline_files/initiate-multipart-upload", b'{"name": "a"}').json
    document: Any = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
    _, first, second, uuid, name = run_path(record["id"], record["name"]).split("/")
    examples = {
        "id": record["id"],
        "digest": record["digest"],
        "uploadId": upload["upload_id"],
        "first": first,
        "second": second,
        "uuid": uuid,
        "name": name,
        "number": 1,
        "range": "bytes=1-5",
        "ifNoneMatch": f'"{record["digest"]}"',
        "kind": "file",
        "limit": 2,
        "namespace": "default",
        "expiresAt": "1",
        "signature": "0" * 64,
        "fileName": "a%20name",
        "before": 5,
        "sizeLimit": 10,
        "ifMatch": "*",
        "ifRange": '"other"',
        "repositoryType": "models",
        "repository": record["name"],
        "revision": "main",
        "hubPath": record["name"],
    }
    for parameter, example in examples.items():
        document["components"]["parameters"][parameter]["example"] = example
    uploads = "/v3/pipeline_files/uploads/{upload_id}"
    # Not the one that the other requests are about.
    other = server.ask("POST", "/v3/pipeline_files/initiate-multipart-upload", b'{"name": "b"}').json["upload_id"]
    cancelled = {**document["components"]["parameters"]["uploadId"], "example": other}
    document["paths"][uploads]["delete"]["parameters"] = [cancelled]
    copied = {"file_id": record["id"], "offset": 0, "size": 8, "tag": blake3(b"content ").hexdigest()}
    copy = document["paths"][f"{uploads}/parts/{{number}}/copy"]["post"]
    copy["requestBody"]["content"]["application/json"]["example"] = copied
    # The tool cannot write lines of JSON. The server reads them, whatever the media type is.
    commit = document["paths"]["/api/{type}/{repository}/commit/{revision}"]["post"]["requestBody"]["content"]
    commit["application/octet-stream"] = commit.pop("application/x-ndjson")
    written = folder / "openapi.yaml"
    written.write_text(yaml.safe_dump(document), encoding="utf-8")
    return written


pytestmark = needs_own_venv


def _ask(server: RunningServer, document: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Make requests from a document, and compare the answers with it."""
    command = [
        str(fuzzer.OWN_PYTHON.with_name("schemathesis")),
        f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
        "run",
        str(document),
        f"--url={server.url}",
        f"--header=Authorization: Bearer {server.token}",
        f"--checks={CHECKS}",
        f"--seed={SEED}",
        f"--max-examples={EXAMPLES}",
        "--suppress-health-check=all",
        "--generation-database=none",
        "--no-shrink",
        "--no-color",
        "--warnings=off",
        *more,
    ]
    return subprocess.run(command, cwd=document.parent, capture_output=True, text=True, check=False, timeout=3600)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tags", [("--include-tag=hub",), ("--exclude-tag=runtime", "--exclude-tag=hub")], ids=["hub", "other"])
def test_a_server_answers_as_its_document_says(tmp_path: Path, tags: tuple[str, ...]) -> None:
    """Right and wrong requests get a status, a media type and a document that are described, and the server never fails."""
    with running_server(tmp_path / "repository", guesses_limit=1_000_000) as server:
        phases = ("--phases=examples,coverage,fuzzing", "--continue-on-failure")
        done = _ask(server, _with_examples(server, tmp_path), *phases, *tags)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_an_answer_that_is_not_described_is_found(tmp_path: Path) -> None:
    """The tool fails if a document does not have what a server answers."""
    document: Any = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
    answers = document["paths"]["/healthz"]["get"]["responses"]
    answers["200"]["content"]["application/json"]["schema"]["properties"]["status"] = {"const": "well"}
    (tmp_path / "openapi.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    with running_server(tmp_path / "repository") as server:
        done = _ask(server, tmp_path / "openapi.yaml", "--phases=fuzzing", "--include-path=/healthz")
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "schema" in done.stdout
