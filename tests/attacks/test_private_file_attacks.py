"""Another local user reads what the cache and the push cache keep, or holds their lock files open."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from filestore.http.client.repository import RemoteRepository
from filestore.transfer.workers import worker_pool
from tests.support.commands import SCRIPTS, Home
from tests.support.strangers import STRANGER, needs_root
from tests.support.trees import plant

_TOKEN = "a-token-that-nobody-may-see-0123456789"  # of nobody
UMASKS = ("022", "000", "077")


def run(home: Home, umask: str, *arguments: str | Path) -> None:
    """Run a command with a umask. It must succeed without a warning. It is quiet, because a slow one shows its progress."""
    done = subprocess.run(
        [SCRIPTS / "filestore", *arguments, "--quiet"],
        env=home.environ,
        cwd=home.folder,
        capture_output=True,
        text=True,
        check=False,
        umask=int(umask, 8),
    )
    assert (0, "") == (done.returncode, done.stderr)


def used_by_others(root: Path) -> dict[str, str]:
    """The files and folders at `root` that another user may use or reach, with their permissions."""
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        is_content = "content" in path.relative_to(root).parts
        if not stat.S_ISLNK(status.st_mode) and not is_content and status.st_mode & 0o077:
            found[str(path.relative_to(root))] = f"{stat.S_IMODE(status.st_mode):o}"
    return found


def filled(home: Home, umask: str) -> tuple[Path, Path]:
    """Push and resolve a file and a directory as commands do. Return the folders of the cache and of the push cache."""
    plant(home.folder / "tree", {"a": b"a", "inner/b": b"b"})
    (home.folder / "file").write_bytes(b"private")
    run(home, umask, "push", home.folder / "file", "--create")
    run(home, umask, "push", home.folder / "tree")
    run(home, umask, "cache", "warm", "file")
    run(home, umask, "cache", "warm", "tree.zip")
    (cache,) = {path.parent for path in home.folder.rglob("format") if (path.parent / "leases").exists()}
    (push_cache,) = home.folder.rglob("journal.sqlite")
    return cache, push_cache


@pytest.mark.slow
@pytest.mark.parametrize("umask", UMASKS)
def test_another_user_reads_nothing_of_the_cache(home: Home, umask: str) -> None:
    """The umask does not matter. The content is readable in a folder that nobody else may enter."""
    cache, push_cache = filled(home, umask)
    assert {} == used_by_others(cache)
    assert {} == used_by_others(push_cache)
    assert [b"private"] == [path.read_bytes() for path in cache.rglob("content/file")]


@pytest.mark.slow
def test_what_an_earlier_version_left_readable_is_made_private(home: Home) -> None:
    """The folder of the cache, its lock files, and the push cache with what SQLite has beside it."""
    cache, push_cache = filled(home, "022")
    beside = [push_cache.with_name(f"{push_cache.name}{end}") for end in ("-wal", "-shm")]
    for path in beside:
        path.touch()
    loose = [cache, cache / "leases/.taking", push_cache, *beside]
    for path in loose:
        path.chmod(0o777 if path.is_dir() else 0o666)
    filled(home, "022")
    assert [] == [str(path) for path in loose if path.exists() and path.stat().st_mode & 0o077]


@pytest.mark.slow
@needs_root
def test_a_cache_that_others_can_change_is_warned_about(home: Home) -> None:
    """The warning names the folder and the other user. The cache is used all the same, as volumes of containers are."""
    cache, _ = filled(home, "022")
    os.chown(cache, STRANGER, STRANGER)
    done = home.run("cache", "warm", "file")
    assert 0 == done.returncode
    assert f"Warning: the folder of the cache, {str(cache)!r}, belongs to another user (user id {STRANGER})" in done.stderr
    os.chown(cache, 0, 0)
    done = home.run("cache", "warm", "file")
    assert (0, False) == (done.returncode, "Warning" in done.stderr)


@pytest.mark.slow
@needs_root
def test_another_user_cannot_hold_a_lock(home: Home) -> None:
    """To take a lock one must open its file, so a fetch never waits for a stranger."""
    cache, _ = filled(home, "000")
    for path in (home.folder, *home.folder.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o001)
        if path == Path("/tmp"):
            break
    locks = [*cache.rglob("locks/*"), cache / "leases/.taking"]
    assert len(locks) > 1
    cache.chmod(0o777)  # also where the folder itself is a volume that everybody may enter
    for lock in locks:
        for parent in lock.parents:
            if parent == cache:
                break
            parent.chmod(0o777)
        program = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "cat", str(lock)]
        assert 0 != subprocess.run(program, capture_output=True, check=False).returncode
        assert "Permission denied" in subprocess.run(program, capture_output=True, check=False, text=True).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
async def test_a_worker_process_of_a_transfer_shows_no_token() -> None:
    """It gets the token by a socket that only its parent has: not by its arguments, its environment or a file."""
    repository = RemoteRepository("http://127.0.0.1:9", token=_TOKEN)
    try:
        async with worker_pool(repository, count=2, slots=1) as pool:
            while len(pool.process_ids) < 2:
                await asyncio.sleep(0.01)
            for process_id in pool.process_ids:
                shown = Path(f"/proc/{process_id}/cmdline").read_bytes() + Path(f"/proc/{process_id}/environ").read_bytes()
                opened = [str(path.readlink()) for path in Path(f"/proc/{process_id}/fd").iterdir()]
                assert _TOKEN.encode() not in shown
                assert [] == [path for path in opened if path.startswith("/") and not path.startswith("/dev/")]
    finally:
        await repository.close()
