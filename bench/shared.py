"""Measure what it costs that a push looks at the frames that it shares.

python bench/shared.py                                  # 1 GB, 7 rounds
python bench/shared.py --size 4GB --folder /var/tmp

A push with `rehash` of a file that is stored already is measured with and without this look, in turn in one process,
into a repository in a folder. The medians are compared, and so is the time that the look takes alone. It must take at
most 3 % of the push. On a busy machine, only the processor time says something.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.run import parse_size  # noqa: E402
from filestore.backends import open_backend  # noqa: E402
from filestore.core.digest import Digest  # noqa: E402
from filestore.core.manifest import Manifest  # noqa: E402
from filestore.core.names import DEFAULT_NAMESPACE  # noqa: E402
from filestore.repository.local import LocalRepository  # noqa: E402
from filestore.transfer.push import push  # noqa: E402

ASKED = 16
"""The chunks of a window, which a push asks about together."""


class Cost(NamedTuple):
    """What something took, in seconds."""

    wall_clock: float
    processor: float


class BlindRepository(LocalRepository):
    """A repository that asks only its index."""

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return the chunks without a row."""
        return await self._index.missing(DEFAULT_NAMESPACE, digests)


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GB", help="of the file (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of which medians are shown (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-shared-") as name:
        source = Path(name, "weights.safetensors")
        write_safetensors(source, size=parse_size(options.size))
        asyncio.run(_measure(Path(name, "repository"), source, options.rounds))


async def _measure(root: Path, source: Path, rounds: int) -> None:
    store, index = await open_backend(root, create=True)
    looking = LocalRepository(store, index, location="looking")
    blind = BlindRepository(store, index, location="blind")
    pushed = await push(looking, source)
    manifest = Manifest.parse(await looking.manifest(pushed.record.digest))
    digests = [chunk.digest for chunk in manifest.chunks]
    print(f"{manifest.size / 1e9:.2f} GB, {len(digests)} chunks, {rounds} rounds")
    whole: dict[str, list[Cost]] = {"": [], "blind ": []}
    asked: dict[str, list[Cost]] = {"": [], "blind ": []}
    for number in range(rounds):
        # Each round begins with the other one.
        for repository, word in sorted([(looking, ""), (blind, "blind ")], key=lambda pair: pair[1], reverse=number % 2 == 1):
            whole[word].append(await _cost(push(repository, source, rehash=True)))
            asked[word].append(await _cost(_ask(repository, digests)))
    for place, what in enumerate(Cost._fields):
        medians = {
            f"{word}{kind}": median(cost[place] for cost in costs[word])
            for kind, costs in (("push", whole), ("missing", asked))
            for word in costs
        }
        print(f"{what}: {', '.join(f'{name} {value:.3f} s' for name, value in medians.items())}")
        difference = medians["push"] / medians["blind push"] - 1
        alone = (medians["missing"] - medians["blind missing"]) / medians["push"]
        print(f"{what}: the push takes {difference:+.1%} with the look; the look alone is {alone:.1%} of the push")
    await looking.close()


async def _ask(repository: LocalRepository, digests: Sequence[Digest]) -> None:
    for start in range(0, len(digests), ASKED):
        await repository.missing(digests[start : start + ASKED])


async def _cost(work: Awaitable[object]) -> Cost:
    started, used = time.perf_counter(), time.process_time()
    await work
    return Cost(time.perf_counter() - started, time.process_time() - used)


if __name__ == "__main__":
    main()
