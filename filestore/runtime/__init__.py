"""What stands between a repository and a runtime that runs pipelines: files of a run in, files of a run out, and the start.

>>> adapter = Adapter(Cache("/var/cache/models", repository), repository)
>>> prepared = await adapter.prepare(static_files)
>>> async with adapter.inputs(request["input_data"], [File, int]) as arguments:
...     answer["outputs"] = await adapter.outputs(pipeline(*arguments))

Needs no Pipeline SDK: its classes are known by their names.
"""

from __future__ import annotations

from filestore.runtime.adapter import Adapter
from filestore.runtime.inputs import Make
from filestore.runtime.prepare import Prepared
from filestore.runtime.values import stored_value

__all__ = ["Adapter", "Make", "Prepared", "stored_value"]
