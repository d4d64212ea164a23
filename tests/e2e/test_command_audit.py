"""Commands that change a folder without its server write into its audit log."""

from __future__ import annotations

import json
import os
from pathlib import Path
from pwd import getpwuid

import pytest

from tests.support.commands import Home


@pytest.mark.slow
def test_commands_on_a_folder_are_audited(home: Home, tmp_path: Path) -> None:
    """Tokens that are made, rotated and removed, records and namespaces that are removed; never a token itself."""
    log, root = tmp_path / "audit.log", home.data
    environ = {"FILESTORE_AUDIT_LOG": str(log)}
    home.create_repository()
    (tmp_path / "model.bin").write_bytes(b"content")
    made = home.result("token", "new", "--label", "laptop", "--scope", "read", environ=environ)
    rotated = home.result("token", "rotate", made["digest"], environ=environ)
    home.result("token", "rm", rotated["digest"], environ=environ)
    home.result("token", "new", "--namespace", "team", environ=environ)
    home.result("token", "ls", environ=environ)
    home.result("namespace", "rm", "team", "--yes", environ=environ)
    pushed = home.result("push", tmp_path / "model.bin", environ=environ)
    home.result("rm", "model.bin", "--dry-run", environ=environ)
    home.result("rm", "model.bin", environ=environ)
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert ["token-new", "token-rotate", "token-rm", "token-new", "namespace-rm", "remove"] == [line["action"] for line in lines]
    first, second, third, _, fifth, last = lines
    assert (made["digest"][:16], "laptop", "read") == (first["token"], first["label"], first["scope"])
    assert (rotated["digest"][:16], made["digest"][:16]) == (second["token"], second["old_token"])
    assert rotated["digest"][:16] == third["token"]
    assert ("team", 1) == (fifth["namespace"], fifth["tokens"])
    assert (pushed["id"], "model.bin") == (last["record"], last["name"])
    assert {getpwuid(os.getuid()).pw_name} == {line["user"] for line in lines}
    assert made["token"] not in text
    assert rotated["token"] not in text
    assert root.exists()


@pytest.mark.slow
def test_a_command_whose_audit_log_cannot_be_written_does_its_work(home: Home, tmp_path: Path) -> None:
    """It warns. A command that asks a server leaves the line to the server."""
    path = tmp_path / "no folder" / "audit.log"
    home.create_repository()
    done = home.run("token", "new", "--quiet", environ={"FILESTORE_AUDIT_LOG": str(path)})
    assert 0 == done.returncode
    assert f"Warning: the audit log {path} cannot be written: No such file or directory.\n" == done.stderr
    (tmp_path / "model.bin").write_bytes(b"content")
    with home.local_server() as server:
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": done.stdout.strip(), "FILESTORE_AUDIT_LOG": str(path)}
        home.result("push", tmp_path / "model.bin", environ=environ)
        home.result("rm", "model.bin", environ=environ)
