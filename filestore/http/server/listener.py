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
def listening(host: str, port: int, *, backlog: int) -> Iterator[socket.socket]:
    """Yield a socket that listens on a port. Raises AddressInUse, AddressError."""
    family, address = resolve_address(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # Old connections of an earlier server must not block the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(backlog)
        except OSError as error:
            raise address_error(address, error) from error
        yield listener


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
