"""Processes that share the work of one large transfer.

    pool       the side of the process that transfers: starts worker processes, gives them jobs, ends them
    main       a worker process
    job        what both sides know of a job
    link       messages between two processes, with open files

One process runs Python in one thread at a time, so threads alone do not use many cores. A worker process does a part of the work
on bytes. It gets offsets, sizes, digests and open files, and never content. All decisions stay in the process that transfers.

Nothing is forked from a process that has threads: a new process imports what all need, forks, and then starts threads.
"""

from filestore.transfer.workers.job import Job, Worker
from filestore.transfer.workers.pool import WorkerPool, usage, worker_pool

__all__ = ["Job", "Worker", "WorkerPool", "usage", "worker_pool"]
