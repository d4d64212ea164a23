"""Warn of a token that is sent without encryption."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

from filestore_cli.start import say
from filestore_cli.text import for_display

_WARNED = "filestore.plain_http"
"""The key in the `meta` of click's context of the hosts that this command has warned of."""


def warn_of_plain_http(url: str | None, token: str | None) -> None:
    """Print a warning if requests to `url` send `token` over plain HTTP to another machine. Print it once in a command."""
    host = "" if url is None or token is None else _other_host(url)
    context = click.get_current_context(silent=True)
    warned = set() if context is None else context.find_root().meta.setdefault(_WARNED, set())
    if host and host not in warned:
        warned.add(host)
        say(
            f"Warning: the token is sent to {for_display(host)} without encryption, and everyone on the way can read and use it; "
            "give a URL that begins with https://, or reach the server through an SSH tunnel and http://localhost:PORT."
        )


def _other_host(url: str) -> str:
    """Return the host of an `http://` URL. It is empty for another URL, and for this machine."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".") if parts.scheme == "http" else ""
    except ValueError:
        return ""  # the URL is refused later
    if not host or host == "localhost" or host.endswith(".localhost"):
        return ""
    from ipaddress import ip_address  # heavy

    try:
        address = ip_address(host)
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return "" if (mapped or address).is_loopback else host
