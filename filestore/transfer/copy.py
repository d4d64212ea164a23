"""Copy stored files from one repository to another one: frames move as they are, without decoding and without a local file.

The frames of a batch are received into one buffer, and put from it. The target verifies each of them (I4), so a source that is
damaged, or lies, can make no record. Several batches are under way at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from filestore.core.batches import batched_by_size
from filestore.core.commits import COMMIT_ATTEMPTS, COMMITS_LIMIT, Commit, LabelKind, NewCommit, checked_new_commit
from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.names import checked_new_full_name
from filestore.core.progress import Progress, Report, without_repeats
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import ChunksMissing, InvalidFrame, InvalidInput, LabelExists, LimitExceeded, NotFound, ServerError
from filestore.format.codec import Frame, frame_limit
from filestore.repository.protocol import Moved, Repository, Wanted, checked_repository, find_record, whole_reference_of
from filestore.system.buffers import BufferPool
from filestore.system.threads import in_cpu_thread, task_group
from filestore.transfer.receive_batch import BatchReceiver, verified

BATCHES_IN_FLIGHT = 4
"""One batch is received, another one is sent, and two more hide the time between requests. Each has a buffer."""
BATCH_SIZE = 16 << 20
_BATCH_COUNT = 4096
_ASKED_AT_ONCE = 1 << 14
"""Chunks that the target is asked about in one request. Those of one question are all sent before the next question."""
_HISTORY_PAGE = 1000


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy did.

    record: The newest record at the target that the copy is about.
    bytes_sent: Bytes that were sent to the target: frames as they are stored.
    bytes_shared: Bytes of content that were not sent, because the target had them.
    version_count: The versions that the copy has committed. With `all_versions` it is 0 if the target had all of them.
    tag_count: The tags that were set.
    seconds: How long the copy took.
    """

    record: Record
    bytes_sent: int
    bytes_shared: int
    version_count: int
    tag_count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a copy would do.

    record: The newest record at the source that the copy is about.
    name: The name that it would have at the target, with its owner.
    size: Bytes of content of all versions that would be committed.
    bytes_new: Bytes of content that the copy would send, before encoding.
    bytes_shared: Bytes of content that the target has.
    version_count: The versions that would be committed.
    seconds: How long the plan took.
    """

    record: Record
    name: str
    size: int
    bytes_new: int
    bytes_shared: int
    version_count: int
    seconds: float


async def copy(
    repository: Repository,
    wanted: Wanted,
    *,
    to: Repository | None = None,
    name: str | None = None,
    message: str | None = None,
    author: str = "",
    all_versions: bool = False,
    report: Report | None = None,
) -> CopyResult:
    """Copy a stored file or directory to another repository, and send only the chunks that are missing there.

    >>> await copy(repository, "team/my_model@v2", to=backup)
    >>> await copy(repository, "my_model", name="my_model-stable")

    Frames are sent as they are stored: nothing is decoded here, and nothing is written to a disk of this machine.

    repository: where the file is stored.
    wanted: what to copy, without a path inside a directory. A name means its newest version.
    to: where it is copied to. None means the same repository: then the version gets one more name, and nothing is sent. Where
        that is its own name, this version becomes the newest one again.
    name: the name of the new record. None means that it keeps its name and its owner.
    message: what the commit says. None means the message of the commit that is copied.
    author: who the commit is by. A server takes the label of the token instead.
    all_versions: copy all versions of the name on its branch `main`, the oldest first, with their messages and tags. Versions
        with which the history at the target ends already are not copied again.
    report: called with a `Progress` at each step, in the thread of the event loop.

    Idempotent: a second call sends nothing. After an interruption, only the rest is sent.

    Cost: the bytes of missing frames, once received and once sent. Memory is about 64 MiB, whatever the size.

    Cancellation: nothing is recorded. The chunks that were sent stay, and the next copy does not send them again.

    Raises InvalidReference or NotFound where `wanted` names nothing; DamagedChunk or ChunksMissing where `repository` has lost a
    part of it; InvalidFrame where `to` does not know how a chunk is encoded; InvalidInput where another argument is wrong;
    LabelExists where a tag is at another version there; InvalidName, OwnerTaken, LimitExceeded, ReadOnly, StorageFull,
    StorageError, Busy, Unauthorized or TransferError where a repository refuses or cannot be reached.
    """
    started = time.monotonic()
    task = await _task(repository, wanted, to, name=name, message=message, author=author, all_versions=all_versions)
    copying = _Copier(repository, task.target, report=report, total=task.size, is_dry=False)
    record = task.record
    for step in task.steps:
        record = await copying.copy_version(step, name=task.name)
    if not task.steps:
        record = await task.target.record(Reference.of_name(task.name))
    tag_count = await _copy_tags(repository, task) if all_versions else 0
    return CopyResult(record, copying.moved, copying.shared, len(task.steps), tag_count, time.monotonic() - started)


async def plan_copy(
    repository: Repository,
    wanted: Wanted,
    *,
    to: Repository | None = None,
    name: str | None = None,
    all_versions: bool = False,
    report: Report | None = None,
) -> CopyPlan:
    """Tell what a copy would send. This is the dry run of `copy`: it sends and records nothing.

    >>> plan = await plan_copy(repository, "team/my_model@v2", to=backup)
    >>> print(f"{plan.bytes_new} of {plan.size} bytes are new")

    The arguments are those of `copy`. Cost: it reads manifests, and asks the target which chunks it does not have.

    Raises what `copy` raises, except what only a write can raise.
    """
    started = time.monotonic()
    task = await _task(repository, wanted, to, name=name, message="", author="", all_versions=all_versions)
    planning = _Copier(repository, task.target, report=report, total=task.size, is_dry=True)
    for step in task.steps:
        await planning.send(await planning.manifest(step))
    seconds = time.monotonic() - started
    return CopyPlan(task.record, task.name, task.size, planning.sent, planning.shared, len(task.steps), seconds)


@dataclass(frozen=True, slots=True)
class _Step:
    """One version to copy, and what its commit says."""

    record: Record | Commit
    new: NewCommit


@dataclass(frozen=True, slots=True)
class _Task:
    """What is copied: the versions in the order of their commits."""

    target: Repository
    record: Record
    """The newest of them, as the source has it."""
    name: str
    """The name at the target."""
    steps: list[_Step]
    commits: list[Commit] = field(default_factory=list)
    """With all versions: the history at the source, the oldest commit first."""

    @property
    def size(self) -> int:
        return sum(step.record.size for step in self.steps)


async def _task(
    source: Repository,
    wanted: Wanted,
    to: Repository | None,
    *,
    name: str | None,
    message: str | None,
    author: str,
    all_versions: bool,
) -> _Task:
    """Find what is to be copied, and check all that can be checked before content is sent."""
    target = checked_repository(source if to is None else to)
    reference = whole_reference_of(wanted)
    if all_versions and (message or reference.revision is not None):
        raise InvalidInput("all versions are copied with their own messages; give neither a revision nor a message")
    record = await find_record(source, wanted)
    kept_name = checked_new_full_name(record.full_name if name is None else name)
    checked_new_commit(NewCommit(message or "", author))
    if all_versions:
        if to is None and kept_name == record.full_name:
            raise InvalidInput("all versions of this name are in this repository already; give another name or repository")
        commits = await _history(source, record.full_name)
        known = len(await _known(target, kept_name, commits))
        steps = [_Step(each, NewCommit(each.message, author)) for each in commits[known:]]
        task = _Task(target, record, kept_name, steps, commits)
    else:
        said = await _message_of(source, record, reference) if message is None else message
        task = _Task(target, record, kept_name, [_Step(record, NewCommit(said, author))])
    if "/" in kept_name:
        # Only such a name can be refused for what the target knows, and a question costs a round trip.
        await target.check_new_name(kept_name)
    limit = (await target.identity()).upload_limit
    for step in task.steps:
        if limit is not None and step.record.size > limit:
            raise LimitExceeded("the file's size in bytes", step.record.size, limit, "upload_limit")
    return task


async def _history(repository: Repository, name: str) -> list[Commit]:
    """Return all commits of `main`, the oldest first. Raises LimitExceeded if there are more than a name keeps."""
    commits: list[Commit] = []
    before = None
    while page := await repository.history(name, limit=_HISTORY_PAGE, before=before):
        commits += page
        before = page[-1].number
        if len(commits) > COMMITS_LIMIT:  # a server could list them without end
            raise LimitExceeded(f"the number of versions at {repository.location}", len(commits), COMMITS_LIMIT)
        if len(page) < _HISTORY_PAGE:
            break
    return commits[::-1]


async def _known(target: Repository, name: str, commits: Sequence[Commit]) -> list[Commit]:
    """Return the commits at the target that are copies of the first ones of `commits`: those with which its history ends.

    So a copy that was interrupted continues, and a later one adds only what is new at the source.
    """
    try:
        there = await _history(target, name)
    except NotFound:
        return []
    wanted, found = [_said(commit) for commit in commits], [_said(commit) for commit in there]
    for length in range(min(len(wanted), len(found)), 0, -1):
        if found[len(found) - length] == wanted[0] and found[len(found) - length :] == wanted[:length]:
            return there[len(there) - length :]
    return []


def _said(commit: Commit) -> tuple[Digest, str, str]:
    """Return what a copy of a commit has in common with it."""
    return commit.digest, commit.kind.value, commit.message


async def _message_of(source: Repository, record: Record, reference: Reference) -> str:
    """Return the message of the commit that stored a record. It is empty where that is not known."""
    name = record.full_name
    try:
        commit = await source.find_commit(name, reference.revision if reference.name is not None else None)
        if commit.file_id == record.id:
            return commit.message
        page = await source.history(name, limit=_HISTORY_PAGE)
    except (NotFound, ServerError):
        # An earlier version of the server has no commits, and a name with "@" cannot be asked for.
        return ""
    return next((commit.message for commit in page if commit.file_id == record.id), "")


async def _copy_tags(source: Repository, task: _Task) -> int:
    """Set the tags of the copied commits at the target. Return how many were not there. Raises LabelExists."""
    copies = await _known(task.target, task.name, task.commits)
    # A prefix: somebody may have committed something else meanwhile.
    by_source = {commit.id: copy for commit, copy in zip(task.commits, copies, strict=False)}
    there = {label.name: label for label in await task.target.labels(task.name)}
    tag_count = 0
    for label in await source.labels(task.record.full_name):
        copied = by_source.get(label.commit_id)
        if label.kind is not LabelKind.TAG or copied is None:
            continue
        found = there.get(label.name)
        if found is None:
            await task.target.set_label(task.name, label.name, revision=copied.id)
            tag_count += 1
        elif found.commit_id != copied.id:
            raise LabelExists(task.name, label.name, found.commit_id)
    return tag_count


class _Copier:
    """Sends what versions need from a source to a target, and commits them there."""

    def __init__(self, source: Repository, target: Repository, *, report: Report | None, total: int, is_dry: bool) -> None:
        self._source = source
        self._target = target
        self._report = report and without_repeats(report)
        self._total = total
        self._is_dry = is_dry
        self._received = BatchReceiver(source, moved=_ignore)
        self._buffers = BufferPool(count=BATCHES_IN_FLIGHT, size=BATCH_SIZE)
        self.moved = 0
        """Bytes of the frames that were sent."""
        self.sent = 0
        """Bytes of their content, or with `is_dry` of the content that would be sent."""
        self._finished = self._under_way = self._done = 0
        self._planned: set[Digest] = set()
        """With `is_dry`, what an earlier version would have sent."""

    @property
    def shared(self) -> int:
        """Bytes of content that were there."""
        return max(0, self._finished - self.sent)

    async def manifest(self, step: _Step) -> Manifest:
        """Return the verified manifest of a version."""
        return await in_cpu_thread(Manifest.parse, await self._source.manifest(step.record.digest))

    async def copy_version(self, step: _Step, *, name: str) -> Record:
        """Send what is missing, and commit. Raises what `copy` raises."""
        manifest = await self.manifest(step)
        before = self._finished
        for attempt in count(1):
            self._finished = before
            await self.send(manifest)
            try:
                return await self._target.commit(manifest.encoded, name=name, kind=step.record.kind, commit=step.new)
            except ChunksMissing:
                # A chunk was lost, or collected, since the target was asked about it.
                if attempt == COMMIT_ATTEMPTS:
                    raise
        raise AssertionError

    async def send(self, manifest: Manifest) -> None:
        """Send the chunks of a manifest that the target does not have."""
        chunks = iter(manifest.chunks)
        while part := list(islice(chunks, _ASKED_AT_ONCE)):
            wanted = {chunk.digest: chunk for chunk in part}
            missing = await self._target.missing(list(wanted))
            # I4: a target says this, and may name others.
            lacking = [wanted[digest] for digest in missing if digest in wanted and digest not in self._planned]
            size = sum(chunk.size for chunk in lacking)
            self._finished += sum(chunk.size for chunk in part) - size
            self._tell()
            if self._is_dry:
                self._planned.update(chunk.digest for chunk in lacking)
                self._note_sent(size)
            else:
                await self._send_all(lacking)

    async def _send_all(self, chunks: Sequence[Chunk]) -> None:
        batches = batched_by_size(chunks, lambda chunk: frame_limit(chunk.size), limit=BATCH_SIZE, count_limit=_BATCH_COUNT)
        async with task_group() as group:
            for _ in range(BATCHES_IN_FLIGHT):
                group.create_task(self._send_batches(batches))

    async def _send_batches(self, batches: Iterator[list[Chunk]]) -> None:
        for batch in batches:
            async with self._buffers.take() as buffer:
                moved = await self._send_batch(batch, buffer)
            self._under_way -= moved
            self._note_sent(sum(chunk.size for chunk in batch))

    async def _send_batch(self, batch: list[Chunk], buffer: memoryview) -> int:
        """Send one batch. Return how many bytes were moved for it."""
        moved = 0

        def count_moved(size: int) -> None:
            nonlocal moved
            moved += size
            self.moved += size
            self._under_way += size
            self._tell()

        try:
            await self._put(batch, await self._received.get(batch, buffer), count_moved)
        except InvalidFrame:
            # A bit may have flipped on the way: each frame that is still missing is received and sent once more.
            lacking = set(await self._target.missing([chunk.digest for chunk in batch]))
            for chunk in batch:
                if chunk.digest in lacking:
                    await self._send_again(chunk, buffer, count_moved)
        return moved

    async def _send_again(self, chunk: Chunk, buffer: memoryview, moved: Moved) -> None:
        """Send one chunk. Raises DamagedChunk if the source has damaged it, and InvalidFrame if the target does not know it."""
        frames = await self._received.get([chunk], buffer)
        try:
            await self._put([chunk], frames, moved)
        except InvalidFrame:
            async with self._received.mending([chunk.digest]):
                await in_cpu_thread(verified, chunk, frames[0])
            raise

    async def _put(self, chunks: Sequence[Chunk], frames: Sequence[memoryview], moved: Moved) -> None:
        named = [Frame(chunk.digest, frame) for chunk, frame in zip(chunks, frames, strict=True)]
        await self._target.put(named, moved=moved)

    def _note_sent(self, size: int) -> None:
        self.sent += size
        self._finished += size
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            # The bar does not move back when a retry starts again.
            self._done = max(self._done, min(self._total, self._finished + self._under_way))
            self._report(Progress(self._total, self._done, self.moved, self.shared, 0))


def _ignore(_: int) -> None:
    """Frames that arrive are counted when they are sent on."""
