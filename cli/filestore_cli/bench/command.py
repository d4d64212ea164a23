"""The commands bench upload and bench fetch."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from filestore_cli.context import CommandContext, takes
from filestore_cli.parameters import NonemptyPath
from filestore_cli.plain_http import check_plain_http
from filestore_cli.settings import parse_size
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display

if TYPE_CHECKING:
    from filestore_cli.bench.run import Plan

KINDS = ("bf16", "fp32", "random", "text", "tree")
SIZE_MIN = 64 << 10
CLIENTS_MAX = 64
_NUMBER = re.compile(r"[0-9]{1,3}")


def _sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else tuple(parse_size(text.strip(), minimum=SIZE_MIN) for text in value.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    counts = tuple(int(text) if _NUMBER.fullmatch(text.strip()) else 0 for text in value.split(","))
    if not all(1 <= count <= CLIENTS_MAX for count in counts):
        reason = f"{value!r} is not a number of clients from 1 to {CLIENTS_MAX}, or several such as 1,2,4"
        raise click.BadParameter(reason, ctx, param)
    return counts


class BenchOptions(NamedTuple):
    """The user's choice of what to measure."""

    size: tuple[int, ...] | None
    kind: str
    clients: tuple[int, ...]
    server: str | None
    folder: Path | None
    plot: Path | None


def _asks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `BenchOptions`, and pass them as the argument `asked`."""

    @functools.wraps(command)
    def call(**arguments: Any) -> None:
        asked = BenchOptions(**{name: arguments.pop(name) for name in BenchOptions._fields})
        command(asked=asked, **arguments)

    path = NonemptyPath()
    for option in (
        click.option("--plot", type=path, metavar="FILE", help="Also write a plot: .png, .svg or .pdf."),
        click.option("--folder", type=path, help="Where to work: on the disk to measure.  [default: the temporary folder]"),
        click.option("--server", metavar="URL", help="The URL of your server.  [default: a new server, on loopback]"),
        click.option(
            "--clients", callback=_counts, default="1", metavar="N[,N...]", help="Clients at the same time.  [default: 1]"
        ),
        click.option("--kind", default="bf16", metavar="KIND", help=f"{', '.join(KINDS)}, or a PATH.  [default: bf16]"),
        click.option("--size", callback=_sizes, metavar="SIZE[,SIZE...]", help="Bytes that each client moves.  [default: 2GiB]"),
    ):
        call = option(call)
    return call


class _Bench(click.Group):
    """The group. With options and without a command, it measures a server of the user, as `bench remote` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["remote", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Bench, short_help="Measure the speed of this hardware.")
def bench() -> None:
    """Measure how fast a server takes and sends content on this hardware, and what limits it.

    `filestore bench --server URL` is short for `filestore bench remote --server URL`.

    New content is made for each measurement, and removed after it, with its records. The result shows the time of each
    stage, and the highest rates of this machine.
    """


@bench.command("upload", short_help="Measure uploads.")
@_asks
@takes("token", "codec", "connections", "processes", "transfer_memory", "stall_seconds", "retry_seconds", "workers")
def bench_upload(context: CommandContext, asked: BenchOptions) -> None:
    """Measure uploads: each client sends content of its own."""
    _bench(context, "upload", asked)


@bench.command("fetch", short_help="Measure fetches.")
@_asks
@takes("token", "codec", "connections", "processes", "transfer_memory", "stall_seconds", "retry_seconds", "workers")
def bench_fetch(context: CommandContext, asked: BenchOptions) -> None:
    """Measure fetches: all clients fetch the same content, and verify every byte."""
    _bench(context, "fetch", asked)


@bench.command("remote", short_help="Measure a server of yours, and the link to it.")
@click.option("--server", required=True, metavar="URL", help="The URL of your server.")
@click.option("--size", callback=_sizes, metavar="SIZE", help="Bytes to move each way.  [default: what the link carries in 10 s]")
@click.option("--kind", type=click.Choice(KINDS[:-1]), default="bf16", help="The kind of content.  [default: bf16]")
@click.option("--folder", type=NonemptyPath(), help="Where to work.  [default: the temporary folder]")
@takes("token", "codec", "connections", "processes", "transfer_memory", "stall_seconds", "retry_seconds")
def bench_remote(context: CommandContext, server: str, size: tuple[int, ...] | None, kind: str, folder: Path | None) -> None:
    """Measure the link to a server of yours, and a push, a fetch, a plain upload and a plain download over it.

    What was pushed is removed again, with its records. The last line is for a report.
    """
    from filestore_cli.bench.processes import Server  # only here
    from filestore_cli.bench.remote import SIZE_MIN as DEFAULT_MIN  # the same
    from filestore_cli.bench.remote import measure_remote  # the same
    from filestore_cli.bench.remote_report import as_json, lines  # the same

    if size is not None and len(size) > 1:
        raise click.ClickException("bench remote measures one size; give one --size")
    check_plain_http(server, context.settings)
    asked = BenchOptions(size, kind, (1,), server, folder, None)
    plan = _plan(context, "upload", asked, sizes=size or (DEFAULT_MIN,))
    moved = None if size is None else size[0]
    work = measure_remote(plan, Server(server, context.settings.token), size=moved, shows_progress=context.shows_progress)
    found = run_to_end(work)
    context.show(as_json(plan, found), *lines(plan, found))


def _bench(context: CommandContext, verb: str, asked: BenchOptions) -> None:
    from filestore_cli.bench.plot import check_plot, plot  # only here
    from filestore_cli.bench.report import as_json, lines  # the same
    from filestore_cli.bench.run import check_space, measure  # the same

    settings = context.settings
    check_plain_http(asked.server, settings)
    if asked.plot is not None:
        check_plot(asked.plot)
    path = None if asked.kind in KINDS else _given(asked.kind)
    if path is not None and asked.size is not None:
        raise click.ClickException("--size is for content that is made; a file or folder of yours has its own")
    sizes = (asked.size or (2 << 30,)) if path is None else (_size_of(path),)
    plan = _plan(context, verb, asked, sizes=sizes, path=path)
    check_space(plan)
    found = run_to_end(measure(plan, shows_progress=context.shows_progress))
    # Printed first, so that the numbers are not lost if the plot cannot be written.
    context.show(as_json(plan, found), *lines(plan, found))
    if asked.plot is not None:
        plot(plan, found, asked.plot)


def _plan(context: CommandContext, verb: str, asked: BenchOptions, *, sizes: tuple[int, ...], path: Path | None = None) -> Plan:
    from filestore_cli.bench.processes import Server  # only here
    from filestore_cli.bench.run import Plan  # the same

    settings = context.settings
    return Plan(
        verb=verb,
        kind=asked.kind,
        path=path,
        sizes=sizes,
        clients=asked.clients,
        server=None if asked.server is None else Server(asked.server, settings.token),
        workers=settings.workers or settings.server_limits.chosen_workers(),
        folder=_folder(asked.folder),
        codec=settings.codec,
        link={
            "connections": settings.connections,
            "processes": settings.processes,
            "transfer_memory": settings.transfer_memory,
            "stall_seconds": settings.stall_seconds,
            "retry_seconds": settings.retry_seconds,
            "tls_client_cert": _text(settings.tls_client_cert),
            "tls_client_key": _text(settings.tls_client_key),
        },
    )


def _text(path: Path | None) -> str | None:
    """Return a path in the form that a message in JSON can have."""
    return None if path is None else str(path)


def _given(kind: str) -> Path:
    path = Path(kind)
    if not kind or not path.exists():
        raise click.ClickException(
            f"{for_display(kind)!r} is not one of {', '.join(KINDS)}, and there is no file or folder of that name"
        )
    return path.absolute()


def _folder(given: Path | None) -> Path:
    folder = (given or Path(tempfile.gettempdir())).absolute()
    if not folder.is_dir():
        raise click.ClickException(
            f"there is no folder {for_display(folder)} to work in; make it first, or give another --folder"
        )
    return folder


def _size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
