"""Open an object store in a bucket of Ceph's gateway, without an index: which object is which is in memory."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from filestore.core.digest import Buffer, Digest
from filestore.core.object_names import NO_OBJECT_ID, FrameObject, ObjectName
from filestore.repository.stores.protocol import Staging
from filestore.repository.stores.s3 import S3Store, open_store_of
from filestore.repository.stores.s3_client import RETRY_SECONDS, S3Client
from filestore.repository.stores.s3_credentials import CredentialsFile
from filestore.repository.stores.s3_location import parse_location
from filestore.repository.stores.s3_staging import S3Placement, S3Staging, staged_here
from tests.support.ceph import Bucket

_Key = tuple[str, Digest]


class MemoryObjects:
    """Which object is the frame or the manifest with a digest."""

    def __init__(self) -> None:
        self.frames: dict[_Key, FrameObject] = {}
        self.manifests: dict[_Key, bytes] = {}
        self.asked = 0
        """How often it was asked."""

    async def frame_objects(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, FrameObject]:
        self.asked += 1
        return {digest: self.frames[namespace, digest] for digest in digests if (namespace, digest) in self.frames}

    async def manifest_object(self, namespace: str, digest: Digest) -> bytes | None:
        return self.manifests.get((namespace, digest))

    async def unnamed_frames(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        named = {ObjectName(digest, found.object_id) for (kept, digest), found in self.frames.items() if kept == namespace}
        return [name for name in names if name not in named]

    async def unnamed_manifests(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        return [name for name in names if self.manifests.get((namespace, name.digest)) != name.object_id]


class _IndexedPlacement(S3Placement):
    """Frames whose rows are in memory."""

    def __init__(
        self, where: str, frames: dict[_Key, FrameObject], namespace: str, staged: Sequence[tuple[Digest, S3Staging]]
    ) -> None:
        super().__init__(where, staged)
        self._frames = frames
        self._namespace = namespace
        self._indexed = staged

    def rename(self, digests: Container[Digest]) -> None:
        super().rename(digests)
        for digest, staging in self._indexed:
            if digest in digests:
                self._frames[self._namespace, digest] = FrameObject(staging.object_id, staging.size)


class IndexedStore(S3Store):
    """A store with an index in memory, which it keeps up to date as a repository does.

    So it does by itself what the callers of an object store do in transactions.
    """

    objects: MemoryObjects

    def placement(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> _IndexedPlacement:
        return _IndexedPlacement(str(self.client.location), self.objects.frames, namespace, staged_here(staged))

    async def remove(self, namespace: str, names: Sequence[ObjectName]) -> None:
        removed = []
        for name in names:
            found = self.objects.frames.get((namespace, name.digest))
            if found is not None and name.object_id in (NO_OBJECT_ID, found.object_id):
                del self.objects.frames[namespace, name.digest]
                removed.append(ObjectName(name.digest, found.object_id))
        await super().remove(namespace, [*removed, *(name for name in names if name.object_id)])

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> bytes:
        object_id = await super().put_manifest(namespace, digest, encoded)
        kept = self.objects.manifests.setdefault((namespace, digest), object_id)
        if kept != object_id:
            await super().remove_manifest(namespace, ObjectName(digest, object_id))
        return kept

    async def remove_manifest(self, namespace: str, name: ObjectName) -> None:
        object_id = self.objects.manifests.pop((namespace, name.digest), None)
        if object_id is not None:
            await super().remove_manifest(namespace, ObjectName(name.digest, object_id))


def credentials_file(bucket: Bucket, folder: Path) -> CredentialsFile:
    """Write the credentials of a bucket to a file in a folder."""
    path = folder / "credentials"
    keys = bucket.credentials
    path.write_text(f"[default]\naws_access_key_id = {keys.access_key}\naws_secret_access_key = {keys.secret_key}\n")
    return CredentialsFile(path)


def client_of(
    bucket: Bucket, folder: Path, *, prefix: str = "models/one", endpoint: str | None = None, retry_seconds: float = RETRY_SECONDS
) -> S3Client:
    """Return a client for a prefix of a bucket, with its credentials in a file of `folder`."""
    location = parse_location(bucket.location(prefix, endpoint=endpoint))
    return S3Client(location, credentials=credentials_file(bucket, folder), retry_seconds=retry_seconds)


async def open_indexed_store(
    bucket: Bucket, folder: Path, *, client: S3Client | None = None, min_free: int | None = None
) -> IndexedStore:
    """Open an empty store in a bucket. What it keeps on the disk is below `folder`."""
    objects = MemoryObjects()
    opened = await open_store_of(client or client_of(bucket, folder), objects, scratch=folder / "store", min_free=min_free)
    store = IndexedStore(opened.client, objects, opened._scratch, folder=opened._folder)
    store.objects = objects
    return store
