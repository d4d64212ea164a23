"""Somebody who can read a log, or the output of a command, uses what is written there."""

from __future__ import annotations

import json
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
@pytest.mark.parametrize("form", ["json", "plain"])
def test_the_log_of_a_server(tmp_path: Path, form: str) -> None:
    """A signed URL that fails, in the server and in its signature, a wrong token, and a head that is not HTTP.

    The log, the access log and the audit log name paths or routes only.
    """
    content = contents(1)[0]
    access, audit = tmp_path / "access", tmp_path / "audit"
    logs = {"access_log": form, "access_log_file": str(access), "audit_log": str(audit)}
    with running_server(tmp_path / "root", check=False, **logs) as server:
        server.put([encoded(content)])
        record = server.commit(manifest([content]).encoded, name="name").json
        path = "/" + server.ask("POST", f"{API}/files/{record['id']}/sign").json["path"]
        (frame,) = [file for file in (server.root / "chunks").rglob("*") if file.is_file()]
        frame.write_bytes(b"damaged")
        assert 500 == server.ask("GET", path, token=None).status
        wrong = path.replace("/name", "/nome")
        assert 403 == server.ask("GET", wrong, token=None).status
        assert 401 == server.ask("GET", f"{API}/files?token={TOKEN}", token=TOKEN).status
        assert 404 == server.ask("GET", f"/nothing/{TOKEN}").status
        with server.connection() as connection:
            connection.sendall(f"Bearer {TOKEN}\r\n{path}\r\n\r\n".encode())
            assert b" 400 " in connection.recv(1000)
        assert 409 == server.commit(manifest([content]).encoded, name=f"Bearer%20{TOKEN}").status
        form_url = server.ask("POST", "/v4/files/presigned-post", b'{"name": "x"}').json["upload_url"]
        sdk = server.ask("POST", "/v3/pipeline_files/initiate-multipart-upload", b'{"name": "x"}').json
        asked = json.dumps(sdk | {"part_num": 1}).encode()
        part_url = server.ask("POST", "/v3/pipeline_files/presigned-url", asked).json["upload_url"]
        _, log = server.stop()
    signature = path.split("/")[4]
    assert "run_files" in log
    assert f"GET '{API}/files'" in log
    lines = access.read_text() + audit.read_text()
    assert '"sign-part"' in lines
    assert "/signed/{namespace}/{expires_at}/{signature}/{path}" in lines
    for secret in (signature, TOKEN, server.token, *(url.split("/signed/")[1].split("/")[2] for url in (form_url, part_url))):
        assert secret not in log + lines


@pytest.mark.slow
def test_the_output_of_a_command(home: Home) -> None:
    """An error that names a signed URL leaves its signature out."""
    done = home.run("cache", "warm", URL, environ={"FILESTORE_URL_PRIVATE_ALLOWED": "yes", "FILESTORE_RETRY_SECONDS": "0.1"})
    assert done.returncode == 1
    assert "/signed/default/9999999999/.../run_files" in done.stderr
    assert SIGNATURE not in done.stderr + done.stdout
