"""The address of a client, and the URL of this server as the client knows it.

A proxy passes on both in headers, which anyone can send. So they count only if the connection comes from a trusted
proxy: one that the setting `trusted_proxies` names. The URL is used only in what goes back to the client that sent the
header `Host`.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable

from aiohttp import web

from filestore.errors import InvalidInput
from filestore.http.server.request_record import REQUEST_ID_HEADER

logger = logging.getLogger("filestore.access")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
UNKNOWN = "an unknown address"
HOST_LIMIT = 255

_HOST = re.compile(r"(?:[A-Za-z0-9._~-]+|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?\Z")
_PORT_LIMIT = 1 << 16
_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded")
_PAIR = re.compile(r'\s*([A-Za-z]+)=(?:"([^"]*)"|([^\s";,]*))\s*\Z')
_IPV6_CLIENT_BITS = 64
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class TrustedProxies:
    """The networks of the proxies whose headers count."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)

    def contains(self, address: str) -> bool:
        """Return whether an address is that of a trusted proxy. Any other text is not."""
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)


class Origin:
    """What a server knows of the way between it and its clients."""

    def __init__(self, public_url: str | None, proxies: TrustedProxies) -> None:
        self._public_url = public_url
        self._proxies = proxies
        self._has_warned = False

    def check(self, request: web.BaseRequest) -> None:
        """Raise InvalidInput if the request has not one `Host` that can be the host of a URL."""
        hosts = request.headers.getall("Host", [])
        if len(hosts) > 1 or (any(hosts) and not _is_host(hosts[0])):
            raise InvalidInput("the header Host is not a host name or an address, with or without a port")

    def base_url(self, request: web.BaseRequest) -> str:
        """Return the URL of this server as the client of a request knows it, without a slash at the end."""
        if self._public_url is not None:
            return self._public_url
        scheme, host = request.scheme, request.headers.get("Host") or _own_host(request)
        if self._is_forwarded(request):
            given = _forwarded(request)
            if given.get("proto", "").lower() in {"http", "https"}:
                scheme = given["proto"].lower()
            if _is_host(given.get("host", "")):
                host = given["host"]
        return f"{scheme}://{host}"

    def client_address(self, request: web.BaseRequest) -> str:
        """Return the address of the client: that of the connection, or the one that a trusted proxy names."""
        address = _peer(request)
        if not self._is_forwarded(request):
            return address
        # Each proxy adds the address from which it was asked. The last one that is not a proxy of ours is the client.
        for named in reversed(_named_clients(request)):
            if _parsed(named) is None:
                return address
            address = named
            if not self._proxies.contains(address):
                return address
        return address

    def request_id(self, request: web.BaseRequest) -> str | None:
        """Return the id that a trusted proxy has given a request, or None if there is none that a log can have."""
        given = request.headers.getall(REQUEST_ID_HEADER, [])
        if len(given) != 1 or _REQUEST_ID.fullmatch(given[0]) is None or not self._proxies.contains(_peer(request)):
            return None
        return given[0]

    def _is_forwarded(self, request: web.BaseRequest) -> bool:
        if not any(name in request.headers for name in _FORWARDED):
            return False
        if self._proxies.contains(_peer(request)):
            return True
        if not self._has_warned:
            self._has_warned = True
            logger.info(
                "%s sends headers of a proxy, which do not count; if it is your proxy, name it in the setting trusted_proxies",
                _peer(request),
            )
        return False


def client_group(address: str) -> str:
    """Return what stands for one client in a count: its address, or the network of 64 bits of an IPv6 address."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, _IPV6_CLIENT_BITS), strict=False))
    return address if parsed is None else str(parsed)


def _is_host(text: str) -> bool:
    found = _HOST.match(text) if len(text) <= HOST_LIMIT else None
    if found is None:
        return False
    address, port = found.groups()
    return (port is None or int(port) < _PORT_LIMIT) and (address is None or _is_ipv6(address))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _peer(request: web.BaseRequest) -> str:
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else UNKNOWN


def _own_host(request: web.BaseRequest) -> str:
    """Return the host of a request of HTTP/1.0 without the header: the address that it was sent to."""
    name = None if request.transport is None else request.transport.get_extra_info("sockname")
    if not isinstance(name, tuple):
        return "localhost"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"


def _forwarded(request: web.BaseRequest) -> dict[str, str]:
    """Return what the nearest proxy says of its client: `proto` and `host`."""
    given = _pairs(request)[-1] if "Forwarded" in request.headers else {}
    for name, header in (("proto", "X-Forwarded-Proto"), ("host", "X-Forwarded-Host")):
        if header in request.headers:
            given = {**given, name: request.headers.getall(header)[-1].rpartition(",")[2].strip()}
    return given


def _named_clients(request: web.BaseRequest) -> list[str]:
    """Return the addresses that proxies name, in the order in which they were passed."""
    if "X-Forwarded-For" in request.headers:
        return [_bare(part) for part in ",".join(request.headers.getall("X-Forwarded-For")).split(",")]
    return [_bare(pairs.get("for", "")) for pairs in _pairs(request)] if "Forwarded" in request.headers else []


def _pairs(request: web.BaseRequest) -> list[dict[str, str]]:
    """Return the elements of the header `Forwarded`. Source: RFC 7239, section 4."""
    elements = ",".join(request.headers.getall("Forwarded")).split(",")
    matches = [[_PAIR.match(pair) for pair in element.split(";")] for element in elements]
    return [{found[1].lower(): found[2] or found[3] or "" for found in element if found} for element in matches]


def _bare(text: str) -> str:
    """Return an address without a port and without brackets."""
    text = text.strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
