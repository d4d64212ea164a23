"""Chunks that clients want to be verified again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from filestore.core.digest import Digest
from filestore.errors import Busy
from filestore.http.server.rechecks import KEPT_COUNT, KEPT_SECONDS, WAITING_COUNT, Rechecks
from filestore.repository.local import LocalRepository
from tests.support.clock import Clock
from tests.support.frames import frames


async def check(
    rechecks: Rechecks, repository: LocalRepository, digests: Sequence[Digest], *, check_client: Callable[[], object] = bool
) -> list[Digest]:
    """What a request does."""
    async with rechecks.turn(repository.namespace):
        return await rechecks.damaged(repository, digests, check_client=check_client)


@pytest.fixture
def read(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """The chunks that were verified."""
    read: list[Digest] = []
    verify = repository.verify_chunks

    async def noted(digests: Sequence[Digest]) -> list[Digest]:
        read.extend(digests)
        return await verify(digests)

    monkeypatch.setattr(repository, "verify_chunks", noted)
    return read


async def test_an_intact_chunk_is_not_read_again_for_a_minute(repository: LocalRepository, read: list[Digest]) -> None:
    """After that it is. A chunk asked for twice is read once."""
    clock = Clock()
    rechecks = Rechecks(wait_seconds=60, clock=clock)
    sent = frames(3)
    await repository.put(sent)
    digests = [frame.digest for frame in sent]
    for _ in range(2):
        assert [] == await check(rechecks, repository, digests * 2)
    assert digests == read
    clock.now += KEPT_SECONDS + 1
    assert [] == await check(rechecks, repository, digests)
    assert digests * 2 == read


async def test_what_is_remembered_is_limited(repository: LocalRepository) -> None:
    """A client that asks for ever more chunks fills no memory."""
    rechecks = Rechecks(wait_seconds=60)
    asked = [Digest(number.to_bytes(32, "big")) for number in range(KEPT_COUNT + 100)]
    await check(rechecks, repository, asked)
    assert KEPT_COUNT >= len(rechecks._intact)


async def test_a_namespace_has_one_check_at_a_time(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few others wait, more are refused, and none is forgotten."""
    rechecks = Rechecks(wait_seconds=60)
    go_on = asyncio.Event()
    checking = most = 0

    async def verify(_: Sequence[Digest]) -> list[Digest]:
        nonlocal checking, most
        checking += 1
        most = max(most, checking)
        await go_on.wait()
        checking -= 1
        return []

    monkeypatch.setattr(repository, "verify_chunks", verify)
    asked = [
        asyncio.create_task(check(rechecks, repository, [Digest(bytes([number]) * 32)])) for number in range(WAITING_COUNT + 1)
    ]
    while not checking:
        await asyncio.sleep(0)
    with pytest.raises(Busy):
        await check(rechecks, repository, [Digest(bytes(32))])
    go_on.set()
    assert [[]] * len(asked) == await asyncio.gather(*asked)
    assert 1 == most
    assert not rechecks._turns


async def test_a_check_that_waits_too_long_is_refused(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in progress goes on."""
    rechecks = Rechecks(wait_seconds=0.01)
    go_on = asyncio.Event()

    async def verify(_: Sequence[Digest]) -> list[Digest]:
        await go_on.wait()
        return []

    monkeypatch.setattr(repository, "verify_chunks", verify)
    first = asyncio.create_task(check(rechecks, repository, [Digest(bytes(32))]))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await check(rechecks, repository, [Digest(bytes(32))])
    go_on.set()
    assert [] == await first


async def test_a_check_ends_when_its_client_is_gone(repository: LocalRepository, read: list[Digest]) -> None:
    """The rest is not read."""
    rechecks = Rechecks(wait_seconds=60)

    def gone_later() -> None:
        if read:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await check(rechecks, repository, [Digest(number.to_bytes(32, "big")) for number in range(4096)], check_client=gone_later)
    assert len(read) < 100
