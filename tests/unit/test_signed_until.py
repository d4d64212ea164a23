from __future__ import annotations

import time
from pathlib import Path

from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.memory import MemoryStore
from tests.support.fetching_trees import stored


async def test_a_signed_path_ends_no_later_than_its_token(tmp_path: Path) -> None:
    """Also if it is signed at the end of a long request. One that ends earlier than the token is not prolonged."""
    store, index = MemoryStore(), await open_index(tmp_path / "index.sqlite")
    until = int(time.time()) - 5
    late = LocalRepository(store, index, location="here", signed_until=until)
    record = await stored(late, b"content")
    assert until == expiry(await late.sign(record.id))
    early = LocalRepository(store, index, location="here", signed_seconds=60, signed_until=until + 86400)
    assert until + 60 <= expiry(await early.sign(record.id)) < until + 86400
    await late.close()


def expiry(path: str) -> int:
    """When a signed path ends, in seconds since 1970."""
    return int(path.split("/")[2])
