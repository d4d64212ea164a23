"""A certificate authority of a test, and clients of servers that have its certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import trustme

from tests.support.server import RunningServer, running_server


class Pair(NamedTuple):
    """The files of a certificate with its chain, and of its key."""

    cert: Path
    key: Path

    @property
    def shown(self) -> str:
        """What tells this certificate from others."""
        end = "-----END CERTIFICATE-----\n"
        return ssl.PEM_cert_to_DER_cert(self.cert.read_text().partition(end)[0] + end).hex()


class Authority:
    """An authority that only these tests trust."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._ca = trustme.CA()
        self._folder = folder
        self.path = folder / "authority.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def pair(self, name: str, *hosts: str, expires_in: timedelta = timedelta(days=90)) -> Pair:
        """Issue a certificate into the files `name`.pem and `name`.key, for this machine unless hosts are given."""
        issued = self._ca.issue_cert(
            *(hosts or ("localhost", "127.0.0.1")),
            not_before=datetime.now(UTC) - timedelta(days=100),
            not_after=datetime.now(UTC) + expires_in,
        )
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        pair.key.touch(0o600)
        pair.key.write_bytes(issued.private_key_pem.bytes())
        return pair

    def client(self, own: Pair | None = None) -> ssl.SSLContext:
        """What a client needs that trusts this authority only, and shows a certificate of its own."""
        context = ssl.create_default_context(cafile=self.path)
        if own is not None:
            context.load_cert_chain(own.cert, own.key)
        return context

    @contextmanager
    def server(self, root: Path, pair: Pair, *, check: bool = True, **settings: str | float) -> Iterator[RunningServer]:
        """Run a server that has this certificate, as `running_server` does."""
        with running_server(root, check=check, tls_cert=str(pair.cert), tls_key=str(pair.key), **settings) as server:
            yield self.trusted(server)

    def trusted(self, server: RunningServer, own: Pair | None = None) -> RunningServer:
        """Return the server as a client sees it that trusts this authority, and shows a certificate of its own."""
        return server._replace(tls=self.client(own))

    def shown(self, server: RunningServer) -> str:
        """Return what tells the certificate that a new connection gets from others."""
        connection = self.trusted(server).connection()
        assert isinstance(connection, ssl.SSLSocket)
        with connection:
            return (connection.getpeercert(binary_form=True) or b"").hex()


def replace(old: Pair, new: Pair) -> None:
    """Put another certificate in the place of one, file by file, as most programs do."""
    new.cert.replace(old.cert)
    new.key.replace(old.key)
