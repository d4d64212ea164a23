"""The commands for owners, beside a server whose tokens belong to two namespaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Home

pytestmark = pytest.mark.slow


def test_an_owner_belongs_to_one_namespace(home: Home, tmp_path: Path) -> None:
    """The first push takes it. Another namespace is refused, until the owner is given up."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"what is in the file")
    with home.local_server() as server:
        other = home.result("token", "new", "--namespace", "other")["token"]
        theirs = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": other}
        home.result("push", source, "--name", "Team/model.bin", environ=server.environ)
        assert [{"owner": "Team", "namespace": "default"}] == home.result("owner", "ls")["owners"]
        refused = home.failure("push", source, "--name", "team/other.bin", environ=theirs)
        assert "the owner 'team' belongs to another namespace of this repository" in refused
        assert refused.endswith("`filestore owner ls` shows which namespace has it")
        assert "belongs to another namespace" in home.failure("owner", "give", "TEAM", "other")
        assert [] == home.result("ls", environ=theirs)["files"]
        # Nothing was sent for it.
        assert 0 == home.result("du", environ=theirs)["frame_count"]

        assert "default" == home.result("owner", "rm", "tEAM")["namespace"]
        assert [] == home.result("owner", "ls")["owners"]
        home.result("owner", "give", "team", "other")
        home.result("push", source, "--name", "team/other.bin", environ=theirs)
        assert "belongs to another namespace" in home.failure("push", source, "--name", "team/x", environ=server.environ)
        # What was stored stays.
        assert "Team" == home.result("info", "Team/model.bin", environ=server.environ)["owner"]
    assert home.run("owner", "ls").stdout.startswith("team  other\n1 owner in ")
    assert "no namespace has the owner nobody" in home.failure("owner", "rm", "nobody")


@pytest.mark.parametrize("owner", ["api", "DATASETS", "a--b", "-a", "a/b", "é"])
def test_owners_that_nobody_can_have(home: Home, owner: str) -> None:
    """Because URLs begin so, or clients of the Hub refuse them."""
    done = home.run("owner", "give", "--", owner, "default")
    assert (2, True) == (done.returncode, f"{owner!r}: " in done.stderr)
    assert [] == home.result("owner", "ls")["owners"]


def test_a_namespace_gives_up_its_owners_when_it_is_removed(home: Home, tmp_path: Path) -> None:
    """So that another one can have them. Changes are in the audit log."""
    audited = {"FILESTORE_AUDIT_LOG": str(tmp_path / "audit.log")}
    home.result("owner", "give", "team", "other", environ=audited)
    home.result("token", "new", "--namespace", "other")
    home.result("namespace", "rm", "other", "--yes")
    assert [] == home.result("owner", "ls")["owners"]
    home.result("owner", "give", "team", "default", environ=audited)
    home.result("owner", "rm", "team", environ=audited)
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [("owner-give", "other"), ("owner-give", "default"), ("owner-rm", "default")] == [
        (line["action"], line["namespace"]) for line in lines
    ]


def test_owners_are_those_of_a_folder(home: Home) -> None:
    """The URL of a server is refused."""
    said = home.failure("owner", "ls", "--url", "http://127.0.0.1:1")
    assert "run it on the machine of that server" in said
