"""The command `filestore`, whose `bench` starts a server that commits nothing. So the measurement of an upload does not end.

`python -m tests.support.endless_bench bench upload ...` is otherwise the same.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

from filestore.repository.local import LocalRepository
from filestore_cli.bench import processes
from filestore_cli.start import main

_SERVER = "filestore_cli.bench.server"


async def _never(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


def _main() -> None:
    if sys.argv[1] == "serve":
        LocalRepository.commit = _never  # type: ignore[method-assign]
        runpy.run_module(_SERVER, run_name="__main__", alter_sys=True)
        return
    started = processes._started

    def start(module: str, *arguments: str, **options: Any) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return started("tests.support.endless_bench" if module == _SERVER else module, *arguments, **options)

    processes._started = start  # type: ignore[assignment]  # it takes the same arguments
    sys.argv[0] = "filestore"
    main()


if __name__ == "__main__":
    _main()
