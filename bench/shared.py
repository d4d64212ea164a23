"""Measure what it costs that a push looks at the frames that it shares.

python bench/shared.py                                  # 1 GB, 7 rounds
python bench/shared.py --size 4GB --folder /var/tmp

A push with `rehash` of a file that is stored already is measured with and without this look, in turn in one process,
into a repository in a folder. The medians are compared, and so is the time that the look takes alone. It must take at
most 3 % of the push.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

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
    seconds: dict[str, list[float]] = {"push": [], "blind push": [], "missing": [], "blind missing": []}
    for number in range(rounds):
        # Each round begins with the other one.
        for repository, word in sorted([(looking, ""), (blind, "blind ")], key=lambda pair: pair[1], reverse=number % 2 == 1):
            seconds[f"{word}push"].append((await push(repository, source, rehash=True)).seconds)
            started = time.perf_counter()
            for start in range(0, len(digests), ASKED):
                await repository.missing(digests[start : start + ASKED])
            seconds[f"{word}missing"].append(time.perf_counter() - started)
    medians = {what: median(values) for what, values in seconds.items()}
    for what, value in medians.items():
        print(f"{what:<14} {value:8.3f} s")
    print(f"the push takes {medians['push'] / medians['blind push'] - 1:+.1%} with the look")
    print(f"the look alone is {(medians['missing'] - medians['blind missing']) / medians['push']:.1%} of the push")
    await looking.close()


if __name__ == "__main__":
    main()
