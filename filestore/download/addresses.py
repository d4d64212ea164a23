"""Decide whether an address is public. Downloads may connect only to public addresses by default. No I/O.

The ranges are listed here, because `ipaddress` gives different results in different versions of Python. It also reports
some addresses as public that are not: 192.0.0.0/24, fec0::/10, multicast, and addresses that contain another address.
Source: IANA's registries of special-purpose addresses for IPv4 and IPv6, RFC 6890; RFC 6052 (NAT64), 3056 (6to4), 4380 (Teredo).
168.63.129.16 is in no registry: https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16. The addresses
at which other clouds keep secrets are in 169.254.0.0/16, 100.64.0.0/10, 192.0.0.0/24 or fd00::/8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

_NOT_PUBLIC = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # of Azure: it gives each virtual machine its certificates and secrets
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""The only range of IPv6 for public use. ::1, fc00::/7, fe80::/10, fec0::/10 and ff00::/8 are outside this range."""
_NOT_PUBLIC_6 = [IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "3fff::/20")]

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")


def is_address(text: str) -> bool:
    """Return whether a host is an address and not a name. Any form that a resolver accepts counts, such as `0x7f.1`."""
    last = text.rstrip(".").rpartition(".")[2]
    # Source: the URL standard of the WHATWG, section 3.5: a host that ends in a number is an IPv4 address.
    return ":" in text or last.isdigit() or last.lower().startswith("0x")


def is_plain(text: str) -> bool:
    """Return whether a text is an address in the form in which `getaddrinfo` returns it."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_public(text: str) -> bool:
    """Return whether an address is on the public Internet. Return False for a text that is not an address.

    The address must have the form in which `getaddrinfo` returns it.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _is_public_4(address)
    embedded = list(_embedded(address))
    if embedded:
        # Packets to these prefixes reach the embedded addresses only.
        return all(_is_public_4(each) for each in embedded)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_6)


def parse_network(text: str) -> Network:
    """Parse a network such as `10.0.0.0/8`, or an address, which means itself alone. Raises ValueError with a reason."""
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a network, such as 203.0.113.0/24 or 2001:db8::/32") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((network.network_address.packed[12:], network.prefixlen - 96))
    return network


def network_of(text: str, networks: Iterable[Network]) -> Network | None:
    """Return the first of `networks` that an address leads to, or None. An embedded IPv4 address counts as well.

    The address must have the form in which `getaddrinfo` returns it. None is returned for a text that is not an address.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    leads_to = [address, *(_embedded(address) if isinstance(address, IPv6Address) else ())]
    return next((network for network in networks if any(each in network for each in leads_to)), None)


def _is_public_4(address: IPv4Address) -> bool:
    return not any(address in network for network in _NOT_PUBLIC)


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses inside an IPv6 address. Packets to `address` finally reach these."""
    raw = address.packed
    if address in _MAPPED or address in _NAT64:
        yield IPv4Address(raw[12:])
    elif address in _6TO4:
        yield IPv4Address(raw[2:6])
    elif address in _TEREDO:
        yield IPv4Address(raw[4:8])  # the server, and the client behind it, whose bits are inverted
        yield IPv4Address(bytes(byte ^ 0xFF for byte in raw[12:]))
