"""Find the HTTP proxy for a URL in environment variables. The caller passes the environment.

The variables have the same names and meaning as in curl and requests. The variable of the URL's scheme, such as
`https_proxy`, has priority over `all_proxy`, and lower case over upper case. An empty variable means no proxy. A server
on this machine is also reached through the proxy, unless NO_PROXY names it. One rule is different: if ALL_PROXY names
another kind of proxy, such as `socks5://`, it is ignored, because it is often set for all programs of a machine.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from filestore.errors import InvalidSetting

_PORT = 80


class Proxy(NamedTuple):
    """An HTTP proxy. Never show its `repr`, because `authorization` is a secret."""

    host: str
    port: int
    authorization: str | None
    """The value of the header field Proxy-Authorization. None if the proxy needs no password."""
    source: str
    """The name of the variable or the setting that contains the URL of the proxy."""

    @property
    def url(self) -> str:
        """The URL of the proxy, without user name and password."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_proxy(text: str, *, source: str) -> Proxy:
    """Parse the URL of a proxy, such as `http://USER:PASSWORD@HOST:PORT`. Without a scheme, `http://` is assumed.

    Raises InvalidSetting if the URL is not valid. The error names `source` and not the URL, because the URL may contain
    a password.
    """
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        raise InvalidSetting(source, "it is not a URL such as http://HOST:PORT") from None
    if parts.scheme != "http":
        scheme = parts.scheme if parts.scheme.isalnum() else "not http"
        reason = f"its scheme is {scheme}, and only a proxy that is reached by http:// can be used"
        raise InvalidSetting(source, f"{reason}; name such a proxy (http://HOST:PORT), or name the host in NO_PROXY")
    if not host or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidSetting(source, "it is not a URL such as http://HOST:PORT")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    return Proxy(host, port, authorization, source)


def proxy_named_in(environ: Mapping[str, str], url: str) -> tuple[str, str] | None:
    """Return the name and the value of the variable with the proxy for `url`. Return None if no proxy is used."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    for variable in (f"{parts.scheme}_proxy", "all_proxy"):
        name = variable if variable in environ else variable.upper()
        if name == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
            continue  # in a CGI program, a client can set this variable by a header named Proxy
        if variable == "all_proxy" and _is_of_another_protocol(environ.get(name, "")):
            continue
        if name in environ:
            is_direct = not environ[name] or _is_exempt(host, port, environ.get("no_proxy", environ.get("NO_PROXY", "")))
            return None if is_direct else (name, environ[name])
    return None


def proxy_for(environ: Mapping[str, str], url: str) -> Proxy | None:
    """Return the proxy for `url` from the variables in `environ`, or None. Raises InvalidSetting if it is not valid."""
    named = proxy_named_in(environ, url)
    return parse_proxy(named[1], source=named[0]) if named is not None else None


def _is_of_another_protocol(proxy: str) -> bool:
    scheme, separator, _ = proxy.partition("://")
    return bool(separator) and scheme.lower() not in {"http", "https"}


def _is_exempt(host: str, port: int, exempt: str) -> bool:
    return any(_means(entry.strip().lower(), host.lower(), port) for entry in exempt.split(","))


def _means(entry: str, host: str, port: int) -> bool:
    """Return whether an entry of NO_PROXY matches a host. An entry is a host, a domain, an address or a network."""
    if entry == "*":
        return True
    name, colon, digits = entry.rpartition(":")
    if colon and digits.isdigit() and (":" not in name or name.endswith("]")):
        if int(digits) != port:
            return False
        entry = name
    entry = entry.strip("[]").lstrip(".").rstrip(".")
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and (host.rstrip(".") == entry or host.rstrip(".").endswith(f".{entry}"))
