"""Edit stored trees, and apply the same operations to a tree that a push then reads from a disk."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from filestore.core.manifest import Manifest
from filestore.core.records import Kind
from filestore.repository.protocol import Repository
from filestore.transfer.edits import (
    CopyFile,
    DeleteFile,
    DeleteFolder,
    EditResult,
    Operation,
    PutBytes,
    TreeEdit,
)
from filestore.transfer.push import manifest_of, push
from filestore.transfer.stored_tree import StoredTree
from tests.support.trees import Folder, Link, Planted, Script, plant

Things = Mapping[str, Planted]
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


async def pushed_tree(repository: Repository, root: Path, things: Things) -> StoredTree:
    """Plant a tree, push it, and return it as a stored tree."""
    record = (await push(repository, plant(root, things), symlinks="keep")).record
    return await StoredTree.open(repository, record.digest)


async def stored_chunks(repository: Repository, file: Path, content: bytes) -> Manifest:
    """Push a file, and return its manifest."""
    file.write_bytes(content)
    return Manifest.parse(await repository.manifest((await push(repository, file)).record.digest))


async def edited(
    repository: Repository, old: StoredTree | None, operations: Sequence[Operation]
) -> tuple[EditResult, StoredTree]:
    """Edit a tree and record the result. Return what the edit did, and the new tree."""
    result = await TreeEdit(repository, old, operations).store()
    await repository.commit(result.manifest.encoded, name="edited.zip", kind=Kind.DIRECTORY)
    return result, await StoredTree.open(repository, result.manifest.digest)


async def pushed_manifest(root: Path, things: Things) -> Manifest:
    """Return the manifest that a push of a tree makes."""
    return await manifest_of(plant(root, things), symlinks="keep")


def after(things: Things, operations: Sequence[Operation], contents: Mapping[str, bytes]) -> dict[str, Planted]:
    """Return a tree after operations. `contents` has the contents of files that are put by their path or chunks."""
    left = dict(things)
    for operation in operations:
        path = operation.path.removesuffix("/")
        if isinstance(operation, DeleteFile):
            del left[path]
        elif isinstance(operation, DeleteFolder):
            left = {name: thing for name, thing in left.items() if name != path and not name.startswith(f"{path}/")}
    for operation in operations:
        path = operation.path
        if isinstance(operation, CopyFile):
            left[path] = things[operation.source_path]
        elif not isinstance(operation, (DeleteFile, DeleteFolder)):
            content = operation.content if isinstance(operation, PutBytes) else contents[path]
            is_executable = operation.is_executable
            if is_executable is None:
                is_executable = isinstance(things.get(path), Script)
            left[path] = Script(content) if is_executable else content
    return left


def foreign_zip(things: Things, random_: random.Random, *, methods: Sequence[int] = METHODS) -> bytes:
    """Return a zip file that another program made: in any order, with comments and folders, each packed by one of `methods`."""
    packed = io.BytesIO()
    names = list(things)
    random_.shuffle(names)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.comment = b"a comment"
        for folder in {name.rpartition("/")[0] for name in names} - {""}:
            archive.writestr(_info(f"{folder}/", 0o40755, random_, methods), b"")
        for name in names:
            match things[name]:
                case Folder():
                    archive.writestr(_info(f"{name}/", 0o40755, random_, methods), b"")
                case Link(target):
                    archive.writestr(_info(name, 0o120777, random_, methods), target)
                case Script(content):
                    archive.writestr(_info(name, 0o100755, random_, methods), content)
                case content:
                    archive.writestr(_info(name, 0o100644, random_, methods), content)
    return packed.getvalue()


def _info(name: str, mode: int, random_: random.Random, methods: Sequence[int]) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (2020, 1, random_.randrange(1, 28), 1, 2, 4))
    info.external_attr = mode << 16
    info.create_system = 3
    info.compress_type = random_.choice(methods)
    info.comment = b"entry" if random_.randrange(2) else b""
    return info
