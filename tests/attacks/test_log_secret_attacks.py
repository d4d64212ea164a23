"""Somebody who can read a log, or the output of a command, uses what is written there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from filestore.errors import redact_secrets
from filestore.http.server.log import DirectHandler, WaitingHandler
from filestore.http.wire import API
from tests.support.commands import Home
from tests.support.frames import contents, encoded, manifest
from tests.support.server import running_server

SIGNATURE = "0123456789abcdef" * 4
URL = f"http://127.0.0.1:1/signed/default/9999999999/{SIGNATURE}/run_files/31/7e/317e304d-e816-4036-86b2-7ad82b208b70/x"
TOKEN = "ywqgqFuk3ajqAkpMjVcF"


@pytest.mark.parametrize(
    "text",
    [
        URL,
        URL.replace("/", "%2F"),
        f"Authorization: Bearer {TOKEN}",
        f"{{'Authorization': 'bearer {TOKEN}'}}",
        f"https://models.example/x?a=b&token={TOKEN}&c=d",
        f'{{"token": "{TOKEN}"}}',
        f"FILESTORE_TOKEN={TOKEN}",
    ],
)
def test_a_text_with_a_secret(text: str) -> None:
    """A signature and a token are left out, and the rest stays."""
    redacted = redact_secrets(f"before {text} after")
    assert TOKEN not in redacted
    assert SIGNATURE not in redacted
    assert (redacted.startswith("before "), redacted.endswith(" after")) == (True, True)


def test_a_text_without_a_secret() -> None:
    """It stays as it is."""
    for text in ("the token was refused; give a token of that server", f"GET {API}/files 31/7e/{SIGNATURE}", ""):
        assert text == redact_secrets(text)


@pytest.mark.parametrize("make", [DirectHandler, WaitingHandler])
def test_a_traceback_with_a_secret(make: type[DirectHandler | WaitingHandler]) -> None:
    """Neither the message, its arguments nor the exception of a record shows one."""
    handler = make()
    try:
        try:
            raise ValueError(f"{URL} Bearer {TOKEN}")
        except ValueError as error:
            record = logging.LogRecord("x", logging.ERROR, "x", 1, "failed: %s", (URL,), (ValueError, error, error.__traceback__))
        text = handler.format(record)
    finally:
        if isinstance(handler, WaitingHandler):
            handler.finish()
    assert "Traceback" in text
    assert "/signed/default/9999999999/.../run_files" in text
    assert SIGNATURE not in text
    assert TOKEN not in text


@pytest.mark.slow
def test_the_log_of_a_server(tmp_path: Path) -> None:
    """A signed URL that fails, in the server and in its signature, and a wrong token: the log names paths only."""
    content = contents(1)[0]
    with running_server(tmp_path / "root", check=False) as server:
        server.put([encoded(content)])
        record = server.commit(manifest([content]).encoded, name="name").json
        path = "/" + server.ask("POST", f"{API}/files/{record['id']}/sign").json["path"]
        (frame,) = [file for file in (server.root / "chunks").rglob("*") if file.is_file()]
        frame.write_bytes(b"damaged")
        assert 500 == server.ask("GET", path, token=None).status
        wrong = path.replace("/name", "/nome")
        assert 403 == server.ask("GET", wrong, token=None).status
        assert 401 == server.ask("GET", f"{API}/files?token={TOKEN}", token=TOKEN).status
        _, log = server.stop()
    signature = path.split("/")[4]
    assert "run_files" in log
    assert f"GET '{API}/files'" in log
    assert signature not in log
    assert TOKEN not in log


@pytest.mark.slow
def test_the_output_of_a_command(home: Home) -> None:
    """An error that names a signed URL leaves its signature out."""
    done = home.run("cache", "warm", URL, environ={"FILESTORE_URL_PRIVATE_ALLOWED": "yes", "FILESTORE_RETRY_SECONDS": "0.1"})
    assert done.returncode == 1
    assert "/signed/default/9999999999/.../run_files" in done.stderr
    assert SIGNATURE not in done.stderr + done.stdout
