"""LFS objects that arrived, and are not committed yet."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from filestore.core.content_digests import ContentHasher
from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import ObjectMismatch
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.zip.checksum import crc32
from filestore.http.server.lfs_objects import ContentSums, LfsObject, LfsObjects, expire_objects

CONTENT = b"the content of a file"
SHA256 = hashlib.sha256(CONTENT).digest()
MANIFEST = Manifest.build([Chunk(chunk_digest(CONTENT), len(CONTENT))], chunking_version=CHUNKING_VERSION)


@pytest.fixture
def arrived() -> LfsObject:
    """An object whose bytes were checked."""
    sums = ContentSums(SHA256, len(CONTENT))
    for place in range(len(CONTENT)):
        sums.add(CONTENT[place : place + 1])
    return sums.checked_object(MANIFEST.digest)


@pytest.fixture
def objects(tmp_path: Path, arrived: LfsObject) -> LfsObjects:
    """Those of a namespace, with one object."""
    objects = LfsObjects(tmp_path / "spool" / "uploads", "mine")
    objects.keep(arrived, MANIFEST.encoded)
    return objects


def test_what_is_kept(objects: LfsObjects, arrived: LfsObject) -> None:
    """All digests are those of the bytes."""
    hasher = ContentHasher(len(CONTENT))
    hasher.update(CONTENT)
    assert LfsObject(SHA256, MANIFEST.digest, len(CONTENT), hasher.digests().blob_id, crc32(CONTENT)) == arrived
    assert arrived == objects.find(SHA256)
    assert (arrived, MANIFEST) == objects.find_with_manifest(SHA256)


def test_what_is_not_kept(objects: LfsObjects, tmp_path: Path) -> None:
    """Another object, and another namespace."""
    other = LfsObjects(tmp_path / "spool" / "uploads", "other")
    assert (None, None) == (objects.find(bytes(32)), objects.find_with_manifest(bytes(32)))
    assert (None, None) == (other.find(SHA256), other.find_with_manifest(SHA256))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]\n",
        b"\xff",
        b'{"digest": "x", "size": 1, "crc": 0, "blob_id": ""}',
        b'{"digest": 1, "size": -1, "crc": 1e9, "blob_id": 7}',
    ],
)
def test_a_file_that_is_damaged(objects: LfsObjects, tmp_path: Path, text: bytes) -> None:
    """It is nothing."""
    (tmp_path / "spool" / "uploads" / "objects-mine" / SHA256.hex()).write_bytes(text)
    assert (None, None) == (objects.find(SHA256), objects.find_with_manifest(SHA256))


def test_a_manifest_that_is_damaged(objects: LfsObjects, arrived: LfsObject) -> None:
    """The object is not found with it."""
    objects.keep(arrived, MANIFEST.encoded[:-1])
    assert objects.find_with_manifest(SHA256) is None
    objects.keep(arrived._replace(size=1), MANIFEST.encoded)
    assert objects.find_with_manifest(SHA256) is None


def test_objects_expire(objects: LfsObjects, tmp_path: Path) -> None:
    """Only those that arrived long ago, and nothing else in the folder."""
    folders = tmp_path / "spool" / "uploads"
    folder = folders / "objects-mine"
    (folder / "something-else").touch()
    expire_objects(folders, idle_seconds=1000)
    assert objects.find(SHA256) is not None
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    expire_objects(folders, idle_seconds=1000)
    assert ["something-else"] == [path.name for path in folder.iterdir()]
    assert objects.find(SHA256) is None


@pytest.mark.parametrize("content", [CONTENT[:-1], b"x" + CONTENT[1:], b""])
def test_other_bytes(content: bytes) -> None:
    """They are refused, with what they are."""
    sums = ContentSums(SHA256, len(CONTENT))
    sums.add(content)
    with pytest.raises(ObjectMismatch, match=SHA256.hex()):
        sums.check()


def test_more_bytes() -> None:
    """They are refused at once."""
    with pytest.raises(ObjectMismatch, match="more than"):
        ContentSums(SHA256, len(CONTENT)).add(CONTENT + b"x")
