"""Addresses and listening sockets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filestore.errors import AddressError, AddressInUse

_Address = tuple[Any, ...]


@contextmanager
def hold_port(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound to the port, not listening, so that nobody but workers can have the port."""
    family, address = resolve_address(host, port)
    # Without sharing it first: with it, a port that another server of ours listens on could be had too.
    with bind(family, address, is_shared=False) as probe:
        address = probe.getsockname()
    with bind(family, address, is_shared=True) as holder:
        yield holder


@contextmanager
def bind(family: int, address: _Address, *, is_shared: bool) -> Iterator[socket.socket]:
    """A socket that is bound to `address`. Raises AddressInUse, AddressError."""
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        # What lingers of an earlier server's connections does not matter.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
        except OSError as error:
            raise address_error(address, error) from error
        yield bound


def resolve_address(host: str, port: int) -> tuple[int, _Address]:
    """The first address of a host's name, or the address itself. Raises AddressError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise address_error((host, port), error) from error
    return family, address


def address_error(address: _Address, error: OSError) -> AddressError:
    """Why an address cannot be listened at."""
    kind = AddressInUse if error.errno == errno.EADDRINUSE else AddressError
    return kind(f"{address[0]}:{address[1]}", error.strerror or str(error))


def server_url(host: str, listener: socket.socket) -> str:
    """The URL of a server that listens at `listener`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
