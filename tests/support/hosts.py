"""Hosts of their own: a network namespace for each, with a cable to this machine that can be cut.

    with running_hosts(2) as (one, two):
        process = subprocess.Popen([*one.prefix, "filestore", "serve", "--host", one.address, ...])
        one.cut()

This needs root, as the tests in CI have it.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

_DEVICE = "eth0"
"""The end of the cable at a host."""
_NOBODY = 9
"""A port at which nobody listens, so that the host itself answers."""
_SECONDS = 60


class Host(NamedTuple):
    """A network namespace. Both ends of its cable are a network of two addresses."""

    name: str
    address: str
    gateway: str
    """The address of this machine, as the host sees it."""

    @property
    def prefix(self) -> Sequence[str]:
        """What begins a command that runs at this host."""
        return ["ip", "netns", "exec", self.name]

    @property
    def cable(self) -> str:
        """The end of the cable at this machine."""
        return f"{self.name}-c"

    def cut(self) -> None:
        """Pull the cable out at the host. Nobody is told: what is sent is lost, and connections stay open at both ends."""
        _ip("-n", self.name, "link", "set", _DEVICE, "down")

    def mend(self) -> None:
        """Put the cable in. Return once this machine reaches the host again, of which it has yet to find out."""
        _ip("-n", self.name, "link", "set", _DEVICE, "up")
        deadline = time.monotonic() + _SECONDS
        while not self._is_reached():
            assert time.monotonic() < deadline, f"{self.address} is not reached"

    def _is_reached(self) -> bool:
        try:
            socket.create_connection((self.address, _NOBODY), timeout=1).close()
        except ConnectionRefusedError:
            pass
        except OSError:
            return False
        return True


@contextmanager
def running_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts, and remove them at the end. Whoever is not root skips the test; in CI that is a failure."""
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("network namespaces need root")
    with ExitStack() as stack:
        yield [stack.enter_context(_running_host()) for _ in range(count)]


@contextmanager
def _running_host() -> Iterator[Host]:
    # Networks of 4 addresses in the range that RFC 2544 keeps for measurements, so that several runs do not meet.
    place = secrets.randbelow(1 << 15)
    network = f"198.{18 + (place >> 14)}.{place >> 6 & 255}"
    first = (place & 63) << 2
    host = Host(f"fs{secrets.token_hex(4)}", f"{network}.{first + 2}", f"{network}.{first + 1}")
    _ip("netns", "add", host.name)
    try:
        _ip("link", "add", host.cable, "type", "veth", "peer", "name", _DEVICE, "netns", host.name)
        _ip("address", "add", f"{host.gateway}/30", "dev", host.cable)
        _ip("link", "set", host.cable, "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/30", "dev", _DEVICE)
        _ip("-n", host.name, "link", "set", "lo", "up")
        host.mend()
        yield host
    finally:
        # The cable goes with it.
        _ip("netns", "delete", host.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=30)
