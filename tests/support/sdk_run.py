"""Run a pipe that is declared with the real classes of the Pipeline SDK.

Usage: `python -m tests.support.sdk_run URL TOKEN CACHE PATH`, in an environment with the SDK. PATH is that of a stored
file. The pipe receives what the run gives it. It returns a file, a list of files and a folder as values of the SDK, and
an open handle. The `outputs` of the answer are printed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from pipeline.cloud.schemas.runs import RunInput, RunIOType, RunOutput
from pipeline.objects import Directory, File

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.records import Kind
from filestore.runtime import Adapter


def _made(kind: Kind, path: Path) -> object:
    return Directory(path=path) if kind is Kind.DIRECTORY else File(path=path)


def _sent(path: str) -> list[dict[str, Any]]:
    """Make what the SDK sends, with its own classes: a file twice, a folder, and a number.

    Version 1 calls the file a pickle.
    """
    name = path.rpartition("/")[2]
    file_type = RunIOType.from_object(File(path=path))
    file = RunInput(type=file_type, value=None, file_name=name, file_path=path)
    nested = RunInput(type=RunIOType.array, value=[json.loads(file.json())])
    return [json.loads(each.json()) for each in (file, nested, RunInput(type=RunIOType.integer, value=3))]


async def _run(url: str, token: str, cache: str, path: str, *, folder: Path) -> list[dict[str, object]]:
    async with connect(url, token=token) as repository:
        adapter = Adapter(Cache(cache, repository), repository)
        async with adapter.inputs(_sent(path), [File, list[File], int], make=_made) as arguments:
            file, (again,), number = cast("list[Any]", arguments)
            assert isinstance(file.path, Path)
            assert (file.path, 3) == (again.path, number)
            paths = [folder / f"image-{number}.jpg" for number in range(3)]
            for made in paths:
                made.write_bytes(made.name.encode() + file.path.read_bytes())
            with paths[1].open("rb") as handle:
                outputs = await adapter.outputs(
                    [File(path=paths[0]), [File(path=made) for made in paths], Directory(path=folder), handle]
                )
    for output in outputs:
        RunOutput.parse_obj(output)
    return outputs


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="run-") as made:
        results = Path(made) / "results"
        results.mkdir()
        sys.stdout.write(json.dumps(asyncio.run(_run(*sys.argv[1:5], folder=results))))
