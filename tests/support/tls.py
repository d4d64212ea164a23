"""TLS on loopback: a certificate for localhost, and a reverse proxy that undoes TLS and nothing else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from filestore.backends import connect
from filestore.http.client.repository import RemoteRepository
from tests.support.listening import listening

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""A certificate for localhost that signs itself, until 2126, and its key."""


def server_tls() -> ssl.SSLContext:
    """What a server on localhost shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_tls() -> ssl.SSLContext:
    """A client that trusts this server, and no other one."""
    return ssl.create_default_context(cafile=CERTIFICATE)


def trusting(repository: RemoteRepository) -> RemoteRepository:
    """Have a client, which has asked nothing yet, trust this server. In a process of its own, SSL_CERT_FILE does so."""
    transport = repository._requests.transport
    transport._channels._peer = transport._channels._peer._replace(tls=client_tls)
    return repository


@asynccontextmanager
async def behind_tls(port: int) -> AsyncIterator[str]:
    """The https URL of a reverse proxy in front of the server at a port."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionRefusedError):  # a server that is down
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(server_writer):
                await asyncio.gather(pass_on(reader, server_writer), pass_on(server_reader, writer), return_exceptions=True)

    async with listening(handle, tls=server_tls()) as tls_port:
        yield f"https://localhost:{tls_port}"


@asynccontextmanager
async def client_of(port: int, scheme: str, *, token: str) -> AsyncIterator[RemoteRepository]:
    """A client of the server at a port of 127.0.0.1: over http at once, over https through a proxy that undoes TLS."""
    if scheme == "http":
        async with connect(f"http://127.0.0.1:{port}", token=token) as repository:
            assert isinstance(repository, RemoteRepository)
            yield repository
    else:
        async with behind_tls(port) as url, connect(url, token=token) as repository:
            assert isinstance(repository, RemoteRepository)
            yield trusting(repository)
