"""Other upstreams than a Hub: nginx with static files, and a second filestore server."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.hub import know_digests, push_tree
from tests.support.hub_upstream import blob_id
from tests.support.nginx import running_nginx
from tests.support.server import OTHER_TOKEN, TOKEN, running_server

COMMIT = "c0ffee" + "0" * 34
BIG = random.Random(20).randbytes(3 << 20)


def test_static_files_of_nginx(tmp_path: Path) -> None:
    """A tree of files, with the description of a revision as one of them, is an upstream."""
    files = {"config.json": b"{}", "sub/big": BIG}
    siblings = [{"rfilename": path, "size": len(content), "blobId": blob_id(content)} for path, content in files.items()]
    described = {"sha": COMMIT, "private": False, "gated": False, "siblings": siblings}
    with running_nginx(tmp_path / "nginx") as nginx:
        for place, content in {
            "api/models/team/m/revision/main": json.dumps(described).encode(),
            **{f"team/m/resolve/{COMMIT}/{path}": content for path, content in files.items()},
        }.items():
            (nginx.files / place).parent.mkdir(parents=True, exist_ok=True)
            (nginx.files / place).write_bytes(content)
        with running_server(tmp_path / "r", upstream_url=nginx.url) as server:
            for path, content in files.items():
                assert server.ask("GET", f"/team/m/resolve/main/{path}").body == content
            head = server.ask("HEAD", "/team/m/resolve/main/sub/big").headers
            assert (head["X-Repo-Commit"], head["ETag"]) == (COMMIT, f'"{blob_id(BIG)}"')
            assert server.ask("GET", "/team/none/resolve/main/config.json").headers["X-Error-Code"] == "RepoNotFound"


def test_a_second_filestore_server(tmp_path: Path) -> None:
    """The commit, the digests and the bytes are those of the other server, whose token the caller gives."""
    contents = {"config.json": b"{}", "sub/big": BIG}
    with running_server(tmp_path / "first") as first, running_server(tmp_path / "second", upstream_url=first.url) as second:
        know_digests(first, push_tree(first, tmp_path / "tree", contents), contents)
        place = "/team/my-model/resolve/main/sub/big"
        assert second.ask("GET", place).headers["X-Error-Code"] == "RepoNotFound"
        # The namespace of this token has no such repository at the first server.
        other = {"X-Upstream-Authorization": f"Bearer {OTHER_TOKEN}"}
        assert second.ask("GET", place, headers=other).headers["X-Error-Code"] == "RepoNotFound"
        sent = {"X-Upstream-Authorization": f"Bearer {TOKEN}"}
        for path, content in contents.items():
            assert second.ask("GET", f"/team/my-model/resolve/main/{path}", headers=sent).body == content
        told, shown = first.ask("HEAD", place).headers, second.ask("HEAD", place, headers=sent).headers
        assert [told[name] for name in ("X-Repo-Commit", "ETag")] == [shown[name] for name in ("X-Repo-Commit", "ETag")]
        assert second.ask("GET", place).headers["X-Error-Code"] == "RepoNotFound"
