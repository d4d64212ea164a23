"""Find out whether bytes would leave this machine without encryption, and refuse it unless the user permits it.

A warning would come too late: when a person reads it, the token is sent already, and others in the network can use it. The
usual mistake is http:// in the place of https://, for a server that redirects from one to the other.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

import click

from filestore.core.urls import split_urls
from filestore_cli.settings import Settings
from filestore_cli.start import say
from filestore_cli.text import for_display

_WARNED = "filestore.plain_http"
"""The key in the `meta` of click's context of the hosts that this command has warned of."""


def check_plain_http(url: str | None, settings: Settings) -> None:
    """Refuse to send the token over plain HTTP to another machine. With the setting `insecure`, only warn, once in a command.

    Raises click.ClickException.
    """
    urls = [] if url is None or settings.token is None else split_urls(url)
    for host in filter(None, map(_other_host, urls)):
        _check_host(host, settings)


def _check_host(host: str, settings: Settings) -> None:
    if not settings.insecure:
        raise click.ClickException(
            f"the token would be sent to {for_display(host)} without encryption, and everyone on the way could read and use it; "
            "give a URL that begins with https://, or reach the server through an SSH tunnel and http://localhost:PORT; "
            "in a network that you trust, --insecure or FILESTORE_INSECURE=1 permits it"
        )
    context = click.get_current_context(silent=True)
    warned = set() if context is None else context.find_root().meta.setdefault(_WARNED, set())
    if host not in warned:
        warned.add(host)
        say(
            f"Warning: the token is sent to {for_display(host)} without encryption, and everyone on the way can read and use it; "
            "--insecure or FILESTORE_INSECURE permits it."
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself."""
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _other_host(url: str) -> str:
    """Return the host of an `http://` URL. It is empty for another URL, and for this machine."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".") if parts.scheme == "http" else ""
    except ValueError:
        return ""  # the URL is refused later
    return "" if not host or is_loopback(host) else host
