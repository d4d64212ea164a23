"""How long a content of an upstream counts as used."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from filestore.core.names import UPSTREAM_NAMESPACE
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.memory import MemoryStore
from filestore.upstream.contents import Contents, WantedContent
from filestore.upstream.hub import Hub
from filestore.upstream.listing import UpstreamFile
from filestore.upstream.options import UpstreamOptions

FILE = UpstreamFile(5, "0" * 40, None)
WANTED = WantedContent("models", "team/m", "0" * 40, "a", FILE, is_open=True)


async def test_a_use_that_lasts(tmp_path: Path) -> None:
    """While a content is sent, its use is noted again and again, so that it is not the oldest one."""
    index = await open_index(tmp_path / "index.sqlite")
    repository = LocalRepository(MemoryStore(), index, location="memory", namespace=UPSTREAM_NAMESPACE)
    hub = Hub(UpstreamOptions(url="http://127.0.0.1:9"), tmp_path)
    contents = Contents(tmp_path, repository, hub, size_limit=None, use_seconds=0)
    place = tmp_path / "contents" / WANTED.id
    place.parent.mkdir()
    place.write_text('{"digest": "' + "0" * 64 + '", "record": "file_' + "0" * 32 + '"}')
    os.utime(place, (1, 1))
    async with contents.using(WANTED):
        while place.stat().st_mtime == 1:
            await asyncio.sleep(0)
    await index.close()


def test_who_may_read_is_part_of_the_id() -> None:
    """A content of a private repository has another id than the same one of an open repository, or of another private one."""
    closed = WANTED._replace(is_open=False)
    others = [WANTED, WANTED._replace(name="team/other", commit="1" * 40, path="b"), closed, closed._replace(name="team/other")]
    ids = [each.id for each in others]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
