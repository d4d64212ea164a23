"""The page of administrators at a real server: what it says of the server, of namespaces, of tokens, and of the last results."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import open_backend
from filestore.core.digest import token_digest
from filestore.core.quotas import Quota
from filestore.core.scopes import Scope
from filestore.repository.given_tokens import note_given
from filestore.repository.maintenance.hold import TASK as HOLD
from tests.support.changed_tokens import changed
from tests.support.pages import page_text, sign_in
from tests.support.server import OTHER_TOKEN, RunningServer, running_server

TOKENS = {
    "reader": {"namespace": "default", "label": "a reader", "scope": Scope.READ},
    "old": {"namespace": "default", "label": "<i>expired</i>", "scope": Scope.WRITE, "expires_at": 1_000_000},
    "team": {"namespace": "default", "label": "", "scope": Scope.ADMIN, "prefix": "team/"},
    "their": {"namespace": "other", "label": "their script", "scope": Scope.DELETE},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two processes, which neither collect nor scrub by themselves."""
    settings: dict[str, Any] = {"workers": 2, "gc_rate": 0, "scrub_rate": 0}
    with running_server(tmp_path_factory.mktemp("served") / "root", **settings) as server:
        for token, properties in TOKENS.items():
            changed(
                server,
                lambda _, transaction, token=token, properties=properties: transaction.add_token(  # type: ignore[misc]
                    token_digest(token), **properties
                ),
            )
        asyncio.run(give(server))
        yield server


async def give(server: RunningServer) -> None:
    """Note a token that a server was given, as the command serve does."""
    store, index = await open_backend(server.root)
    await note_given(index, {token_digest("given"): "other"})
    await index.close()
    await store.close()


def command(server: RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the folder of the server."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FILESTORE_")}
    return subprocess.run(
        [sys.executable, "-m", "filestore", *arguments, "--root", str(server.root)],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
    )


def shown(server: RunningServer, token: str | None = None) -> str:
    """What the page says."""
    page = sign_in(server, token).get("/ui/admin")
    assert 200 == page.status, page.body
    return page_text(page)


def test_an_empty_server_has_no_results_yet(server: RunningServer) -> None:
    """It says what it is made of, and that it does no work by itself."""
    page = shown(server)
    assert page.startswith("Server Content in a folder on a disk Index SQLite, ")
    assert "default None yet None yet None yet" in page
    assert "This server does not collect by itself (gc_rate is 0)." in page
    assert "This server does not scrub (scrub_rate is 0)." in page
    assert " are free " in page


def test_all_processes_are_shown(server: RunningServer) -> None:
    """Whichever answers."""
    _, _, after = sign_in(server).get("/ui/admin").body.decode().partition('<h2 id="processes">')
    processes, _, _ = after.partition('<h2 id="space">')
    assert 2 == processes.count('<th scope="row">')
    assert 1 == processes.count('<th scope="row">2</th>')


def test_tokens_are_named_by_their_digests(server: RunningServer) -> None:
    """Never by themselves. Labels are text. Each has what it permits."""
    page = sign_in(server).get("/ui/admin")
    text = page_text(page)
    for token in (*TOKENS, "given"):
        assert str(token_digest(token))[:16] in text
        assert str(token_digest(token)) not in text
    assert server.token not in text
    assert "a reader default read all none" in text
    assert "<i>expired</i> default write all none" in text
    assert b"<i>" not in page.body
    assert "expired 1970-01-01 00:00 UTC" in text
    assert "default admin team/ … none" in text
    assert "given to a server for its run other admin all none" in text
    assert "not known with its server" in text


def test_an_administrator_of_a_namespace_sees_only_that(server: RunningServer) -> None:
    """Nothing of the server, and no other namespace or token."""
    text = shown(server, OTHER_TOKEN)
    assert text.startswith("Namespace other Space and quotas")
    assert "their script" in text
    for hidden in ("default", "a reader", "Processes", "SQLite", "free", str(token_digest("reader"))[:16]):
        assert hidden not in text.replace("the default namespace", "")


@pytest.mark.parametrize("token", ["reader", "team", "their"])
def test_others_do_not_see_it(server: RunningServer, token: str) -> None:
    """A prefix is not the whole namespace. The menu does not name the page."""
    visitor = sign_in(server, token)
    assert 403 == visitor.get("/ui/admin").status
    assert b'"/ui/admin"' not in visitor.get("/ui/links").body


def test_quotas_are_shown_with_what_is_used(server: RunningServer) -> None:
    """Those of namespaces, of tokens, and of all namespaces without their own."""
    changed(server, lambda _, transaction: transaction.set_quota("default", Quota(size=2_000_000, requests_per_second=9)))
    changed(server, lambda _, transaction: transaction.set_quota("", Quota(name_count=5)))
    changed(
        server,
        lambda _, transaction: transaction.set_quota("default", Quota(connections=3), token=token_digest("reader")),
    )
    text = shown(server)
    assert "0 B of 2.00 MB (0 %)" in text
    assert "9 requests/s" in text
    assert "a reader default read all 3 connections" in text
    assert "0 of 5 (0 %)" in shown(server, OTHER_TOKEN)
    assert "the quota of all namespaces without their own" in shown(server, OTHER_TOKEN)


def test_the_last_collection_and_check_are_shown(server: RunningServer) -> None:
    """Those of commands on the folder, beside the server, with what they found."""
    stored = server.upload("removed.bin", os.urandom(300_000)).json["id"]
    assert 201 == server.upload("kept.bin", os.urandom(300_000)).status
    assert 204 == server.ask("DELETE", f"/native/v1/files/{stored}").status // 100 * 100 + 4
    assert 0 == (done := command(server, "gc", "--grace", "0s")).returncode, done.stderr
    assert 0 == (done := command(server, "check")).returncode, done.stderr
    text = shown(server)
    assert "Ended" in text
    assert "freed 300 kB , 2 chunks and lists of chunks" in text, text
    assert "no damage (1 chunk, 0 of them read)" in text
    assert "The index not looked at Ended" in text

    (frame,) = [path for path in server.root.glob("chunks/default/**/*") if path.is_file()]
    content = bytearray(frame.read_bytes())
    content[len(content) // 2] ^= 1
    frame.write_bytes(content)
    assert 1 == command(server, "check", "--read-data").returncode
    assert "1 place is damaged , which affects 1 file (1 chunk, 1 of them read)" in shown(server)


def test_a_hold_is_shown(server: RunningServer) -> None:
    """The reason is for those who operate the server. A collection that it stops has failed."""
    for namespace in ("default", "other"):
        changed(
            server,
            lambda _, transaction, namespace=namespace: transaction.set_task_state(  # type: ignore[misc]
                namespace, HOLD, {"reason": "found in /srv/store", "since": 1_000_000, "manifest_count": 1}
            ),
        )
    assert 1 == command(server, "gc").returncode
    text, theirs = shown(server), shown(server, OTHER_TOKEN)
    assert "Failed" in text
    assert "Held since 1970-01-01 00:00 UTC : found in /srv/store" in text
    assert ("Held since 1970-01-01 00:00 UTC" in theirs, "/srv/store" in theirs) == (True, False)
    assert 0 == command(server, "gc", "--end-hold").returncode
    assert "Held" not in shown(server)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    """A page of them, with a link to the next."""
    with running_server(tmp_path / "root") as server:

        async def add(_: object, transaction: object) -> None:
            for number in range(250):
                await transaction.add_token(  # type: ignore[attr-defined]
                    token_digest(f"{number}"), namespace=f"team-{number:03}", label=f"label {number}"
                )

        changed(server, add)
        visitor = sign_in(server)
        first = visitor.get("/ui/admin")
        assert (50, 200) == (first.body.count(b'<th scope="row">team-') // 2 + 1, first.body.count(b'<th scope="row"><code>'))
        assert "1 to 50 of 251" in page_text(first)
        assert "label 249" not in page_text(first)
        assert "label 249" in page_text(visitor.get("/ui/admin", tokens=2))
        assert "team-249" in page_text(visitor.get("/ui/admin", page=6))
        for beyond in ("0", "99"):
            assert 200 == visitor.get("/ui/admin", page=beyond, tokens=beyond).status
        for wrong in ("-1", "x", "9" * 5000, "²"):
            assert 400 == visitor.get("/ui/admin", page=wrong).status == visitor.get("/ui/admin", tokens=wrong).status
