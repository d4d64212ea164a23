"""Run one scenario: `python -m tests.replay.driver SCENARIO FOLDER [FAULT]`. The recorder is loaded into this process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from filestore.repository.stores import disk_space
from tests.replay.direct import RESERVE_SIZE
from tests.replay.planted import FAULTS
from tests.replay.scenarios import SCENARIOS


def _main(name: str, folder: Path, fault: str = "") -> None:
    disk_space._RESERVE_SIZE = RESERVE_SIZE
    if fault:
        FAULTS[fault].plant()
    asyncio.run(SCENARIOS[name].run(folder))  # type: ignore[arg-type]  # an Awaitable that is a coroutine


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
