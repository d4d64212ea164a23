"""curl, which knows nothing of the Hub but its URLs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.hub_clients import Hub, contents

pytestmark = pytest.mark.slow


def curl(hub: Hub, path: str, *options: str) -> bytes:
    """Return the output of curl for a path of the server."""
    command = ["curl", "-sS", "-L", "-H", f"Authorization: Bearer {hub.server.token}", *options, f"{hub.server.url}{path}"]
    return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout


def test_every_file_by_its_url(hub: Hub, stored: str, model: Path) -> None:
    """The URLs of the Hub's own pages yield the files."""
    for path, content in contents(model).items():
        assert content == curl(hub, f"/{stored}/resolve/main/{quote(path)}", "--fail")


def test_a_part_and_the_rest(hub: Hub, stored: str, model: Path, tmp_path: Path) -> None:
    """`--range` yields a part, and `--continue-at -` the rest of a file that was cut."""
    content = (model / "model.safetensors").read_bytes()
    url = f"/{stored}/resolve/main/model.safetensors"
    assert content[700_000:700_100] == curl(hub, url, "--fail", "--range", "700000-700099")
    cut = tmp_path / "cut"
    cut.write_bytes(content[:123_456])
    curl(hub, url, "--fail", "--continue-at", "-", "--output", str(cut))
    assert content == cut.read_bytes()


def test_an_unchanged_file_is_not_sent(hub: Hub, stored: str, tmp_path: Path) -> None:
    """`--etag-compare` gets 304."""
    url = f"/{stored}/resolve/main/config.json"
    curl(hub, url, "--fail", "--etag-save", str(tmp_path / "etag"))
    assert b"304" == curl(hub, url, "--etag-compare", str(tmp_path / "etag"), "--write-out", "%{http_code}")


def test_what_is_absent(hub: Hub, stored: str) -> None:
    """The error is a header and a text."""
    answer = curl(hub, f"/{stored}/resolve/main/absent", "--include").decode()
    assert answer.startswith("HTTP/1.1 404 ")
    assert "x-error-code: entrynotfound" in answer.lower()


def test_lists(hub: Hub, stored: str, model: Path) -> None:
    """Lists are JSON."""
    tree = json.loads(curl(hub, f"/api/models/{stored}/tree/main?recursive=true", "--fail"))
    assert sorted(contents(model)) == sorted(entry["path"] for entry in tree if entry["type"] == "file")
