"""The command diff: what is different between two versions, or a local path and a stored one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from filestore.core.references import Reference
from filestore.repository.protocol import Repository
from filestore_cli.context import CommandContext, takes
from filestore_cli.lookup import record_of
from filestore_cli.progress import PLAN, show_progress
from filestore_cli.start import run_to_end
from filestore_cli.tensors import shape_text
from filestore_cli.text import columns, for_display, in_units, table
from filestore_cli.transfer import Selection, selects

if TYPE_CHECKING:
    # Heavy: the command imports these when it runs.
    from filestore.format.tensors import Tensor
    from filestore.transfer.diff import Difference, FileDifference
    from filestore.transfer.diff_tensors import TensorDifference

DIFFERENT = 3
"""The exit status with --exit-code if the two are not the same. 1 and 2 are failures."""
_FILES_SHOWN = 10
_TENSORS_SHOWN = 5
_PATH_BEGINNINGS = ("/", "./", "../")


@click.command(short_help="Compare two versions, or a local path and a stored one.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--all", "shows_all", is_flag=True, help="Show all files and tensors that are not the same, and not the largest.")
@click.option("--exit-code", is_flag=True, help=f"Exit with status {DIFFERENT} if the two are not the same.")
@selects
@takes("url", "token", "push_cache")
def diff(context: CommandContext, old: str, new: str, *, selection: Selection, shows_all: bool, exit_code: bool) -> None:
    """Compare two stored files or directories, or a local path and a stored one, by file and by tensor.

    OLD and NEW are references, such as NAME@~1, NAME, or NAME:PATH for a part of a directory. One of them may be a path of this
    machine, which is cut and hashed as by a push; nothing is sent.
    """
    sides = _sides(old, new)
    local = next((side for side in sides if isinstance(side, Path)), None)
    if local is not None:
        selection.check(local)
    elif any(selection):
        raise click.UsageError("--symlinks, --include and --exclude are for a directory of this machine")
    found, location, place = run_to_end(_diff(context, *sides, local=local, selection=selection))
    context.show(_as_json(found, location), *_lines(found, place, shows_all=shows_all))
    if exit_code and found.files:
        click.get_current_context().exit(DIFFERENT)


def _sides(old: str, new: str) -> tuple[Reference | Path, Reference | Path]:
    """Return what each text means. Where both could be paths, the one without the mark of a path is a reference, or the first."""
    is_old_path, is_new_path = _is_path(old), _is_path(new)
    if is_old_path and is_new_path:
        if not _is_marked(old):
            is_old_path = False
        elif not _is_marked(new):
            is_new_path = False
    return (
        Path(old) if is_old_path else Reference.parse(old),
        Path(new) if is_new_path else Reference.parse(new),
    )


def _is_path(text: str) -> bool:
    return _is_marked(text) or (text != "" and os.path.lexists(text))


def _is_marked(text: str) -> bool:
    return text.startswith(_PATH_BEGINNINGS) or text in {".", ".."}


async def _diff(
    context: CommandContext, old: Reference | Path, new: Reference | Path, *, local: Path | None, selection: Selection
) -> tuple[Difference, str, str]:
    from filestore.transfer.diff import diff as compare  # heavy
    from filestore.transfer.sources.push_cache import PushCache  # heavy

    with PushCache(context.settings.push_cache) as push_cache:
        async with (
            context.repository(read_only=True) as repository,
            show_progress(
                PLAN, str(local), enabled=context.shows_progress and local is not None, repository=repository
            ) as report,
        ):
            await _check_names(repository, (old, new))
            found = await compare(
                repository,
                old,
                new=new,
                push_cache=push_cache,
                report=report,
                limits=context.settings.zip_limits,
                **selection.arguments(),
            )
            return found, repository.location, context.place(repository)


async def _check_names(repository: Repository, sides: Sequence[Reference | Path]) -> None:
    """Raise ClickException for a name that nothing is stored under, with what the user may have meant."""
    for side in sides:
        if isinstance(side, Reference):
            try:
                await record_of(repository, side.without_entry)
            except click.ClickException as error:
                if not _is_path(str(side)):
                    raise
                said = f"{error.message}; a path of this machine begins with ./, as in ./{for_display(str(side))}"
                raise click.ClickException(said) from error


def _as_json(found: Difference, location: str) -> dict[str, Any]:
    values = {name: getattr(found, name) for name in ("old", "new", "old_size", "new_size", "same_count", "same_size")}
    sizes = {"bytes_new": found.bytes_new, "bytes_to_send": found.bytes_to_send}
    return {**values, **sizes, "files": [_file_as_json(file) for file in found.files], "repository": location}


def _file_as_json(file: FileDifference) -> dict[str, Any]:
    values = file._asdict()
    if file.tensors is None:
        del values["tensors"], values["same_tensors"]
    else:
        values["tensors"] = [
            each._asdict() | {"status": each.status.value, "old": _tensor_as_json(each.old), "new": _tensor_as_json(each.new)}
            for each in file.tensors
        ]
    return values | {"status": file.status.value}


def _tensor_as_json(tensor: Tensor | None) -> dict[str, Any] | None:
    return None if tensor is None else {"dtype": tensor.dtype, "shape": tensor.shape, "size": tensor.size}


def _lines(found: Difference, place: str, *, shows_all: bool) -> Iterator[str]:
    counts = _counts(found.files)
    fresh = f", of which {in_units(found.bytes_new)} are not in the old one" if found.bytes_new else ""
    sent = {} if found.bytes_to_send is None else {"to_send": f"{in_units(found.bytes_to_send)}, before compression"}
    yield from table(
        old=f"{for_display(found.old)}, {in_units(found.old_size)}",
        new=f"{for_display(found.new)}, {in_units(found.new_size)}{fresh}",
        files=", ".join([*(counts or ["no difference"]), f"{found.same_count} same"]),
        **sent,
        repository=place,
    )
    largest = sorted(found.files, key=_weight, reverse=True)
    shown = largest if shows_all else largest[:_FILES_SHOWN]
    if shown and not _is_alone(found):
        yield ""
        yield from columns(("STATUS", ">OLD", ">NEW", ">NEW BYTES", "PATH"), map(_row, shown))
    for file in shown:
        yield from _tensor_lines(found, file, shows_all=shows_all)
    if len(shown) < len(largest):
        yield f"{len(largest) - len(shown)} more files; --all shows them, and --json shows everything"


def _counts(found: Sequence[FileDifference] | Sequence[TensorDifference]) -> list[str]:
    """Return how many of them were changed, added and removed, without zeros."""
    statuses = [each.status.value for each in found]
    return [f"{statuses.count(status)} {status}" for status in ("changed", "added", "removed") if status in statuses]


def _is_alone(found: Difference) -> bool:
    """Return whether one file was compared with one file."""
    return len(found.files) == 1 and not found.files[0].path


def _weight(file: FileDifference) -> tuple[int, int]:
    return file.bytes_new, max(file.old_size or 0, file.new_size or 0)


def _row(file: FileDifference) -> tuple[str, ...]:
    old, new = ("" if size is None else in_units(size) for size in (file.old_size, file.new_size))
    return file.status.value, old, new, "" if file.new_size is None else in_units(file.bytes_new), for_display(file.path)


def _tensor_lines(found: Difference, file: FileDifference, *, shows_all: bool) -> Iterator[str]:
    if file.tensors is None:
        return
    counts = _counts(file.tensors)
    yield ""
    where = "" if _is_alone(found) else f" in {for_display(file.path)}"
    yield f"tensors{where}: {', '.join([*counts, f'{file.same_tensors} same'])}"
    largest = sorted(file.tensors, key=_tensor_weight, reverse=True)
    shown = largest if shows_all else largest[:_TENSORS_SHOWN]
    yield from columns(("STATUS", "DTYPE", "SHAPE", ">SIZE", "NAME"), map(_tensor_row, shown))
    if len(shown) < len(largest):
        yield f"{len(largest) - len(shown)} more tensors; --all shows them"


def _tensor_weight(each: TensorDifference) -> int:
    return max(tensor.size for tensor in (each.old, each.new) if tensor is not None)


def _tensor_row(each: TensorDifference) -> tuple[str, ...]:
    there = [tensor for tensor in (each.old, each.new) if tensor is not None]
    dtype, shape, size = (
        " -> ".join(dict.fromkeys(values))
        for values in (
            [for_display(tensor.dtype) for tensor in there],
            [shape_text(tensor.shape) for tensor in there],
            [in_units(tensor.size) for tensor in there],
        )
    )
    return each.status.value, dtype, shape, size, for_display(each.name)
