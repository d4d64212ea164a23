from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestore.download.addresses import is_public, network_of, parse_network

EMBEDDING = [IPv6Network(network) for network in ("::ffff:0:0/96", "64:ff9b::/96", "2001::/32", "2002::/16")]
SPECIAL = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
]


@given(st.ip_addresses())
def test_no_address_is_public_that_python_knows_to_be_special(address: IPv4Address | IPv6Address) -> None:
    """Ours is the narrower view, whatever version of Python it runs on."""
    if not any(address in network for network in EMBEDDING):
        assert address.is_global or not is_public(str(address))


@given(st.sampled_from(SPECIAL).flatmap(lambda network: st.ip_addresses(v=4, network=network)), st.integers(0, 2**80 - 1))
def test_no_address_leads_to_a_special_one(inner: IPv4Address, rest: int) -> None:
    """Whatever else stands in an address that embeds it."""
    number = int(inner)
    mapped = 0xFFFF << 32 | number
    nat64 = 0x64FF9B << 96 | number
    six_to_four = 0x2002 << 112 | number << 80 | rest
    teredo_server = 0x20010000 << 96 | number << 64 | rest % 2**64
    teredo_client = 0x20010000 << 96 | (rest % 2**64) << 32 | number ^ 0xFFFFFFFF

    for embedding in (mapped, nat64, six_to_four, teredo_server, teredo_client):
        assert not is_public(str(IPv6Address(embedding)))


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_what_it_leads_to(inner: IPv4Address) -> None:
    """No more, and no less: in a network that has IPv6 alone, all public servers are reached through such."""
    number = int(inner)
    for embedding in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1):
        assert is_public(str(inner)) is is_public(str(IPv6Address(embedding)))


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_a_refused_network_is_refused_in_every_form(address: IPv4Address, length: int, other: IPv4Address) -> None:
    """An address is in a network in each form that leads to it, and in no network that it does not lead to."""
    network = parse_network(f"{address}/{length}")
    for inner in (address, other):
        number = int(inner)
        teredo = 0x20010000 << 96 | number << 64 | number ^ 0xFFFFFFFF
        forms = (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1, teredo)
        for form in (inner, *map(IPv6Address, forms)):
            assert (network_of(str(form), [network]) is network) is (inner in network)


@pytest.mark.parametrize(
    "address", ["168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "2002:a83f:8110::1", "fd00:ec2::254"]
)
def test_addresses_at_which_clouds_keep_secrets(address: str) -> None:
    """They are no places to download from, in whatever form they are written."""
    assert not is_public(address)


@pytest.mark.parametrize("network", SPECIAL)
def test_the_ends_of_a_special_range(network: str) -> None:
    """The first and the last address of each are of it."""
    ends = IPv4Network(network)
    assert not is_public(str(ends[0]))
    assert not is_public(str(ends[-1]))
