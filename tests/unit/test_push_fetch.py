from __future__ import annotations

import asyncio
import os
import random
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.paths import chunk_key
from filestore.core.progress import Progress
from filestore.core.references import Directory, File, Reference
from filestore.errors import (
    ChunksMissing,
    DamagedChunk,
    Interrupted,
    InvalidInput,
    InvalidName,
    InvalidReference,
    InvalidUrl,
    NotFound,
    SourceChanged,
    SourceRefused,
    SourceUnreadable,
    TargetError,
)
from filestore.format.codec import Codec
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Wanted
from filestore.transfer.fetch import fetch, fetch_record
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import manifest_of, plan_push, push, send_and_commit
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.sources.push_cache import PushCache
from filestore_cli.hints import explained
from tests.support.contents import KnownContent
from tests.support.watched import WatchedRepository

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """20 MiB that no codec makes smaller, which is more than one window; settled, so that a push cache trusts it."""
    path = tmp_path / "model.bin"
    path.write_bytes(random.Random(1).randbytes(20 * MIB))
    settle(path)
    return path


def settle(path: Path) -> None:
    """Give the file an mtime that is long ago."""
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))


@pytest.mark.slow
async def test_what_was_pushed_is_fetched(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """The main job: the same bytes come back, and every count adds up."""
    size = source.stat().st_size
    pushed = await push(watched, source)
    assert (size, 0, size) == (pushed.record.size, pushed.bytes_shared, pushed.bytes_read)
    assert size + 8 * watched.chunks_put == pushed.bytes_sent
    fetched = await fetch(watched, pushed.record, target=tmp_path / "back.bin")
    assert source.read_bytes() == fetched.path.read_bytes()
    assert (size, pushed.bytes_sent, 0) == (fetched.size, fetched.bytes_received, fetched.bytes_reused)


async def test_an_empty_path_is_not_the_current_folder(watched: WatchedRepository, source: Path) -> None:
    """An empty text comes from a variable that is not set: push, plan, fetch, caches and connect refuse it."""
    record = (await push(watched, source)).record
    calls = len(watched.calls)
    for attempt in (
        lambda: push(watched, ""),
        lambda: plan_push(watched, ""),
        lambda: fetch(watched, record, target=""),
        lambda: fetch_tree(watched, record, target=""),
    ):
        with pytest.raises(InvalidInput, match="the path is empty, as from a variable that is not set"):
            await attempt()
    assert calls == len(watched.calls)
    for make in (lambda: PushCache(""), lambda: Cache("", watched)):
        with pytest.raises(InvalidInput, match="the path is empty"):
            make()
    with pytest.raises(InvalidUrl, match="it is empty, as from a variable that is not set"):
        await connect("").__aenter__()


async def test_a_codec_has_a_name(watched: WatchedRepository, tmp_path: Path) -> None:
    """A push takes the names of the command line, and refuses any other one before it asks the repository."""
    source = tmp_path / "zeros.bin"
    source.write_bytes(bytes(MIB))
    sizes = {}
    for codec in ("raw", Codec.ZSTD):
        pushed = await push(watched, source, codec=codec)
        sizes[codec] = pushed.bytes_sent
        await watched.remove(pushed.record.id, with_chunks=True)
    assert (await push(watched, source, codec="zstd")).bytes_sent == sizes[Codec.ZSTD] < sizes["raw"]
    calls = len(watched.calls)
    with pytest.raises(InvalidInput, match=r"'foo' is not a codec; give one of auto, raw, zstd, planes2\+zstd, planes4\+zstd"):
        await push(watched, source, codec="foo")
    assert calls == len(watched.calls)


async def test_globs_are_only_for_directories(watched: WatchedRepository, source: Path) -> None:
    """A single file with globs is refused, as on the command line, and nothing is sent."""
    for globs in ({"include": "*.txt"}, {"exclude": ["*.bin"]}):
        with pytest.raises(InvalidInput, match="is not a directory; include and exclude are only for directories"):
            await push(watched, source, **globs)
    assert 0 == watched.chunks_put


@pytest.mark.parametrize("force", [False, True])
async def test_a_folder_is_not_replaced_by_a_file(watched: WatchedRepository, tmp_path: Path, *, force: bool) -> None:
    """The error says that a folder is there, and that force does not help."""
    (tmp_path / "a.txt").write_text("a")
    record = (await push(watched, tmp_path / "a.txt")).record
    (tmp_path / "folder").mkdir()
    with pytest.raises(TargetError, match="a folder is there, which a single file does not replace, not even by force"):
        await fetch(watched, record, target=tmp_path / "folder", force=force)
    assert {"a.txt", "folder"} <= {path.name for path in tmp_path.iterdir()}
    assert [] == list(tmp_path.glob(".*.filestore-partial"))


async def test_a_second_push_sends_nothing(watched: WatchedRepository, source: Path) -> None:
    """The same bytes, under the same name, are the same record, and no frame moves."""
    first = await push(watched, source)
    sent = watched.chunks_put
    second = await push(watched, source)
    assert (first.record.id, 0, source.stat().st_size) == (second.record.id, second.bytes_sent, second.bytes_shared)
    assert sent == watched.chunks_put


async def test_a_changed_file_sends_what_changed(watched: WatchedRepository, source: Path) -> None:
    """One byte in the middle costs one chunk, or two."""
    await push(watched, source)
    before = watched.chunks_put
    content = bytearray(source.read_bytes())
    content[10 * MIB] ^= 1
    source.write_bytes(content)
    pushed = await push(watched, source)
    assert watched.chunks_put - before in {1, 2}
    assert len(content) - pushed.bytes_shared <= 8 * MIB


@pytest.mark.slow
async def test_equal_chunks_of_one_file_are_sent_once(watched: WatchedRepository, tmp_path: Path) -> None:
    """A push does not send, or ask for, a chunk that it has sent already."""
    path = tmp_path / "zeros"
    path.write_bytes(bytes(64 * MIB))
    pushed = await push(watched, path)
    assert watched.chunks_put <= 2
    assert 64 * MIB - 8 * MIB <= pushed.bytes_shared
    fetched = await fetch(watched, pushed.record, target=tmp_path / "back")
    assert path.read_bytes() == fetched.path.read_bytes()


async def test_an_empty_file(watched: WatchedRepository, tmp_path: Path) -> None:
    """No chunk, and still a file."""
    path = tmp_path / "empty"
    path.touch()
    pushed = await push(watched, path)
    assert (0, 0) == (pushed.record.size, watched.chunks_put)
    fetched = await fetch(watched, pushed.record, target=tmp_path / "back")
    assert b"" == fetched.path.read_bytes()


@pytest.mark.slow
async def test_the_digest_that_a_push_gives_is_known_without_a_repository(watched: WatchedRepository, source: Path) -> None:
    """`manifest_of` and `push` give the same digest, for every codec."""
    manifest = await manifest_of(source)
    for codec in (None, Codec.RAW, Codec.ZSTD):
        assert manifest.digest == (await push(watched, source, codec=codec)).record.digest


async def test_the_push_cache_saves_reading(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """A file in the state of its last push is not read; with `rehash` it is; neither sends a frame."""
    os.utime(source)
    settled_by_ctime = tmp_path / "settled.bin"
    settled_by_ctime.symlink_to(source)
    with PushCache(tmp_path / "push_cache") as push_cache:
        first = await push(watched, source, push_cache=push_cache)
        _age_entries(tmp_path / "push_cache")
        asked = len(watched.calls)
        second = await push(watched, source, push_cache=push_cache)
        assert ["identity", "missing", "commit"] == watched.calls[asked:]
        third = await push(watched, source, push_cache=push_cache, rehash=True)
    size = source.stat().st_size
    assert [size, 0, size] == [first.bytes_read, second.bytes_read, third.bytes_read]
    assert [0, 0] == [second.bytes_sent, third.bytes_sent]
    assert first.record.id == second.record.id == third.record.id


def _age_entries(path: Path) -> None:
    """Pretend that the entry was written 3 s later: ctime cannot be set, so the test would have to wait for that long."""
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE pushed SET recorded_at = recorded_at + 3000000000")
    connection.close()


@pytest.mark.slow
async def test_what_the_repository_lost_is_sent_again(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """A commit that names missing chunks is answered by sending exactly those (I9), also where the push cache read nothing."""
    with PushCache(tmp_path / "push_cache") as push_cache:
        pushed = await push(watched, source, push_cache=push_cache)
        _age_entries(tmp_path / "push_cache")
        lost = [chunk.digest for chunk in Manifest.parse(await watched.manifest(pushed.record.digest)).chunks[3:5]]
        await _lose(watched, lost)
        before = watched.chunks_put
        again = await push(watched, source, push_cache=push_cache)
    assert 2 == watched.chunks_put - before
    assert again.bytes_sent == again.bytes_read + 2 * 8
    assert again.record.size == again.bytes_shared + again.bytes_read
    fetched = await fetch(watched, again.record, target=tmp_path / "back")
    assert source.read_bytes() == fetched.path.read_bytes()


async def _lose(watched: WatchedRepository, digests: list[Digest]) -> None:
    root = Path(watched.location.removeprefix("file://"))
    identity = await watched.identity()
    for digest in digests:
        (root / chunk_key(identity.namespace, digest)).unlink()
    # A read that finds a frame gone is what tells the index.
    assert [None] * len(digests) == await watched.get(digests, memoryview(bytearray(16 * MIB)))


@pytest.mark.slow
async def test_progress_is_honest(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """It begins at 0, never moves back, says nothing twice, and ends with the whole."""
    for transfer in ("push", "fetch"):
        seen: list[Progress] = []
        if transfer == "push":
            record = (await push(watched, source, report=seen.append)).record
        else:
            await fetch(watched, record, target=tmp_path / "back", report=seen.append)
        assert (0, 0) == (seen[0].done, seen[0].moved)
        assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
        assert source.stat().st_size == seen[-1].done == seen[-1].total
        assert [] == [before for before, after in pairwise(seen) if before == after]


async def test_a_name_may_be_chosen(watched: WatchedRepository, source: Path) -> None:
    """The file's own name is only the default."""
    assert "other name" == (await push(watched, source, name="other name")).record.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../x", "", "a/b/c", "nul\0", "a:b", "a@b"])
async def test_a_name_that_cannot_be_kept_is_refused_before_anything_is_read(
    watched: WatchedRepository, source: Path, name: str
) -> None:
    """Nothing is sent for a push that cannot be committed."""
    with pytest.raises(InvalidName):
        await push(watched, source, name=name)
    assert [] == watched.calls


async def test_what_is_not_a_file_is_refused(watched: WatchedRepository, tmp_path: Path) -> None:
    """A FIFO without a writer, a device and a missing file are refused at once, without waiting."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path / "vanished", tmp_path / "vanished" / "below"):
        with pytest.raises(SourceUnreadable):
            await push(watched, path)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["truncated", "grown", "written"])
async def test_a_file_that_changes_while_it_is_pushed(watched: WatchedRepository, source: Path, change: str) -> None:
    """Found out, refused, said; no record is made."""

    async def meddle(verb: str) -> None:
        if verb == "put" and watched.calls.count("put") == 1:
            with source.open("r+b") as file:
                if change == "truncated":
                    file.truncate(MIB)
                elif change == "grown":
                    file.seek(0, os.SEEK_END)
                    file.write(b"more")
                else:
                    file.write(b"other")

    watched.before = meddle
    with pytest.raises(SourceChanged):
        await push(watched, source)
    assert [] == await watched.inner.records()


@pytest.mark.slow
async def test_fetch_continues_what_was_cut(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """A second fetch receives only the rest, and the name never means a part of the file."""
    options = TransferOptions(batches_in_flight=1)
    record = (await push(watched, source)).record
    target = tmp_path / "back"

    async def cut(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") == 3:
            raise NotFound("the network")

    watched.before = cut
    with pytest.raises(NotFound):
        await fetch_record(watched, record, target=target, options=options)
    assert not target.exists()
    got = watched.chunks_got
    fetched = await fetch_record(watched, record, target=target, options=options)
    assert source.read_bytes() == target.read_bytes()
    assert 0 < got
    assert fetched.size == fetched.bytes_reused + fetched.bytes_received - 8 * (watched.chunks_got - got)
    assert ["back"] == [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "back"))]


async def test_fetch_trusts_nothing_that_a_staging_file_holds(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """Every chunk that is kept is hashed first: rubbish in the staging file is fetched over."""
    record = (await push(watched, source)).record

    async def cut(verb: str) -> None:
        if verb == "get":
            raise Interrupted("the repository", "the network")

    watched.before = cut
    with pytest.raises(Interrupted):
        await fetch(watched, record, target=tmp_path / "back")
    (staging,) = tmp_path.glob(".*.filestore-partial")
    rubbish = bytearray(source.read_bytes())
    rubbish[5 * MIB : 5 * MIB + 10] = b"0123456789"
    staging.write_bytes(rubbish)
    watched.before = _free
    fetched = await fetch(watched, record, target=tmp_path / "back")
    assert source.read_bytes() == fetched.path.read_bytes()
    assert 1 == watched.chunks_got


async def _free(_: str) -> None:
    return None


async def test_fetch_over_the_same_file_moves_nothing(watched: WatchedRepository, source: Path) -> None:
    """A file that is there already is hashed, not fetched, and not written."""
    record = (await push(watched, source)).record
    before = source.stat().st_mtime_ns
    fetched = await fetch(watched, record, target=source)
    assert (0, record.size, 0) == (fetched.bytes_received, fetched.bytes_reused, watched.chunks_got)
    assert before == source.stat().st_mtime_ns


@pytest.mark.slow
async def test_fetch_replaces_another_file_only_by_force(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """Without force, a file with other content stays as it is, and no chunk is asked for."""
    record = (await push(watched, source)).record
    target = tmp_path / "target"
    target.write_bytes(b"another")
    with pytest.raises(TargetError, match="another file is there"):
        await fetch(watched, record, target=target)
    assert (b"another", 0) == (target.read_bytes(), watched.chunks_got)
    await fetch(watched, record, target=target, force=True)
    assert source.read_bytes() == target.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["name", "id", "digest", "path", "reference", "record", "file", "directory"])
async def test_fetch_takes_what_a_user_has(watched: WatchedRepository, source: Path, tmp_path: Path, way: str) -> None:
    """A text of any kind, and each value that names a stored file; paths may be texts."""
    record = (await push(watched, str(source))).record
    wanted: dict[str, Wanted] = {
        "name": record.name,
        "id": record.id,
        "digest": str(record.digest),
        "path": record.path,
        "reference": Reference(id=record.id),
        "record": record,
        "file": File(id=record.id),
        "directory": Directory(id=record.id),
    }
    fetched = await fetch(watched, wanted[way], target=str(tmp_path / "back"))
    assert (record, tmp_path / "back") == (fetched.record, fetched.path)
    assert source.read_bytes() == fetched.path.read_bytes()


@pytest.mark.parametrize("wanted", ["", File("./model.bin"), File(url="https://example.org/a")])
async def test_fetch_refuses_what_names_nothing(watched: WatchedRepository, tmp_path: Path, wanted: Wanted) -> None:
    """A local path and a URL are no stored files: nothing is asked of the repository."""
    with pytest.raises(InvalidReference):
        await fetch(watched, wanted, target=tmp_path / "back")
    assert [] == watched.calls


@pytest.mark.slow
async def test_fetch_over_another_version_moves_what_changed(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """Chunks of the old file are copied, from any offset in it."""
    record = (await push(watched, source)).record
    target = tmp_path / "target"
    target.write_bytes(random.Random(2).randbytes(3000) + source.read_bytes()[MIB:])
    fetched = await fetch(watched, record, target=target, force=True)
    assert source.read_bytes() == target.read_bytes()
    assert fetched.bytes_reused >= record.size - 9 * MIB


@pytest.mark.slow
async def test_two_fetches_of_one_target(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """They share a staging file. The later one finds the finished file, and never writes to it."""
    record = (await push(watched, source)).record
    first_got, second_done = asyncio.Event(), asyncio.Event()

    async def hold(verb: str) -> None:
        if verb == "get" and not first_got.is_set():
            first_got.set()
            await second_done.wait()

    watched.before = hold
    slow = asyncio.create_task(fetch(watched, record, target=tmp_path / "back"))
    await first_got.wait()
    fast = await fetch(watched, record, target=tmp_path / "back")
    published = fast.path.stat()
    second_done.set()
    assert record.size == (await slow).size
    assert (published.st_ino, published.st_mtime_ns) == (fast.path.stat().st_ino, fast.path.stat().st_mtime_ns)
    assert source.read_bytes() == fast.path.read_bytes()


@pytest.mark.slow
async def test_fetched_files_have_the_usual_permissions(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """Files have the mode that the umask leaves, as with any program."""
    record = (await push(watched, source)).record
    umask = os.umask(0o027)
    try:
        fetched = await fetch(watched, record, target=tmp_path / "back")
    finally:
        os.umask(umask)
    assert 0o640 == stat.S_IMODE(fetched.path.stat().st_mode)


@pytest.mark.slow
async def test_a_damaged_chunk_is_named_and_mended_by_the_next_push(
    watched: WatchedRepository, source: Path, tmp_path: Path
) -> None:
    """A frame that no longer decodes to its digest is an error; the target does not appear; a push sends that chunk again."""
    record = (await push(watched, source)).record
    chunk = Manifest.parse(await watched.manifest(record.digest)).chunks[2]
    kept = Path(watched.location.removeprefix("file://")) / chunk_key(record.namespace, chunk.digest)
    frame = bytearray(kept.read_bytes())
    frame[1000] ^= 1
    kept.write_bytes(frame)
    with pytest.raises(DamagedChunk) as caught:
        await fetch(watched, record, target=tmp_path / "back")
    assert str(chunk.digest) == caught.value.args[0]
    assert not (tmp_path / "back").exists()
    before = watched.chunks_put
    assert record.id == (await push(watched, source)).record.id
    assert 1 == watched.chunks_put - before
    assert source.read_bytes() == (await fetch(watched, record, target=tmp_path / "back")).path.read_bytes()


@pytest.mark.parametrize("what", ["folder", "fifo", "below a file"])
async def test_fetch_to_where_no_file_can_be(watched: WatchedRepository, tmp_path: Path, what: str) -> None:
    """Anything but a file at the target is left as it is."""
    (tmp_path / "small").write_bytes(b"x")
    record = (await push(watched, tmp_path / "small")).record
    target = tmp_path / "target"
    if what == "folder":
        target.mkdir()
    elif what == "fifo":
        os.mkfifo(target)
    else:
        target = tmp_path / "small" / "absent" / "target"
    with pytest.raises(TargetError):
        await fetch(watched, record, target=target)


async def test_fetch_makes_missing_folders(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """The folders above the target. A fetch that fails before anything arrives removes those that it made."""
    record = (await push(watched, source)).record
    fetched = await fetch(watched, record, target=tmp_path / "new/folder/target")
    again = await fetch(watched, record, target=tmp_path / "new/folder/target")
    (tmp_path / "kept").mkdir()
    with pytest.raises(NotFound):
        await fetch(watched, Reference(name="absent"), target=tmp_path / "kept/a/b/target")
    (tmp_path / "small").write_bytes(b"x")
    lost = (await push(watched, tmp_path / "small")).record
    [chunk] = (await manifest_of(tmp_path / "small")).chunks
    (Path(watched.location.removeprefix("file://")) / chunk_key(lost.namespace, chunk.digest)).unlink()
    with pytest.raises(ChunksMissing):
        await fetch(watched, lost, target=tmp_path / "kept/a/b/target")

    assert source.read_bytes() == (tmp_path / "new/folder/target").read_bytes()
    assert (False, True, 0) == (fetched.was_there, again.was_there, again.bytes_received)
    assert [] == list((tmp_path / "kept").iterdir())


async def test_names_of_every_kind_come_back(watched: WatchedRepository, tmp_path: Path) -> None:
    """Spaces, quotes, percent signs, unicode, 255 bytes, leading dots."""
    for name in ("a b", 'it\'s "q"', "100%41", "模型-ünï", "x" * 255, ".hidden", "-dash"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
        pushed = await push(watched, path)
        (tmp_path / "out").mkdir(exist_ok=True)
        fetched = await fetch(watched, pushed.record, target=tmp_path / "out" / pushed.record.name)
        assert (name, name.encode()) == (pushed.record.name, fetched.path.read_bytes())


async def test_a_push_of_a_link_that_leads_nowhere(watched: WatchedRepository, tmp_path: Path) -> None:
    """The error says that the path is a link, where it leads to, and what to do."""
    link = tmp_path / "link.bin"
    link.symlink_to("gone.bin")
    with pytest.raises(SourceUnreadable) as caught:
        await push(watched, link)
    said = f"{link} cannot be read: it is a symbolic link to 'gone.bin', where nothing is; restore that file, or correct the link"
    assert said == str(caught.value)
    link.unlink()
    link.symlink_to(link.name)
    with pytest.raises(SourceUnreadable, match=r"it is a symbolic link to 'link\.bin', which leads round in a circle"):
        await push(watched, link)
    with pytest.raises(SourceUnreadable, match="No such file or directory"):
        await push(watched, tmp_path / "absent.bin")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is empty"),
        ("x\ny", "it contains a control character"),
        ("..", "it stands for a folder"),
        ("x" * 256, "it has 256 bytes, allowed are 255"),
        ("x@y", "it contains '@', which separates the parts of a reference, NAME@REVISION:PATH"),
    ],
)
async def test_a_name_that_cannot_be_kept(watched: WatchedRepository, source: Path, name: str, reason: str) -> None:
    """The error says why, and to choose another one; the command line adds how."""
    with pytest.raises(InvalidName) as caught:
        await push(watched, source, name=name)
    said = f"the name {name!r} cannot be kept: {reason}; choose another name; --name sets it"
    assert said == explained(caught.value)
    assert [] == watched.calls


async def test_a_push_of_the_root(watched: WatchedRepository) -> None:
    """It has no name, so the push needs one; paths in it begin with one slash."""
    with pytest.raises(InvalidName) as caught:
        await push(watched, "/")
    said = "the name '' cannot be kept: the root of the file system has no name; give one; --name sets it"
    assert said == explained(caught.value)
    with pytest.raises(SourceRefused, match=r"^/dev/null was refused"):
        await push(watched, "/", name="root.zip", include="dev/null")


async def test_symlinks_are_for_directories(watched: WatchedRepository, source: Path) -> None:
    """As include and exclude, another choice than the default is refused for a file, and not ignored."""
    for symlinks in ("follow", "keep", "refuse"):
        with pytest.raises(InvalidInput, match=f"is not a directory; symlinks='{symlinks}' is only for directories"):
            await push(watched, source, symlinks=symlinks)
    with pytest.raises(InvalidInput, match="symlinks cannot be 'nonsense'"):
        await push(watched, source, symlinks="nonsense")
    await push(watched, source, symlinks="inside")


@pytest.mark.slow
async def test_progress_tells_what_is_looked_at_here(watched: WatchedRepository, source: Path, tmp_path: Path) -> None:
    """An older version at the target is read before anything is received, and then copied. None of this is moved."""
    await push(watched, source)
    target = tmp_path / "target.bin"
    content = bytearray(source.read_bytes())
    content[10 * MIB : 10 * MIB + 10] = bytes(10)
    target.write_bytes(content)
    reported: list[Progress] = []
    fetched = await fetch(watched, source.name, target=target, force=True, report=reported.append)

    checking = [progress for progress in reported if progress.to_check]
    assert (len(content), 0) == (checking[0].to_check, checking[0].checked)
    assert max(progress.checked for progress in checking) == len(content)
    assert all(progress.checked <= progress.to_check for progress in checking)
    assert {progress.moved for progress in checking} == {0}
    assert reported[-1].to_check == 0
    assert 0 < fetched.bytes_received < 5 * MIB


@pytest.mark.slow
async def test_a_push_of_which_very_many_chunks_are_missing_commits_twice(repository: LocalRepository) -> None:
    """An error lists at most 4,096 chunks. The push then asks about all of its chunks, instead of committing again and again."""
    watched = WatchedRepository(repository)
    content = KnownContent(3 * ChunksMissing.limit)
    record = await send_and_commit(watched, content, name="known.bin")
    assert content.size == record.size
    assert {"commit": 2, "missing": 1} == {verb: watched.calls.count(verb) for verb in ("commit", "missing")}
    assert 3 * ChunksMissing.limit == watched.chunks_put
