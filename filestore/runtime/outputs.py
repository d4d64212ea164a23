"""Make the JSON of a run's answer from what a pipeline returned, and note the files in it that must be stored."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from filestore.core.records import Record
from filestore.errors import InvalidReference
from filestore.runtime.errors import InvalidRun
from filestore.runtime.handles import check_handle
from filestore.runtime.inputs import DEPTH_LIMIT
from filestore.runtime.values import Local, Stored, for_display, returned_file

# The order matters, because a bool is also an int.
_TYPES = ((type(None), "none"), (bool, "boolean"), (int, "integer"), (float, "fp"), (str, "string"))


class OutputFile(NamedTuple):
    """A file and its position in the answer."""

    container: Any
    """The list or the dictionary that holds the file."""
    key: Any
    file: Stored | Local
    where: str


class Outputs:
    """The answer's outputs without their files. `places` lists the files that must be stored and put in."""

    def __init__(self, returned: Sequence[object]) -> None:
        """Raises InvalidRun for a value that is neither a file nor JSON."""
        self.places: list[OutputFile] = []
        self.answers: list[Any] = [None] * len(returned)
        for place, value in enumerate(returned):
            self._add(self.answers, place, value, f"outputs[{place}]", is_typed=True)

    def _add(self, container: Any, key: Any, value: object, where: str, *, is_typed: bool = False, depth: int = 0) -> None:
        """Put a value into the answer. If `is_typed` is true, its type is put there too."""
        if depth > DEPTH_LIMIT:
            raise InvalidRun(where[:100], f"it is nested more than {DEPTH_LIMIT} levels deep")
        try:
            file = returned_file(value)
        except InvalidReference as error:
            raise InvalidRun(where, str(error)) from None
        if file is not None:
            if isinstance(file, Local) and isinstance(file.content, io.IOBase):
                check_handle(file.content, where)
            self.places.append(OutputFile(container, key, file, where))
            return
        answer, known = self._plain(value, where, depth)
        container[key] = {"type": known, "value": answer, "file": None} if is_typed else answer

    def _plain(self, value: object, where: str, depth: int) -> tuple[object, str]:
        """Return a value as JSON, and the name of its type. Files in the value are noted in `places` and left out."""
        if isinstance(value, list | tuple):
            items: list[Any] = [None] * len(value)
            for place, item in enumerate(value):
                if type(item) in {int, str} or (type(item) is float and math.isfinite(item)):
                    items[place] = item  # fast for a million items
                    continue
                self._add(items, place, item, f"{where}[{place}]", depth=depth + 1)
            return items, "array"
        if isinstance(value, Mapping):
            fields: dict[str, Any] = {}
            for field, inner in value.items():
                if not isinstance(field, str):
                    raise InvalidRun(where, f"its key {for_display(field)} is not a text, which JSON cannot represent")
                self._add(fields, field, inner, f"{where}[{for_display(field)}]", depth=depth + 1)
            return fields, "dictionary"
        known = next((name for kind, name in _TYPES if isinstance(value, kind)), None)
        if known is None or (isinstance(value, float) and not math.isfinite(value)):
            what = f"of type {type(value).__name__}" if known is None else f"the number {value}"
            raise InvalidRun(where, f"it is {what}, which JSON cannot represent; return it as a File, or as bytes in a BytesIO")
        return value, known


def file_answer(record: Record, url: str) -> dict[str, object]:
    """Return the JSON object that describes a stored file in a run's answer."""
    file = {"name": record.name, "path": record.run_path, "url": url, "size": record.size}
    return {"type": "file", "value": None, "file": file}
