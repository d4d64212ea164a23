"""Which peers there are: lists, and the addresses of a name."""

from __future__ import annotations

import asyncio
import os
import pickle

import pytest

from filestore.errors import InvalidSetting
from filestore.peers.addresses import LOOK_UP_SECONDS, SOONEST_SECONDS, NamedPeers, Peer, parse_peers
from filestore.peers.repository import PeerRepository
from tests.support.clock import Clock

A, B = Peer("10.0.0.1:8600", "http://10.0.0.1:8600"), Peer("10.0.0.2:8600", "http://10.0.0.2:8600")


class Names:
    """A name service whose answer the test sets. An answer of None is a failure."""

    def __init__(self, *answer: str) -> None:
        self.answer: list[str] | None = list(answer)
        self.asked = 0

    async def __call__(self, name: str, port: int) -> list[str]:
        assert ("caches.internal", 8600) == (name, port)
        self.asked += 1
        if self.answer is None:
            raise OSError("no answer")
        return self.answer


async def test_list() -> None:
    """A list is a list or one text. Its order means nothing, and a peer counts once."""
    several = Peer("[::1]:1", "https://[::1]:1")
    assert [A, B, several] == await parse_peers([B.url + "/", A.url, A.url, "https://[::1]:1"]).peers()
    assert [A, B] == await parse_peers(f"{B.url},{A.url}").peers()
    assert [A, B] == await parse_peers(f"{B.url} {A.url}").peers()


async def test_addresses_with_certificates() -> None:
    """Each is asked by https, and its certificate must have the name. Clients rank them as they do without certificates."""
    peers = parse_peers("DNS+https:///caches.internal:8600")
    assert isinstance(peers, NamedPeers)
    named = NamedPeers("caches.internal", 8600, scheme="https", look_up=Names("10.0.0.2", "10.0.0.1"), clock=Clock())
    expected = [Peer(each.address, f"https://{each.address}", "caches.internal") for each in (A, B)]
    assert expected == await named.peers()
    assert pickle.dumps(peers) == pickle.dumps(pickle.loads(pickle.dumps(peers)))
    assert pickle.dumps(peers) != pickle.dumps(parse_peers("dns:///caches.internal:8600"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dns+https:///caches",
        "dns+ftp:///caches:1",
        "10.0.0.1:8600",
        "http://10.0.0.1",
        "ftp://10.0.0.1:1",
        "http://user@host:1",
        "http://host:1/path",
        "http://host:99999",
        "dns:///caches",
        "dns:///caches:0",
        "dns:///caches:65536",
        "dns:///:1",
        "dns://server/caches:1",
        "http://host:1,dns:///caches:1",
    ],
)
def test_what_names_no_peers(text: str) -> None:
    """A text that names no peers is refused before anything is asked."""
    with pytest.raises(InvalidSetting, match="peers"):
        parse_peers(text)


@pytest.mark.parametrize("text", ["http://user:secret-word@host:1", "http://user:secret-word@host:port"])
def test_a_password_is_not_shown(text: str) -> None:
    """A message may be in a log."""
    with pytest.raises(InvalidSetting) as raised:
        parse_peers(text)
    assert "host" in str(raised.value)
    assert "secret-word" not in str(raised.value)


def test_empty_list() -> None:
    """Without peers, the option is left out."""
    with pytest.raises(InvalidSetting, match="peers"):
        parse_peers([])


async def test_addresses_of_a_name() -> None:
    """All addresses of a name are peers, IPv6 too, in one form and each once."""
    names = Names("10.0.0.2", "2001:DB8:0::1", "10.0.0.1", "10.0.0.1")
    six = Peer("[2001:db8::1]:8600", "http://[2001:db8::1]:8600")
    assert [A, B, six] == await NamedPeers("caches.internal", 8600, look_up=names).peers()


async def test_name_is_looked_up_again() -> None:
    """A name is looked up again after some time, and sooner after a failure. Meanwhile the earlier addresses are used."""
    clock, names = Clock(), Names("10.0.0.1")
    peers = NamedPeers("caches.internal", 8600, look_up=names, clock=clock)
    assert [A] == await peers.peers()
    names.answer = ["10.0.0.2"]
    clock.now += LOOK_UP_SECONDS - 1
    assert ([A], 1) == (await peers.peers(), names.asked)
    clock.now += 1
    assert [A] == await peers.peers()
    assert peers._looking is not None
    await peers._looking
    assert ([B], 2) == (await peers.peers(), names.asked)
    clock.now += SOONEST_SECONDS
    assert ([B], 2) == (await peers.peers(), names.asked)
    peers.note_failure()
    await peers.peers()
    await peers._looking
    assert 3 == names.asked


async def test_name_service_that_fails() -> None:
    """Without an answer, the addresses stay. If none was ever known, the name is asked again soon."""
    clock, names = Clock(), Names()
    peers = NamedPeers("caches.internal", 8600, look_up=names, clock=clock)
    names.answer = None
    assert ([], 1) == (await peers.peers(), names.asked)
    assert ([], 1) == (await peers.peers(), names.asked)
    assert peers.failure is not None
    assert "caches.internal" in peers.failure
    clock.now += SOONEST_SECONDS
    names.answer = ["10.0.0.1"]
    assert [A] == await peers.peers()
    names.answer = None
    clock.now += LOOK_UP_SECONDS
    await peers.peers()
    assert peers._looking is not None
    await peers._looking
    assert [A] == await peers.peers()


def test_fork_during_a_look_up() -> None:
    """The child looks the name up itself. The answer that its parent waits for does not come to it."""
    asked: list[str] = []

    async def look_up(name: str, _: int) -> list[str]:
        asked.append(name)
        if len(asked) == 1:
            await asyncio.Event().wait()
        return ["10.0.0.1"]

    peers = NamedPeers("caches.internal", 8600, look_up=look_up)
    repository = PeerRepository("http://server.test:8080", token=None, peers=peers)

    async def fork_meanwhile() -> int:
        asking = asyncio.create_task(peers.peers())
        while not asked:
            await asyncio.sleep(0)
        child = os.fork()
        if not child:
            try:
                assert [A] == asyncio.run(peers.peers())
                os._exit(0)
            finally:
                os._exit(1)
        asking.cancel()
        return os.waitpid(child, 0)[1]

    assert 0 == asyncio.run(fork_meanwhile())
    asyncio.run(repository.close())


async def test_real_name() -> None:
    """The system knows the addresses of localhost."""
    assert "127.0.0.1:8600" in [peer.address for peer in await parse_peers("dns:///localhost:8600").peers()]


def test_other_process() -> None:
    """A worker process gets the same peers, and looks their name up itself."""
    assert isinstance(pickle.loads(pickle.dumps(parse_peers("dns:///caches:1"))), NamedPeers)
