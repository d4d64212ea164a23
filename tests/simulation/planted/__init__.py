"""Ten known faults, each of which the simulation must find. A module tells what prevents its fault today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from tests.simulation.planted import (
    collection_without_second_look,
    index_opened_beside_sqlite,
    lease_without_process,
    lost_last_seen,
    rename_without_sync,
    retry_that_doubles,
    row_before_frame,
    seed_trusted,
    staging_published_by_size,
    tombstone_ignored,
)

FAULTS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    module.__name__.rpartition(".")[2]: module.planted
    for module in (
        collection_without_second_look,
        index_opened_beside_sqlite,
        lease_without_process,
        lost_last_seen,
        rename_without_sync,
        retry_that_doubles,
        row_before_frame,
        seed_trusted,
        staging_published_by_size,
        tombstone_ignored,
    )
}
"""The faults by their names. The value is a context manager that brings the fault back."""
