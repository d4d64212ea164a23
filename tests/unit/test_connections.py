"""The limits of connections, and the heads that they have begun."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestore.http.limits import ServerLimits
from filestore.http.server.connections import Connections
from filestore.http.server.request_head import HEAD_LIMIT, HeadReader, HeadRefused, UnfinishedHeads


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2"),
        ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
        ("fe80::1%eth0", "fe80::2%eth0", "fe81::1%eth0"),
    ],
)
def test_an_address_is_counted(address: str, same: str, other: str) -> None:
    """An IPv4 address counts as one, also inside IPv6. A network of 64 bits of IPv6 counts as one."""
    connections = Connections(ServerLimits(address_connections_limit=1), descriptors_limit=10)
    connections.add(address)
    assert connections.refusal(same) is not None
    assert connections.refusal(other) is None
    connections.remove(address)
    assert connections.refusal(same) is None


def test_the_connections_of_a_proxy_count_only_in_all() -> None:
    """They are those of many clients."""
    limits = ServerLimits(connections_limit=2, address_connections_limit=1)
    connections = Connections(limits, descriptors_limit=10, is_proxy={"192.0.2.1"}.__contains__)
    connections.add("192.0.2.1")
    assert connections.refusal("192.0.2.1") is None
    connections.add("192.0.2.1")
    assert "connections_limit" in str(connections.refusal("192.0.2.1"))


def test_descriptors_limit_connections() -> None:
    """Whatever the settings say."""
    connections = Connections(ServerLimits(), descriptors_limit=1)
    connections.add("192.0.2.1")
    assert "open files" in str(connections.refusal("192.0.2.2"))


HEADS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
]


@given(st.sampled_from(HEADS), st.lists(st.integers(0, 7000), max_size=10))
def test_a_head_is_found_wherever_it_is_cut(head: bytes, cuts: list[int]) -> None:
    """The bytes after it are given back, and nothing is kept."""
    heads = UnfinishedHeads()
    reader = HeadReader(heads, lambda: None)
    sent = head + b"abc"
    places = sorted({min(cut, len(head) - 1) for cut in cuts})
    for start, end in zip([0, *places], [*places, None], strict=True):
        found = reader.read(sent[start:end])
        if end is not None:
            assert found is None
    assert (head.lstrip(), b"abc") == found
    assert (0, 0) == (heads.size, reader.size)


def test_the_largest_unfinished_head_is_evicted() -> None:
    """The others stay."""
    heads = UnfinishedHeads(limit=100)
    evicted = []
    readers: dict[int, HeadReader] = {}

    def evict(number: int) -> None:
        evicted.append(number)
        readers[number].clear()

    for number, size in enumerate((10, 50, 30, 10)):
        readers[number] = HeadReader(heads, lambda number=number: evict(number))  # type: ignore[misc]
        assert readers[number].read(b"G" * size) is None
    assert ([], 100) == (evicted, heads.size)
    readers[0].read(b"G")
    assert ([1], 51) == (evicted, heads.size)


@pytest.mark.parametrize(
    "sent", [b"get /", b"\x16\x03", b"GET / HTTP/1.1\n", b"G" * 20_000, b"GET /\r\n" + b"X: y\r\n" * HEAD_LIMIT]
)
def test_what_cannot_become_a_head_is_refused(sent: bytes) -> None:
    """No more bytes of it are needed."""
    with pytest.raises(HeadRefused):
        HeadReader(UnfinishedHeads(), lambda: None).read(sent)
