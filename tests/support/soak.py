"""Push, fetch, remove, collect and check one repository at once, by real processes, with a grace period of seconds.

    python -m tests.support.soak --seconds 30 --seed 1 FOLDER       # as CI does it
    python -m tests.support.soak --seconds 3600 FOLDER              # an hour, with another seed each time

FOLDER must not exist. Two users work through a server of two processes, and one directly on the folder. Collections are
killed now and then. Nothing that was acknowledged may be lost, and the disk use must stay flat. The last line is a JSON
object with what was done; the exit status is 1 if a rule was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filestore.backends import connect, open_backend
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Record
from filestore.errors import ChunksMissing
from filestore.repository.index.protocol import Index
from filestore.repository.protocol import Repository
from filestore.repository.stores.protocol import ChunkStore
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.commands import Home, Server

GRACE = "3s"
USERS = 3
_BLOCK_SIZE = 192 << 10
_BLOCK_COUNT = 16
_MOST_RECORDS = 6
"""How many records each user keeps. So the content that is needed at the same time has a limit."""
_SAMPLES = 20
"""How many sizes of the store each half of the time needs, so that they can be compared."""
_KILLED = 0.3
"""The share of the collections that are killed."""
_ENOUGH = "enough"
"""The name of a file that is there once a collection has freed something. On a busy machine that may take longer."""
_LONGER_SECONDS = 120
"""How much longer each user works for that, at most."""


def _content(seed: int, blocks: tuple[int, ...]) -> bytes:
    """Return the content of a file: some of the blocks that all users share."""
    return b"".join(random.Random(1000 * seed + block).randbytes(_BLOCK_SIZE) for block in blocks)


class User:
    """Stores, fetches and removes files of its own, which share chunks with those of others."""

    def __init__(self, repository: Repository, folder: Path, *, number: int, seed: int) -> None:
        self._repository = repository
        self._folder = folder
        self._number = number
        self._seed = seed
        self._random = random.Random(100 * seed + number)
        self._kept: dict[str, tuple[Record, tuple[int, ...]]] = {}
        self.counts = dict.fromkeys(("pushed", "sent_again", "fetched", "removed"), 0)

    @property
    def has_done_all(self) -> bool:
        """Whether it has pushed, fetched and removed something."""
        return min(self.counts[name] for name in ("pushed", "fetched", "removed")) > 0

    async def step(self) -> None:
        """Do one thing by chance."""
        choice = self._random.random()
        if choice < 0.5 or not self._kept:
            await self._push()
        elif choice < 0.75:
            await self._fetch(self._random.choice(sorted(self._kept)))
        if choice >= 0.75 or len(self._kept) > _MOST_RECORDS:
            await self._remove(self._random.choice(sorted(self._kept)))

    async def check_all(self) -> None:
        """Fetch everything that was acknowledged and not removed."""
        for file_id in sorted(self._kept):
            await self._fetch(file_id)

    async def _push(self) -> None:
        blocks = tuple(self._random.randrange(_BLOCK_COUNT) for _ in range(self._random.randint(1, 4)))
        path = self._folder / f"{self._number}-{self._random.randrange(3)}.bin"
        path.write_bytes(_content(self._seed, blocks))
        while True:
            try:
                record = (await push(self._repository, path)).record
                break
            except ChunksMissing:
                # The push took longer than the grace period, several times.
                self.counts["sent_again"] += 1
        self._kept[record.id] = record, blocks
        self.counts["pushed"] += 1

    async def _fetch(self, file_id: str) -> None:
        record, blocks = self._kept[file_id]
        target = self._folder / f"{self._number}-fetched"
        await fetch(self._repository, record, target=target, force=True)
        if target.read_bytes() != _content(self._seed, blocks):
            raise AssertionError(f"{record.id} ({record.name}) has other bytes than were pushed")
        self.counts["fetched"] += 1

    async def _remove(self, file_id: str) -> None:
        await self._repository.remove(file_id)
        del self._kept[file_id]
        self.counts["removed"] += 1


async def use(location: str, token: str | None, folder: Path, *, number: int, seed: int, seconds: float) -> dict[str, int]:
    """Work for a time, and until `Soak` has seen enough, and then check everything that this user has stored."""
    async with connect(location, token=token) as repository:
        user = User(repository, folder, number=number, seed=seed)
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end + _LONGER_SECONDS:
            if now >= end and user.has_done_all and (folder / _ENOUGH).exists():
                break
            await user.step()
        await user.check_all()
        return user.counts


class Soak:
    """Runs the processes, and checks the rules at the end."""

    def __init__(self, folder: Path, *, seconds: float, seed: int) -> None:
        self._folder = folder
        self._home = Home(folder)
        self._root = folder / "root"
        self._seconds = seconds
        self._seed = seed
        self._random = random.Random(seed)
        self.counts = dict.fromkeys(("pushed", "sent_again", "fetched", "removed", "collections", "killed", "freed", "checks"), 0)
        self.sizes: list[int] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Let all work at once. Failures are added to `failures`."""
        self._home.create_repository(self._root)
        environ = {"FILESTORE_GC_GRACE": GRACE}
        with self._home.server("--workers", "2", root=self._root, environ=environ, complains=None) as server:
            users = [self._start_user(number, server if number else None) for number in range(USERS)]
            while any(user.poll() is None for user in users):
                self._collect()
                self._check()
                self.sizes.append(self._content_size())
                if min(self.counts[name] for name in ("collections", "freed")):
                    (self._folder / _ENOUGH).touch()
            for user in users:
                said, error = user.communicate()
                if user.returncode:
                    self.failures.append(f"a user failed: {error}")
                    continue
                for name, count in json.loads(said).items():
                    self.counts[name] += count
        self._finish()

    def _start_user(self, number: int, server: Server | None) -> subprocess.Popen[str]:
        where = [server.url, server.token] if server is not None else [str(self._root), ""]
        arguments = [*where, str(self._folder), str(number), str(self._seed), str(self._seconds)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.soak", "--user", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _collect(self) -> None:
        """Collect, and kill that at some moment now and then."""
        process = subprocess.Popen(
            [sys.executable, "-m", "filestore", "gc", "--grace", GRACE, "--root", self._root, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._home.environ,
            text=True,
        )
        if self._random.random() < _KILLED:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._random.uniform(0.2, 1.5))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            self.counts["killed"] += 1
            return
        said, error = process.communicate()
        if process.returncode:
            self.failures.append(f"gc failed: {error}")
            return
        self.counts["collections"] += 1
        self.counts["freed"] += json.loads(said)["freed_size"]

    def _check(self) -> None:
        done = self._home.run("check", "--root", self._root)
        self.counts["checks"] += 1
        if done.returncode:
            self.failures.append(f"check found damage: {done.stdout}{done.stderr}")

    def _content_size(self) -> int:
        return sum(size for folder in ("chunks", "manifests", "tmp") for size in _sizes(self._root / folder))

    def _finish(self) -> None:
        """After the last collection, exactly what records need is left."""
        self._home.result("gc", "--grace", "0s", "--root", self._root)
        needed, found = asyncio.run(needed_and_found(self._root))
        if needed != found:
            self.failures.append(f"{len(needed - found)} frames are lost, and {len(found - needed)} were not removed")
        if any(path.is_file() for path in self._root.glob("tmp/**/*")):
            self.failures.append("staging files are left")
        self._check()
        half = len(self.sizes) // 2
        if half >= _SAMPLES and max(self.sizes[half:]) > 1.5 * max(self.sizes[:half]):
            self.failures.append(f"the disk use grew: {self.sizes}")


def _sizes(folder: Path) -> Iterator[int]:
    for parent, folders, files in os.walk(folder):  # ignores folders that are removed meanwhile
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                yield Path(parent, name).lstat().st_blocks * 512


async def needed_and_found(root: Path) -> tuple[set[Digest], set[Digest]]:
    """Return the chunks that the records of a repository need, and those whose frames are there."""
    store, index = await open_backend(root, read_only=True)
    try:
        return await needed_and_found_in(store, index)
    finally:
        await index.close()
        await store.close()


async def needed_and_found_in(store: ChunkStore, index: Index) -> tuple[set[Digest], set[Digest]]:
    """Return the same of a repository that is open."""
    needed: set[Digest] = set()
    for each in await index.records_after(DEFAULT_NAMESPACE, 0, limit=100_000):
        encoded = await store.manifest(DEFAULT_NAMESPACE, each.record.digest)
        assert encoded is not None
        needed.update(chunk.digest for chunk in Manifest.parse(encoded).chunks)
    return needed, {digest async for digest in store.digests(DEFAULT_NAMESPACE)}


def _main() -> None:
    if sys.argv[1:2] == ["--user"]:
        location, token, folder, number, seed, seconds = sys.argv[2:]
        working = use(location, token or None, Path(folder), number=int(number), seed=int(seed), seconds=float(seconds))
        sys.stdout.write(json.dumps(asyncio.run(working)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    options.folder.mkdir()
    soak = Soak(options.folder.absolute(), seconds=options.seconds, seed=options.seed)
    soak.run()
    result = {"seed": options.seed, **soak.counts, "sizes": soak.sizes, "failures": soak.failures}
    sys.stdout.write(json.dumps(result) + "\n")
    if soak.failures:
        raise SystemExit(1)
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    _main()
