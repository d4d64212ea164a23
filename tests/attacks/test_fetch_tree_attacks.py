"""Real fetches of zip files that would do harm. Nothing outside the target changes, and nothing stays in it.

`test_archive_attacks.py` tests in detail what the structure alone shows. Here the disk is checked.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import zlib
from pathlib import Path

import pytest

from filestore.errors import FilestoreError, InvalidArchive, LimitExceeded, NotAnArchive, TargetError
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.format.zip.structures import FLAG_DESCRIPTOR
from filestore.repository.local import LocalRepository
from filestore.transfer.fetch_tree import fetch_record_tree, fetch_tree
from filestore.transfer.schedule import DEFAULT_OPTIONS, TransferOptions
from tests.support.archives import Forged, deflated, forged
from tests.support.fetching_trees import cut_off, seen, staging_in, stored
from tests.support.folding import names_without_case
from tests.support.generator import octets
from tests.support.trees import Folder, Script, plant, standing

MIB = 1 << 20
CHUNK_SIZES = (MIB, 40)
"""Everything in one chunk, and small chunks that split headers, content and descriptors."""
HONEST = Forged("honest.txt", b"all is well")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return the folder in which `target` is to be made, with other things that must not change."""
    return plant(tmp_path / "place", {"evil": b"before", "outside/file": b"before", "passwd": Script(b"before")})


async def assert_refused(
    repository: LocalRepository,
    archive: bytes,
    place: Path,
    reason: str,
    *,
    error: type[FilestoreError] = InvalidArchive,
    limits: ZipLimits = DEFAULT_LIMITS,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> None:
    """Check that it is refused for `reason`, at a new, an empty and an existing target, and that nothing changes."""
    (place / "empty").mkdir(exist_ok=True)
    plant(place / "older", {"file": b"of an older version"})
    before = seen(place)
    for chunk_size in CHUNK_SIZES:
        record = await stored(repository, archive, chunk_size=chunk_size)
        for target, force in (("target", False), ("empty", False), ("older", True)):
            with pytest.raises(error, match=reason):
                await fetch_record_tree(repository, record, target=place / target, force=force, limits=limits, options=options)
            assert before == seen(place)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "..", "a/..\\evil", "outside/../../evil"])
@pytest.mark.parametrize("host", [0, 3])
async def test_parent_path(repository: LocalRepository, place: Path, name: str, host: int) -> None:
    """A name leads out of the target."""
    await assert_refused(repository, forged([HONEST, Forged(name, b"after", host=host)]), place, "leads out of its folder")


async def test_absolute_path(repository: LocalRepository, place: Path) -> None:
    """A name starts at the root."""
    for name in (str(place / "evil"), f"/{place}/evil", "\\evil"):
        await assert_refused(repository, forged([HONEST, Forged(name, b"after")]), place, "absolute")


@pytest.mark.parametrize("name", ["C:/evil", "c:evil", "C:\\evil"])
async def test_drive_letter(repository: LocalRepository, place: Path, name: str) -> None:
    """A name starts at a drive."""
    await assert_refused(repository, forged([HONEST, Forged(name, b"after")]), place, "drive letter")


@pytest.mark.parametrize("name", ["\\\\server\\share\\evil", "//server/share/evil"])
async def test_unc_path(repository: LocalRepository, place: Path, name: str) -> None:
    """A name starts at another machine."""
    await assert_refused(repository, forged([HONEST, Forged(name, b"after")]), place, "absolute")


async def test_nul_in_a_name(repository: LocalRepository, place: Path) -> None:
    """A program that stops at the NUL sees another name."""
    await assert_refused(repository, forged([HONEST, Forged("evil\0.txt", b"after")]), place, "NUL")


async def test_names_that_the_file_system_keeps_apart(repository: LocalRepository, place: Path) -> None:
    """Names that differ by letter case or Unicode form are allowed where they are two names."""
    names = ["readme", "README", "gr\u00f6\u00dfe", "gro\u0308\u00dfe", "a/b", "A/b"]
    archive = forged([Forged(name, name.encode()) for name in names])

    await fetch_tree(repository, await stored(repository, archive, chunk_size=40), target=place / "target")

    assert {name: name.encode() for name in names} == standing(place / "target")


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (Forged("readme", b"1"), Forged("README", b"2"), "'readme' and 'README'"),
        (Forged("folder/a", b"1"), Forged("Folder/b", b"2"), "'Folder' and 'folder'"),
        (Forged("folder/a", b"1"), Forged("FOLDER", b"2"), "'folder' and 'FOLDER'"),
        (Forged("folder/", mode=0o40755), Forged("Folder/", mode=0o40755), "'folder' and 'Folder'"),
        (Forged("way", b"outside", mode=0o120777), Forged("WAY/evil", b"2"), "'WAY' and 'way'"),
        (Forged("way", b"evil", mode=0o120777), Forged("WAY", b"2"), "'WAY' and 'way'"),
    ],
)
async def test_names_that_the_file_system_cannot_keep_apart(
    repository: LocalRepository, place: Path, first: Forged, second: Forged, named: str
) -> None:
    """A file would be written twice, over a folder, or through a link. The error has both names."""
    with names_without_case():
        archive = forged([HONEST, first, second])
        await assert_refused(repository, archive, place, f"does not keep {named} apart", error=TargetError)


@pytest.mark.parametrize("force", [True, False])
async def test_names_that_cannot_be_kept_apart_meet_after_a_cut(
    repository: LocalRepository,
    place: Path,
    force: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """The second process does not take the first one's file of one name for the file of the other name."""
    files = {"filler": octets(1, 100_000), "readme": b"1" * 500, "README": b"2" * 500}
    record = await stored(repository, forged(Forged(name, content) for name, content in files.items()), chunk_size=400)
    await cut_off(repository, record, place / "target")
    staging = staging_in(place)
    plant(staging, {"README": b"2" * 500})
    with names_without_case(), pytest.raises(TargetError, match="does not keep 'README' and 'readme' apart"):
        await fetch_tree(repository, record, target=place / "target", force=force)
    assert not staging.exists()
    assert not (place / "target").exists()


async def test_file_where_a_folder_must_be(repository: LocalRepository, place: Path) -> None:
    """The archive has a file, and then something below its path."""
    await assert_refused(repository, forged([Forged("a", b"file"), Forged("a/b", b"evil")]), place, "is not a folder")


async def test_folder_where_a_file_must_be(repository: LocalRepository, place: Path) -> None:
    """The archive has something in a folder, and then a file with the folder's path."""
    await assert_refused(repository, forged([Forged("a/b", b"1"), Forged("a", b"evil")]), place, "must be a folder")


async def test_same_name_twice(repository: LocalRepository, place: Path) -> None:
    """Two entries have one path, in different spellings."""
    for second in ("a/b", "a//b", "./a/b"):
        await assert_refused(repository, forged([Forged("a/b", b"1"), Forged(second, b"2")]), place, "twice")


async def test_write_through_a_symlink(repository: LocalRepository, place: Path) -> None:
    """The archive has a link to a folder outside or inside, and then a file below its path."""
    for target in (b"../outside", b"folder"):
        link = Forged("way", target, mode=0o120777)
        archive = forged([Forged("folder/", mode=0o40755), link, Forged("way/file", b"after")])
        await assert_refused(repository, archive, place, "is not a folder")


async def test_symlink_that_leads_out(repository: LocalRepository, place: Path) -> None:
    """Links lead out of the target, alone or together."""
    up = Forged("a/b/up", b"../..", mode=0o120777)
    for others in (
        [Forged("link", b"../outside", mode=0o120777)],
        [Forged("link", str(place / "evil").encode(), mode=0o120777)],
        [up, Forged("link", b"a/b/up/../outside", mode=0o120777)],
    ):
        archive = forged([HONEST, Forged("a/b/file", b""), *others])
        await assert_refused(repository, archive, place, "out of the tree|absolute")


async def test_symlinks_are_made_last(repository: LocalRepository, place: Path) -> None:
    """A link that is first in the archive is made last, and leads to the right place."""
    archive = forged([Forged("link", b"folder/file", mode=0o120777), Forged("folder/file", b"content")])

    await fetch_tree(repository, await stored(repository, archive, chunk_size=40), target=place / "target")

    assert b"content" == (place / "target/link").read_bytes()


@pytest.mark.parametrize(
    "links", [{"folder": "../outside"}, {"file": "../outside/file"}, {"folder/file": "../../outside/file"}, {"": "outside"}]
)
async def test_symlink_planted_in_the_staging_folder(repository: LocalRepository, place: Path, links: dict[str, str]) -> None:
    """An attacker puts links into the staging folder of a cut fetch, or in its place. Nothing is written through them."""
    # The archive is larger than the part that is read to find the central directory, so something is left to fetch.
    files = {"filler": octets(1, 100_000), "folder/file": b"after", "file": b"after"}
    record = await stored(repository, forged(Forged(name, content) for name, content in files.items()), chunk_size=400)
    await cut_off(repository, record, place / "target")
    staging = staging_in(place)
    for name, target in links.items():
        path = staging / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
    before = seen(place / "outside")

    await fetch_tree(repository, record, target=place / "target")

    assert before == seen(place / "outside")
    assert files == standing(place / "target")


@pytest.mark.parametrize("force", [True, False])
async def test_symlinked_target(repository: LocalRepository, place: Path, force: bool) -> None:  # noqa: FBT001  # a parameter
    """The target is a link to a folder or to nothing. The error names it, and nothing is changed."""
    record = await stored(repository, forged([HONEST]))
    for target in ("outside", "nowhere"):
        link = place / f"link-{target}"
        link.symlink_to(target)
        before = seen(place)
        with pytest.raises(TargetError, match=f"it is a link to {target}"):
            await fetch_tree(repository, record, target=link, force=force)
        assert before == seen(place)


async def test_hard_link(repository: LocalRepository, place: Path) -> None:
    """One entry has two names. A hard-linked file of the older tree is replaced, not written to."""
    await assert_refused(
        repository, forged([HONEST, Forged("other", HONEST.content, offset=0, in_body=False)]), place, "overlaps"
    )
    target = plant(place / "linked", {"honest.txt": b"older version"})
    os.link(target / "honest.txt", place / "elsewhere")

    await fetch_tree(repository, await stored(repository, forged([HONEST])), target=target, force=True)

    assert b"older version" == (place / "elsewhere").read_bytes()
    assert {"honest.txt": HONEST.content} == standing(target)


@pytest.mark.parametrize("mode", [0o010644, 0o020644, 0o060644, 0o140644])
async def test_device_by_mode_bits(repository: LocalRepository, place: Path, mode: int) -> None:
    """FIFOs, devices and sockets are not made."""
    await assert_refused(repository, forged([HONEST, Forged("dev", b"", mode=mode)]), place, "it is a ")


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
async def test_setuid_bits_are_dropped(repository: LocalRepository, place: Path, chunk_size: int) -> None:
    """Only the permission to execute is kept."""
    archive = forged([Forged("su", b"evil", mode=0o107777), Forged("folder/", mode=0o043777), Forged("plain", mode=0o106666)])
    umask = os.umask(0o022)
    try:
        await fetch_tree(repository, await stored(repository, archive, chunk_size=chunk_size), target=place / "target")
    finally:
        os.umask(umask)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (place / "target").iterdir()}
    assert {"su": 0o755, "folder": 0o755, "plain": 0o644} == modes


async def test_encrypted_entry(repository: LocalRepository, place: Path) -> None:
    """Nobody has the password."""
    await assert_refused(repository, forged([HONEST, Forged("secret", b"?", flags=1)]), place, "encrypted")


async def test_other_method(repository: LocalRepository, place: Path) -> None:
    """An unknown compression method is refused, and the error names the entry."""
    await assert_refused(repository, forged([HONEST, Forged("packed", b"?", method=14)]), place, "LZMA")


@pytest.mark.slow
async def test_bomb_by_ratio(repository: LocalRepository, place: Path) -> None:
    """64 KiB unpack to 64 MiB of zeros."""
    archive = forged([HONEST, Forged("zeros", bytes(64 * MIB), deflated=True)])
    await assert_refused(repository, archive, place, "the ratio", error=LimitExceeded)


async def test_bomb_by_count(repository: LocalRepository, place: Path) -> None:
    """The archive has more entries than the limit."""
    archive = forged(Forged(f"{number}", b"") for number in range(11))
    await assert_refused(
        repository, archive, place, "entries of the archive is 11", error=LimitExceeded, limits=ZipLimits(entries=10)
    )


async def test_bomb_by_total_size(repository: LocalRepository, place: Path) -> None:
    """The archive has more bytes than the limit in total."""
    archive = forged(Forged(name, bytes(600), deflated=True) for name in "ab")
    await assert_refused(repository, archive, place, "is 1200", error=LimitExceeded, limits=ZipLimits(total_size=1000))


async def test_bomb_by_nesting_of_nothing(repository: LocalRepository, place: Path) -> None:
    """Empty folders are nested too deep, or there are too many of them."""
    deep = forged([Forged("d/" * 200, mode=0o40755)])
    wide = forged(Forged(f"{number}/" + "d/" * 50, mode=0o40755) for number in range(10))
    await assert_refused(repository, deep, place, "depth", error=LimitExceeded)
    await assert_refused(repository, wide, place, "files and folders", error=LimitExceeded, limits=ZipLimits(entries=100))


async def test_bomb_by_directory_size(repository: LocalRepository, place: Path) -> None:
    """A central directory larger than the limit is not even fetched."""
    archive = forged([HONEST, Forged("more", bytes(100_000))])
    await assert_refused(
        repository, archive, place, "central directory", error=LimitExceeded, limits=ZipLimits(directory_size=10)
    )


async def test_bomb_that_is_a_zip_of_zips(repository: LocalRepository, place: Path) -> None:
    """42.zip: archives inside the archive stay packed."""
    inner = forged([Forged("inner", bytes(MIB), deflated=True)])
    archive = forged([Forged("lib 0.zip", inner), Forged("lib 1.zip", inner, deflated=True)])

    await fetch_tree(repository, await stored(repository, archive), target=place / "target")

    assert {"lib 0.zip": inner, "lib 1.zip": inner} == standing(place / "target")


@pytest.mark.slow
async def test_bomb_that_lies(repository: LocalRepository, place: Path) -> None:
    """More bytes come out than the directory declares. Unpacking stops there."""
    archive = forged([HONEST, Forged("liar", bytes(64 * MIB), deflated=True, size=1000)])
    await assert_refused(repository, archive, place, "has more")


async def test_overlapping_entries(repository: LocalRepository, place: Path) -> None:
    """Fifield's better zip bomb: many entries share one kernel."""
    kernel = Forged("kernel", bytes(MIB), deflated=True)
    again = [Forged(f"again{number}", kernel.content, deflated=True, offset=0, in_body=False) for number in range(50)]
    await assert_refused(repository, forged([kernel, *again]), place, "overlaps")


async def test_entry_inside_another_entry(repository: LocalRepository, place: Path) -> None:
    """The data of an entry contains another entry, as in a quine."""
    outer = Forged("outer", forged([Forged("inner", b"evil")]))
    inner = Forged("inner", b"evil", offset=30 + len("outer"), in_body=False)
    await assert_refused(repository, forged([outer, inner]), place, "overlaps")


@pytest.mark.parametrize("declared", [0, 998, 1001, 2000])
async def test_declared_size_that_lies(repository: LocalRepository, place: Path, declared: int) -> None:
    """The data, packed or not, has more or fewer bytes than declared."""
    entry = Forged("liar", bytes(range(250)) * 4, deflated=True, size=declared)
    await assert_refused(repository, forged([HONEST, entry]), place, f"it states {declared} bytes, but has")
    await assert_refused(
        repository, forged([HONEST, entry._replace(deflated=False)]), place, f"1000 bytes, but states {declared}"
    )


@pytest.mark.parametrize("is_deflated", [False, True])
async def test_wrong_checksum(repository: LocalRepository, place: Path, is_deflated: bool) -> None:  # noqa: FBT001  # a parameter
    """The content is not what was packed."""
    entry = Forged("a", b"content " * 40, deflated=is_deflated, crc=1)
    await assert_refused(repository, forged([HONEST, entry]), place, "checksum")


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry",
    [
        Forged("good", b"content " * 40, local_name=b"evil"),
        Forged("good", b"content " * 40, local={"size": 3}),
        Forged("good", b"content " * 40, local={"crc": 3}),
        Forged("good", b"content " * 40, local={"method": 8}),
        Forged("good", b"content " * 40, deflated=True, local={"method": 0}),
        Forged("good", b"content " * 40, deflated=True, local_name=b"evil"),
        Forged("good/", mode=0o40755, local_name=b"evil/"),
        Forged("good", b"honest.txt", mode=0o120777, local_name=b"evil"),
    ],
)
async def test_central_directory_that_names_other_entries(repository: LocalRepository, place: Path, entry: Forged) -> None:
    """The local header has another name, so two tools would unpack two trees."""
    await assert_refused(repository, forged([HONEST, entry, HONEST._replace(name="last")]), place, "its local header")


async def test_entry_that_the_central_directory_does_not_name(repository: LocalRepository, place: Path) -> None:
    """A tool that reads forward sees one more entry: at the start, in the middle or at the end."""
    hidden = Forged("hidden", b"evil", in_directory=False)
    for entries in ([hidden, HONEST], [HONEST, hidden, Forged("b", b"")], [HONEST, hidden], [hidden]):
        await assert_refused(repository, forged(entries), place, "begins with an entry|bytes follow its data")


@pytest.mark.slow
@pytest.mark.parametrize("gap", [b"\0", b"garbage", b"PK\7\10", bytes(200_000)])
async def test_garbage_between_entries(repository: LocalRepository, place: Path, gap: bytes) -> None:
    """There are bytes that belong to no entry."""
    archive = forged([HONEST._replace(gap=gap), Forged("b", b"")])
    await assert_refused(repository, archive, place, "bytes follow its data|belong to no entry")


@pytest.mark.parametrize("is_deflated", [False, True])
async def test_descriptor_that_lies(
    repository: LocalRepository,
    place: Path,
    is_deflated: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """The descriptor differs from the central directory, for entries that are written in order and for others."""
    content = b"content " * 40
    data = deflated(content) if is_deflated else content
    descriptor = struct.pack("<4s3I", b"PK\7\10", zlib.crc32(content), len(data), len(content) + 1)
    archive = forged([HONEST, Forged("a", content, deflated=is_deflated, flags=FLAG_DESCRIPTOR, descriptor=descriptor)])
    await assert_refused(repository, archive, place, "the descriptor")
    await assert_refused(repository, archive, place, "the descriptor", options=TransferOptions(gather_limit=0))


async def test_bytes_behind_the_deflated_data(repository: LocalRepository, place: Path) -> None:
    """Bytes are hidden after the end of a stream, or the stream has no end."""
    content = bytes(range(256)) * 4
    for data, reason in (
        (deflated(content) + b"hidden", "bytes follow the end of its data"),
        (deflated(content)[:-3], "too early"),
        (b"\xff", "inflated"),
    ):
        entry = Forged("a", content, data=data, deflated=True)
        await assert_refused(repository, forged([HONEST, entry]), place, reason)


@pytest.mark.slow
async def test_name_of_65535_bytes(repository: LocalRepository, place: Path) -> None:
    """A name is longer than any path, or longer than any file system allows. The message is shorter."""
    await assert_refused(
        repository, forged([HONEST, Forged("n" * 65535, b"")]), place, "the size of the name", error=LimitExceeded
    )
    for name in ("n" * 256, "folder/" + "n" * 4000, "n" * 300 + "/file"):
        archive = forged([HONEST, Forged(name, b"content" * 20)])
        await assert_refused(repository, archive, place, "the entry '(folder/)?nnn.*cannot be made there", error=TargetError)


async def test_comment_that_holds_another_end(repository: LocalRepository, place: Path) -> None:
    """The comment contains another archive."""
    other = forged([Forged("other", b"evil")])
    await assert_refused(repository, forged([HONEST], comment=other + b"!"), place, "another one")


async def test_longest_comment(repository: LocalRepository, place: Path) -> None:
    """A comment of 65,535 bytes is allowed."""
    record = await stored(repository, forged([HONEST], comment=b"c" * 65535), chunk_size=5000)
    await fetch_tree(repository, record, target=place / "target")
    assert {"honest.txt": HONEST.content} == standing(place / "target")


@pytest.mark.slow
async def test_truncated_at_every_byte(repository: LocalRepository, place: Path) -> None:
    """An archive that lacks bytes at its end or start is refused, always with an error of filestore."""
    archive = forged([HONEST, Forged("f/", mode=0o40755), Forged("b", b"b" * 99, deflated=True)], comment=b"a comment")
    before = seen(place)
    for size in range(len(archive)):
        for part in (archive[:size], archive[len(archive) - size :]):
            with pytest.raises(InvalidArchive):
                await fetch_tree(repository, await stored(repository, part), target=place / "target")
    assert before == seen(place)

    await fetch_tree(repository, await stored(repository, archive), target=place / "target")
    assert {"honest.txt": HONEST.content, "f": Folder(), "b": b"b" * 99} == standing(place / "target")


async def test_not_a_zip_file(repository: LocalRepository, place: Path) -> None:
    """One sentence has the name of the record, and says what to do."""
    before = seen(place)
    for content in (b"", b"PK", bytes(100_000), b"#!/bin/sh\n" * 10_000):
        record = await stored(repository, content, name="model.bin", chunk_size=9999)
        with pytest.raises(NotAnArchive) as caught:
            await fetch_tree(repository, record, target=place / "target")
        assert str(caught.value).startswith("'model.bin' cannot be unpacked: it has no end record; it is not a zip file")
        assert str(caught.value).endswith("; fetch it as a single file")
        assert before == seen(place)
