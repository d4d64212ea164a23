"""A runtime, which runs pipelines, uses this package for the files of its runs.

>>> adapter = Adapter(Cache("/var/cache/models", repository), repository)
>>> prepared = await adapter.prepare(static_files)
>>> async with adapter.inputs(request["input_data"], [File, int]) as arguments:
...     answer["outputs"] = await adapter.outputs(pipeline(*arguments))

It does not need the Pipeline SDK: it recognises the SDK's classes by their names. Names are imported on first use,
because the server of a runtime and a client's errors need only parts of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filestore.runtime.adapter import Adapter
    from filestore.runtime.inputs import Make
    from filestore.runtime.prepare import PrepareResult
    from filestore.runtime.values import stored_value

__all__ = ["Adapter", "Make", "PrepareResult", "stored_value"]

_HOMES = {"Adapter": "adapter", "Make": "inputs", "PrepareResult": "prepare", "stored_value": "values"}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
