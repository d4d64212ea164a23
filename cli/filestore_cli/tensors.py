"""List the tensors of a stored safetensors or GGUF file: what `filestore ls --tensors` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filestore.core.references import Reference
from filestore_cli.context import CommandContext
from filestore_cli.lookup import record_of
from filestore_cli.text import columns, for_display, in_units

if TYPE_CHECKING:
    from filestore.format.tensors import Tensor


async def list_tensors(context: CommandContext, reference: Reference, *, limit: int | None) -> None:
    """Print the tensors in the order of their data. Only the chunks of the header are received."""
    from filestore.transfer.stored_tensors import open_stored  # heavy

    async with context.repository(read_only=True) as repository:
        record = await record_of(repository, reference.without_entry)
        found = await open_stored(repository, record, reference, limits=context.settings.zip_limits)
    tensors = list(found.tensors.values())[:limit]
    about = {"id": record.id, "name": record.name, "digest": str(record.digest)}
    if reference.entry_path:
        about["path"] = reference.entry_path
    of_all = "" if len(tensors) == len(found.tensors) else f" of {len(found.tensors)}"
    size = sum(tensor.size for tensor in tensors)
    context.show(
        {
            **about,
            "format": found.format,
            "data_offset": found.data_offset,
            "tensors": [tensor._asdict() for tensor in tensors],
            "repository": repository.location,
        },
        *columns(("DTYPE", "SHAPE", ">SIZE", "NAME"), map(_row, tensors)),
        f"{len(tensors)}{of_all} tensor{'' if len(found.tensors) == 1 else 's'}, {in_units(size)} in {for_display(found.name)} "
        f"({found.format}) in {context.place(repository)}",
    )


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape for a person: `4096 x 1024`, or `scalar`."""
    return " x ".join(map(str, shape)) or "scalar"


def _row(tensor: Tensor) -> tuple[str, ...]:
    return for_display(tensor.dtype), shape_text(tensor.shape), in_units(tensor.size), for_display(tensor.name)
