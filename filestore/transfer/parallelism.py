"""Decide how much of a transfer runs at the same time, by cores and by memory.

Figures and reasons: `docs/design.md`, "Windows, batches and memory".
"""

from __future__ import annotations

from typing import NamedTuple

from filestore.repository.protocol import BY_CORES, Repository, TransferLimits
from filestore.system.machine import core_count, memory_size

MIB = 1 << 20
LARGE_SIZE = 256 * MIB
"""Content of at least this size is a large transfer, for which worker processes start. They take 0.2 s until they are ready."""
MEMORY_OF_TWO_CORES = 300 * MIB
"""The default budget of a transfer on one or two cores."""
MEMORY_PER_CORE = 48 * MIB
"""What each further core adds to it."""
CORES_PER_PROCESS = 4
"""How many cores one process of Python keeps busy."""

LEAST_SLOT, MOST_SLOT = 16 * MIB, 32 * MIB
"""Bytes of each window or batch of a transfer that is large enough. Each is a request or two, which cost both ends about a
millisecond in their event loops."""
_SLOTS_WANTED = 32
"""A transfer has at least so many windows or batches, unless they would be smaller than the least. The first ones and the last
ones do not overlap with all the others, and each takes memory, which costs time when it is used first."""

_PROCESS_MEMORY = 50 * MIB
"""What a process takes before it moves anything."""
_FILE_MEMORY = 1 << 10
"""What it takes for each file of a directory."""
_WINDOW_MEMORY = 33 * MIB
"""A window, its frames, and its small objects."""
_CUT_MEMORY = 17 * MIB
"""A window without frames, for a further thread that cuts."""
_BATCH_MEMORY = 21 * MIB
"""The frames of a batch, and memory to decode a chunk."""
_LEAST_WINDOWS, _MOST_WINDOWS = 3, CORES_PER_PROCESS + 2
"""In one process. One window is read, the repository is asked about the second one, and the third one is encoded."""
_LEAST_BATCHES, _MOST_BATCHES = 4, 2 * CORES_PER_PROCESS
"""In one process."""


IN_A_SERVER = TransferLimits(processes=0, memory=_PROCESS_MEMORY + _LEAST_WINDOWS * _WINDOW_MEMORY)
"""The limits of a push that a server makes of an upload. Many clients share its cores and its memory (I6)."""


class Parallelism(NamedTuple):
    """How much of one transfer runs at the same time."""

    processes: int
    """Worker processes. 0 means that the process of the caller does everything."""
    slots: int
    """Windows, or batches, in flight in each process."""
    cutters: int = 1
    """Threads that read and cut a file whose structure is known."""
    own_slots: int = 0
    """Batches of a fetch in flight in the process of the caller while it has worker processes that are not ready yet."""
    slot_size: int = LEAST_SLOT
    """The most bytes of content of a window or a batch."""


def default_memory() -> int:
    """Return the budget in bytes of one transfer, for all its processes together.

    It is at most half of the memory of the machine or the container.
    """
    return min(MEMORY_OF_TWO_CORES + MEMORY_PER_CORE * max(0, core_count() - 2), memory_size() // 2)


def _budget(limits: TransferLimits) -> int:
    return default_memory() if limits.memory is None else limits.memory


def limits_of(repository: Repository) -> TransferLimits:
    """Return the limits of transfers with a repository. There are no worker processes if none of them can open it."""
    limits = repository.transfer_limits
    return limits if repository.opening() is not None else limits._replace(processes=0)


def push_parallelism(
    size: int, limits: TransferLimits = BY_CORES, *, large_size: int = LARGE_SIZE, file_count: int = 1
) -> Parallelism:
    """Return what a push of `size` bytes in `file_count` files may do at the same time.

    A budget of memory that is too small for the least that works is exceeded. Content of `large_size` bytes is a large transfer.
    """
    found = _parallelism(
        limits,
        is_large=size >= large_size,
        slot_memory=_WINDOW_MEMORY,
        least=_LEAST_WINDOWS,
        most=_MOST_WINDOWS,
        is_cut=True,
    )
    windows = max(found.slots, found.cutters)
    left = _left(limits, file_count) - found.slots * _WINDOW_MEMORY - (windows - found.slots) * _CUT_MEMORY
    return _with_larger_slots(found, size // _SLOTS_WANTED, left // (windows + found.slots))


def fetch_parallelism(
    size: int, limits: TransferLimits = BY_CORES, *, large_size: int = LARGE_SIZE, file_count: int = 1
) -> Parallelism:
    """Return what a fetch of `size` bytes may do at the same time. The arguments are those of `push_parallelism`."""
    found = _parallelism(
        limits,
        is_large=size >= large_size,
        slot_memory=_BATCH_MEMORY,
        least=_LEAST_BATCHES,
        most=_MOST_BATCHES,
        is_cut=False,
    )
    left = _left(limits, file_count) - found.slots * _BATCH_MEMORY
    return _with_larger_slots(found, size // _SLOTS_WANTED, left // found.slots)


def _left(limits: TransferLimits, file_count: int) -> int:
    """Return how many bytes of the budget one process has for what it moves."""
    return _budget(limits) - _PROCESS_MEMORY - file_count * _FILE_MEMORY


def _with_larger_slots(found: Parallelism, wanted: int, more: int) -> Parallelism:
    """Return `found` with windows or batches of `wanted` bytes, as far as the limits and `more` bytes for each permit.

    Worker processes use all the memory for more of them.
    """
    if found.processes:
        return found
    slot_size = max(LEAST_SLOT, min(wanted, MOST_SLOT, LEAST_SLOT + more))
    return found._replace(slot_size=slot_size // MIB * MIB)


def _parallelism(
    limits: TransferLimits,
    *,
    is_large: bool,
    slot_memory: int,
    least: int,
    most: int,
    is_cut: bool,
) -> Parallelism:
    cores = core_count()
    budget = _budget(limits) - _PROCESS_MEMORY
    wanted = cores // CORES_PER_PROCESS if limits.processes is None else limits.processes
    if limits.connections is not None:
        # The process of the caller needs one too.
        wanted = min(wanted, limits.connections - 1)
    cutters = max(1, cores // CORES_PER_PROCESS)
    by_cores = min(most, max(least, cores + 1))
    # The memory of the process of the caller while it works alone, which it does until the others are ready.
    own = least * slot_memory + (max(0, cutters - least) * _CUT_MEMORY if is_cut else 0)
    # By default, one worker process does no more than the process of the caller alone.
    fewest = 2 if limits.processes is None else 1
    for count in range(wanted if is_large else 0, fewest - 1, -1):
        left = budget - own - count * _PROCESS_MEMORY
        slots = min(most, left // (count * slot_memory))
        if slots >= 1:
            # Of content that cannot be divided, these cut for all. Until the others are ready, they are all there are.
            left -= slots * count * slot_memory
            if not is_cut:
                return Parallelism(count, slots, own_slots=min(by_cores, least + left // slot_memory))
            return Parallelism(count, slots, max(cutters, min(cores // 2, max(cutters, least) + left // _CUT_MEMORY)))
    slots = max(1, min(by_cores, budget // slot_memory))
    return Parallelism(0, slots, max(1, min(cores // CORES_PER_PROCESS, slots // 2)) if is_cut else 1)
