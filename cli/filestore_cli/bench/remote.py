"""Measure a user's server: the link to it, a push and a fetch over it, and what a plain HTTP client reaches there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filestore_cli.bench.processes import Server
from filestore_cli.bench.run import (
    BenchResult,
    Measurement,
    Measuring,
    Plan,
    address_of,
    ceiling_size,
    check_space,
    connected,
    new_name,
)
from filestore_cli.progress import Activity
from filestore_cli.start import say

SIZE_MIN, SIZE_MAX = 16 << 20, 2 << 30
LINK_SECONDS = 10
"""For so long the link is busy with the content of one direction, if the user gives no size."""


class LinkRates(NamedTuple):
    """The goodput of the link in one direction, in bytes a second."""

    alone: float
    """Of one connection."""
    together: float
    """Of as many connections as a transfer uses."""

    @property
    def best(self) -> float:
        """What the link carries."""
        return max(self)


class RemoteResult(NamedTuple):
    """What was measured at a user's server."""

    size: int
    """Bytes of the content."""
    round_trip_seconds: float
    send: LinkRates
    receive: LinkRates
    push: Measurement
    fetch: Measurement
    upload_rate: float
    """Bytes a second of a form that a plain HTTP client sends."""
    download_rate: float
    """Bytes a second of a plain GET."""
    removed: int
    """Number of records that were removed from the server."""
    ceilings: Mapping[str, float]
    url: str

    def as_bench_result(self) -> BenchResult:
        """Return the push and the fetch as the result of a plan, with the rates of the link."""
        ceilings = {**self.ceilings, "link_send": self.send.best, "link_receive": self.receive.best}
        return BenchResult(self.url, ceilings, [self.push, self.fetch], self.removed)


async def measure_remote(plan: Plan, server: Server, *, size: int | None, shows_progress: bool) -> RemoteResult:
    """Measure `server`, and remove what was pushed. Raises ClickException, FilestoreError.

    `size` is the number of bytes to move. None means what the link carries in ten seconds.
    """
    async with connected(server, plan.link) as repository:
        # Checked before anything takes time: the server can be reached, and accepts the token.
        await repository.identity()
    with tempfile.TemporaryDirectory(dir=plan.folder, prefix="filestore-bench-") as name:
        folder = Path(name)
        measuring = Measuring(plan, folder, shows_progress=shows_progress)
        remote = _Remote(measuring, plan, server, folder)
        sent = await measuring.link(server, "send")
        if not sent["may_remove"]:
            say(
                "Warning: this token may not remove files, so what is pushed now stays on the server:"
                " two records named filestore-bench-...; a token with the scope delete removes them."
            )
        size = size or _size_for(sent["alone"])
        # A fetch needs the content once for the source, and once for the copy.
        check_space(plan._replace(verb="fetch", sizes=[size]))
        job = {"do": "ceilings", "folder": name, "size": ceiling_size(plan)}
        ceilings = await measuring.done(job, Activity("measure", counts=False), "this machine", total=0)
        found = await remote.transfers(size)
        return RemoteResult(
            round_trip_seconds=sent["round_trip_seconds"],
            send=LinkRates(sent["alone"], sent["together"]),
            removed=measuring.removed,
            ceilings=ceilings,
            url=server.url,
            **found,
        )


def _size_for(rate: float) -> int:
    """Return the bytes that keep a link busy long enough, in whole MiB."""
    return min(max(int(rate * LINK_SECONDS) >> 20 << 20, SIZE_MIN), SIZE_MAX)


class _Remote:
    """A measurement of one server, in a folder of its own."""

    def __init__(self, measuring: Measuring, plan: Plan, server: Server, folder: Path) -> None:
        self._measuring = measuring
        self._plan = plan
        self._server = server
        self._folder = folder

    async def transfers(self, size: int) -> dict[str, Any]:
        """Push and fetch, and do the same by plain HTTP. Everything is removed at the end, also if something fails."""
        measuring, server = self._measuring, self._server
        pushed, plain = new_name(), new_name()
        async with measuring.removing(server, [pushed, plain]):
            async with measuring.content(pushed, size) as path:
                job = measuring.transfer("upload", server, pushed, path)
                push = await measuring.moved(server, [job], size, verb="push")
            received = await measuring.link(server, "receive", name=pushed)
            target = self._folder / "fetched"
            try:
                fetch = await measuring.moved(server, [measuring.transfer("fetch", server, pushed, target)], size, verb="fetch")
            finally:
                target.unlink(missing_ok=True)
            # Other content, since the server does not write what it has.
            async with measuring.content(plain, size) as path:
                uploaded = await self._plain("upload", plain, path, size)
            try:
                downloaded = await self._plain("download", uploaded["path"], target, size)
            finally:
                target.unlink(missing_ok=True)
        return {
            "size": size,
            "receive": LinkRates(received["alone"], received["together"]),
            "push": push,
            "fetch": fetch,
            "upload_rate": size / uploaded["seconds"],
            "download_rate": size / downloaded["seconds"],
        }

    async def _plain(self, direction: str, name: str, path: Path, size: int) -> dict[str, Any]:
        server = self._server
        job = {"do": "plain", "direction": direction, "name": name, "path": str(path), **address_of(server, self._plan.link)}
        return await self._measuring.done(job, Activity(f"plain {direction}"), self._plan.kind, total=size)
