"""Push content of unknown size that arrives once: the standard input, a pipe or a socket."""

from __future__ import annotations

from filestore.core.commits import MAIN, NewCommit, checked_new_commit
from filestore.core.names import checked_new_full_name
from filestore.core.progress import Report
from filestore.format.codec import Codec
from filestore.repository.protocol import Repository, checked_repository
from filestore.system.threads import disk_threads
from filestore.transfer.parallelism import limits_of, push_parallelism
from filestore.transfer.push import PushResult, check_at_repository, checked_codec, push_content
from filestore.transfer.sources.stream import StreamSource


async def push_stream(
    repository: Repository,
    descriptor: int,
    *,
    name: str,
    message: str = "",
    author: str = "",
    branch: str = MAIN,
    codec: Codec | str | None = None,
    report: Report | None = None,
    source_name: str = "the stream",
) -> PushResult:
    """Store what arrives at `descriptor` until its end as a file with the name `name`.

    >>> process = subprocess.Popen(["tar", "c", "my_model"], stdout=subprocess.PIPE)
    >>> result = await push_stream(repository, process.stdout.fileno(), name="my_model.tar")

    descriptor: a pipe, a socket or a file that is open for reading. The caller closes it. Nothing else reads it meanwhile.
    source_name: its name in errors.

    The other arguments are those of `push`. The file is the same as if the content were pushed from a file. A stream without any
    bytes is refused: what should have written it has most likely failed. Nobody can see whether a stream has ended too early.

    Cost: each byte is read, cut and hashed once, while it arrives. Nothing is written to this machine's disk, and memory is
    bounded, whatever the size: about 100 MiB on two cores.

    Cancellation: nothing is recorded. The chunks that were sent stay, so the next push of the same content does not send them
    again.

    Raises SourceUnreadable where nothing arrives, where the stream cannot be read, or where the repository has lost a part of it
    before the end; and what `push` raises for its arguments and for the repository.
    """
    chosen = checked_codec(codec)
    commit = checked_new_commit(NewCommit(message, author, branch))
    kept_name = checked_new_full_name(name)
    identity = await checked_repository(repository).identity()
    await check_at_repository(repository, kept_name, branch=branch)
    with StreamSource(
        descriptor, source_name, chunking_version=identity.chunking_version, size_limit=identity.upload_limit
    ) as source:
        return await push_content(
            repository,
            source,
            name=kept_name,
            commit=commit,
            codec=chosen,
            report=report,
            # No worker process can read it.
            parallelism=push_parallelism(0, limits_of(repository)),
            # It waits for whoever writes, which must not keep the threads of other work.
            threads=disk_threads(),
        )
