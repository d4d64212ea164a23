"""The waiting times of a cache, its clock, and the sizes of its fetches.

The defaults suit any machine. Only tests give other values. So this is internal, as are `TransferOptions` and
`DownloadOptions`: programs leave the argument `options` out, and `filestore` does not export these classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from filestore.cache.leases import LOCK_SECONDS
from filestore.cache.quota import SETTLE_SECONDS, STALL_SECONDS
from filestore.download.download import DEFAULT_DOWNLOAD_OPTIONS, DownloadOptions
from filestore.system.locks import BEAT_SECONDS
from filestore.transfer.schedule import DEFAULT_OPTIONS, TransferOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """Internal. What a cache uses as it is, without a setting. Processes that share a cache may have other values."""

    stall_seconds: float = STALL_SECONDS
    """How long a reservation waits for other fetches that make no progress."""
    settle_seconds: float = SETTLE_SECONDS
    """How long a reservation waits if nobody fetches."""
    lock_seconds: float = LOCK_SECONDS
    """How long a lock is waited for that others hold for less than a millisecond."""
    beat_seconds: float = BEAT_SECONDS
    """The time between two signs of life of a process that makes an entry."""
    clock: Callable[[], float] = time.time
    """The time of day, in seconds, by which the age of the content of a URL is measured."""
    transfer: TransferOptions = DEFAULT_OPTIONS
    """The sizes of its fetches."""
    download: DownloadOptions = DEFAULT_DOWNLOAD_OPTIONS
    """The pauses and sizes of its downloads from URLs."""


DEFAULT_CACHE_OPTIONS = CacheOptions()
