"""The Caddyfile of docs/deploy, with the real Caddy in front of a server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import Home, scripts_of
from tests.support.daemons import lasting_port
from tests.support.deploy import DEPLOY
from tests.support.generator import octets
from tests.support.server import TOKEN, eventually, running_server

OWN = "{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n"
"""What lets Caddy make a certificate without the world, and touch nothing of this machine."""


@contextmanager
def running_caddy(folder: Path, site: str, backend: str) -> Iterator[Path]:
    """Run Caddy with the file of docs/deploy. Give the certificate that its clients must trust."""
    folder.mkdir()
    (folder / "Caddyfile").write_text(OWN + (DEPLOY / "Caddyfile").read_text())
    places = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        [scripts_of(".venv-deploy") / "caddy", "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"],
        env=places | {"FILESTORE_SITE": site, "FILESTORE_BACKEND": backend},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said: list[str] = []
        while not any("certificate obtained successfully" in line for line in said):
            said.append(process.stderr.readline())
            assert said[-1], said
        root = folder / "caddy/pki/authorities/local/root.crt"
        eventually(root.exists)
        yield root
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.slow
def test_caddy_takes_pushes_over_tls_and_says_who_asks(tmp_path: Path, home: Home) -> None:
    """A file of many batches goes through. A link in an answer begins with the URL of the proxy, and no client chooses its id."""
    port = lasting_port()
    source, target = tmp_path / "weights.bin", tmp_path / "back.bin"
    source.write_bytes(octets(12, 12_000_000))
    with (
        running_server(tmp_path / "root", trusted_proxies="127.0.0.1") as server,
        running_caddy(tmp_path / "caddy", f"localhost:{port}", f"127.0.0.1:{server.port}") as authority,
    ):
        environ = {"FILESTORE_URL": f"https://localhost:{port}", "FILESTORE_TOKEN": TOKEN, "SSL_CERT_FILE": str(authority)}
        home.result("push", source, environ=environ)
        home.result("fetch", "weights.bin", "-o", target, environ=environ)
        form = ["--form", f"pfile=@{target}", f"https://localhost:{port}/v4/files"]
        sent = subprocess.run(
            [
                *("curl", "--silent", "--fail", "--include", "--cacert", authority),
                *("--header", f"Authorization: Bearer {TOKEN}", "--header", "X-Request-Id: of-the-client", *form),
            ],
            capture_output=True,
            text=True,
            check=True,
        )

    assert source.read_bytes() == target.read_bytes()
    assert f'"url": "https://localhost:{port}/' in sent.stdout
    assert "of-the-client" not in sent.stdout
