"""Resolve addresses and bind sockets to them."""

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
    """Reserve a port for the workers of this server: yield a bound socket that does not listen.

    Raises AddressInUse, AddressError.
    """
    family, address = resolve_address(host, port)
    # First bind without sharing. A shared bind also succeeds where another server of ours listens on the port.
    with bind(family, address, is_shared=False) as probe:
        address = probe.getsockname()
    with bind(family, address, is_shared=True) as holder:
        yield holder


@contextmanager
def bind(family: int, address: _Address, *, is_shared: bool) -> Iterator[socket.socket]:
    """Yield a socket that is bound to `address`. Raises AddressInUse, AddressError.

    Several sockets can be bound to one port if `is_shared` is true for all of them (SO_REUSEPORT).
    """
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        # Old connections of an earlier server must not block the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
        except OSError as error:
            raise address_error(address, error) from error
        yield bound


def resolve_address(host: str, port: int) -> tuple[int, _Address]:
    """Return the family and the address of a host, the first one if it has several. Raises AddressError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise address_error((host, port), error) from error
    return family, address


def address_error(address: _Address, error: OSError) -> AddressError:
    """Return the error for an address on which the server cannot listen."""
    kind = AddressInUse if error.errno == errno.EADDRINUSE else AddressError
    return kind(f"{address[0]}:{address[1]}", error.strerror or str(error))


def server_url(host: str, listener: socket.socket, *, scheme: str = "http") -> str:
    """Return the URL of a server that listens on `listener`."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
