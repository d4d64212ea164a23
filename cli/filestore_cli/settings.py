"""Every setting, with its meaning, unit, default and environment variable.

The command line reads the environment and the configuration file, and passes their values to this module.
`docs/settings.md` describes all settings; a test compares it with this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fractions import Fraction
from functools import cache, partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from filestore.core.object_location import is_database, is_object_store
from filestore.download.addresses import parse_network
from filestore.download.download import DEFAULT_DOWNLOAD_LIMITS, DownloadLimits
from filestore.errors import InvalidSetting
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.http.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from filestore.repository.index.postgres.opening import CONNECTIONS, LEAST_CONNECTIONS
from filestore.system.files import home_path
from filestore.system.proxies import parse_proxy
from filestore.system.rate_limit import LEAST_RATE
from filestore.system.retries import RETRY_SECONDS

ACCESS_LOG_CHOICES = ("json", "plain", "off")
CODEC_CHOICES = ("auto", "raw", "zstd", "planes2+zstd", "planes4+zstd")

_SIZE = re.compile(r"([0-9]{1,30})(\.[0-9]{1,30})?\s*([A-Za-z]*)\Z")
_SIZE_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{infix}{suffix}": base**power
    for power, prefixes in enumerate(("kK", "M", "G", "T", "P"), 1)
    for prefix in prefixes
    for base, infix in ((1000, ""), (1024, "i"))
    for suffix in ("", "B")
    if f"{prefix}{infix}" != "ki"
}
_SIZE_UNIT = "bytes, or a size such as 10GB, 10G or 1.5GiB"
SIZE_WORDS = "kB, MB, GB, TB, PB (also k, M, G, T, P) are powers of 1000, KiB to PiB (also Ki to Pi) of 1024"
_AGE = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|min|h|d|w)\s*\Z")
AGES = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
AGE_UNIT = "time such as 24h (units s, min, h, d, w)"
_HOURS = re.compile(r"([0-9]{1,2})-([0-9]{1,2})\Z")
UNKNOWN_FOLDER = Path("/dev/null/filestore")
"""A path at which nothing can be made. It is used in the place of a folder that is not known."""
_PORT_LIMIT = 65535
_SERVICE = re.compile(r"(tcp|udp|sctp)://[0-9a-fA-F.:\[\]]+:[0-9]+\Z")
"""What Kubernetes sets in FILESTORE_PORT of all containers of a namespace that has a service named `filestore`."""
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")
_VARIABLE_START = "filestore_"
_NEAR, _NEAR_SHORT, _SHORT = 0.8, 0.66, 3
"""How near a name is to that of a setting, from 0 to 1, if it is probably a mistyped one: one letter of three is much."""


class Setting(NamedTuple):
    """The definition of a setting."""

    meaning: str
    unit: str
    default: str
    """The default in the form in which a user writes it, or in words if it is not a constant."""
    environment: str | None
    """The environment variable, or None for a setting that only an option may change."""
    parse: Callable[[object], object]
    """A function that makes the value of the setting from a text or a TOML value. A value that has this form already is
    returned unchanged. Raises ValueError.
    """
    has_option: bool = True
    """Whether the setting is also an option of commands. A setting that is set once for a machine has no option."""
    is_repeatable: bool = False
    """Whether the option may be given several times. `parse` then gets the list of all its values."""
    is_flag: bool = False
    """Whether the option has no value, and means `yes`."""
    choices: tuple[str, ...] = ()
    """All values, if these are a few words."""


class Folders(NamedTuple):
    """The folders of the user of this machine. The command line finds them by the rules of the platform."""

    data: Path | None
    cache: Path | None
    state: Path | None
    """None if the folder is not known, for example for a user without a home folder."""


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("one line of printable text is expected")
    return value


def _urls(value: object) -> str:
    """Return one text, which `connect` takes apart again if it names several servers."""
    if not isinstance(value, list | tuple) or not value:
        return _text(value)
    if len(value) > 1 and not all(_text(url).lower().startswith(("http://", "https://")) for url in value):
        raise ValueError("of several URLs, each is that of a server, and begins with http:// or https://")
    return ",".join(map(_text, value))


def _peers(value: object) -> str:
    """Return one text, which `connect` takes apart again if it names several peers."""
    from filestore.peers.addresses import parse_peers  # heavy

    text = ",".join(map(_text, value)) if isinstance(value, list | tuple) else _text(value)
    try:
        parse_peers(text)
    except InvalidSetting as error:
        raise ValueError(error.reason) from None
    return text


def _host(value: object) -> str:
    host = _text(value)
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"{host!r} is not a host name or an address") from None
    return host


def _host_and_port(value: object) -> tuple[str, int]:
    if isinstance(value, tuple):
        return value  # it was parsed already
    host, colon, port = _text(value).rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _PORT_LIMIT:
        raise ValueError("a host name or an address, a colon and a port are expected, such as 10.0.0.7:8600 or [::1]:8600")
    return _host(host[1:-1] if host.startswith("[") and host.endswith("]") else host), int(port)


def _token(value: object) -> str:
    # The value is a secret: it must not be in the error.
    if not isinstance(value, str) or not _TOKEN.match(value):
        raise ValueError("a token has printable ASCII characters only, and no spaces")
    return value


def _store(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not is_object_store(value):
        raise ValueError("the URL of an object store is expected, such as s3://BUCKET/PREFIX?endpoint=URL")
    return value


def _index(value: object) -> str:
    # It may have a password, which must not be in the error.
    if not isinstance(value, str) or not value.isprintable() or not is_database(value):
        raise ValueError("the URL of a database is expected, such as postgresql://USER@HOST/DATABASE")
    return value


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("a path is expected")
    try:
        return home_path(value)
    except InvalidSetting as error:
        raise ValueError(error.reason) from None


def _public_url(value: object) -> str:
    parts = urlsplit(_text(value))
    is_url = parts.scheme in {"http", "https"} and parts.hostname is not None
    if not is_url or parts.username is not None or parts.query or parts.fragment:
        raise ValueError("a URL such as https://files.example.org is expected, without a user, a query and a fragment")
    return str(value).rstrip("/")


def _jwks(value: object) -> Path | str:
    if not isinstance(value, str) or "://" not in value:
        return _path(value)
    parts = urlsplit(_text(value))
    if parts.scheme not in {"http", "https"} or parts.hostname is None or parts.username is not None or parts.fragment:
        raise ValueError("the path of a file, or a URL such as https://login.example.org/keys is expected")
    # A person who can change the answer can sign any token.
    if parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
        raise ValueError("a URL of https is expected: only the keys of this machine may come without encryption")
    return value


def _proxy_networks(value: object) -> tuple[IPv4Network | IPv6Network, ...]:
    if isinstance(value, tuple) and all(isinstance(each, IPv4Network | IPv6Network) for each in value):
        return value
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise ValueError("addresses or networks are expected, with commas between them")  # noqa: TRY004  # as for `_pythons`
    try:
        # An option that is repeated may have commas too.
        return tuple(ip_network(each.strip()) for part in given for each in str(part).split(","))
    except ValueError:
        raise ValueError(f"{value!r} is not a list of addresses or networks, such as 127.0.0.1,10.0.0.0/8") from None


def _proxy(value: object) -> str:
    try:
        parse_proxy(value if isinstance(value, str) else "", source="")
    except InvalidSetting as error:
        raise ValueError(error.reason) from None
    return str(value)


def _networks(value: object) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise ValueError("networks are expected, such as 203.0.113.0/24,2001:db8::/32")
    return tuple(str(parse_network(each)) for each in given)


def _pythons(value: object) -> tuple[tuple[str, Path], ...]:
    if isinstance(value, tuple) and all(isinstance(each, tuple) for each in value):
        return value
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise ValueError("NAME=PATH is expected")  # noqa: TRY004  # as for every value that cannot be used
    pythons: dict[str, Path] = {}
    for each in given:
        name, separator, path = each.partition("=") if isinstance(each, str) else ("", "", "")
        if not separator or not name.isprintable() or not name.strip():
            raise ValueError(f"{each!r} is not NAME=PATH, such as numpy=/opt/numpy/bin/python")
        if name.strip() in pythons:
            raise ValueError(f"it names the environment {name.strip()!r} twice")
        pythons[name.strip()] = _path(path.strip()).absolute()
    return tuple(pythons.items())


def _choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            nearest = get_close_matches(str(value).lower(), choices, 1)
            question = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{question}")
        return str(value)

    return parse


def _whole(minimum: int, maximum: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"{value!r} is not a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def _whole_or_auto(minimum: int, maximum: int) -> Callable[[object], int | None]:
    parse_number = _whole(minimum, maximum)

    def parse(value: object) -> int | None:
        if value is None or value == "auto":
            return None
        try:
            return parse_number(value)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None

    return parse


def _seconds(maximum: int) -> Callable[[object], float]:
    def parse(value: object) -> float:
        try:
            seconds = float("" if isinstance(value, bool) else str(value))
        except ValueError:
            seconds = 0.0
        if not 0.1 <= seconds <= maximum:
            raise ValueError(f"{value!r} is not a number of seconds from 0.1 to {maximum}")
        return seconds

    return parse


def parse_age(value: object) -> float:
    """Return the seconds of a time such as 24h or 90min. 0 needs no unit. A float is returned unchanged. Raises ValueError."""
    if isinstance(value, float):
        return value
    if str(value).strip() == "0":
        return 0.0
    match = None if isinstance(value, bool) else _AGE.match(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a time such as 24h: a number and one of {', '.join(AGES)}")
    return float(match[1]) * AGES[match[2]]


def _hours(value: object) -> tuple[int, int]:
    if isinstance(value, tuple):
        return value
    match = _HOURS.match(str(value))
    if match is None or int(match[1]) > 23 or not 0 < int(match[2]) <= 24 or match[1] == match[2]:
        raise ValueError(f"{value!r} is not a pair of hours such as 22-6: the first is 0 to 23, the end is 1 to 24")
    return int(match[1]), int(match[2])


def _claim(value: object) -> bool:
    claims = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    text = str(value).lower()
    if text not in claims:
        raise ValueError(f"{value!r} is not yes or no")
    return claims[text]


def parse_size(value: object, *, minimum: int) -> int:
    """Return the bytes of a number, or of a text such as 10GB, 10G, 10Gi or 1.5GiB. Raises ValueError."""
    match = None if isinstance(value, bool) else _SIZE.match(str(value))
    unit = None if match is None else _SIZE_UNITS.get(match[3])
    # A number of bytes has no fraction, and a number of a larger unit may have one. A rest of less than a byte is
    # dropped.
    if match is None or unit is None or (unit == 1 and match[2]):
        raise ValueError(f"{value!r} is not a size, such as 128MiB or 10GB: {SIZE_WORDS}")
    size = int(Fraction(f"{match[1]}{match[2] or ''}") * unit)
    if size < minimum:
        raise ValueError(f"{value!r} is too small; the smallest size here is {minimum} bytes")
    return size


def _rate(value: object) -> int:
    return parse_size(value.removesuffix("/s") if isinstance(value, str) else value, minimum=LEAST_RATE)


def _size(minimum: int) -> Callable[[object], int]:
    return partial(parse_size, minimum=minimum)


def _setting(
    meaning: str,
    *,
    unit: str,
    parse: Callable[[object], object] | None = None,
    choices: tuple[str, ...] = (),
    default: str | None = None,
    has_environment: bool = True,
    has_option: bool = True,
    is_repeatable: bool = False,
    is_flag: bool = False,
) -> dict[str, Callable[[str, object], Setting]]:
    """Return a function that makes the definition of a setting from its name and its default.

    `default` is the default in words. Give it if the default of the field does not say everything. Give either `parse` or
    `choices`.
    """

    def definition(name: str, value: object) -> Setting:
        environment = f"FILESTORE_{name.upper()}" if has_environment else None
        text = default or _default_text(value, unit)
        return Setting(meaning, unit, text, environment, parse or _choice(*choices), has_option, is_repeatable, is_flag, choices)

    return {"definition": definition}


def _default_text(value: object, unit: str) -> str:
    """Return a default in the form in which a user writes it, such as `yes`, `30` or `128MiB`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == _SIZE_UNIT and isinstance(value, int) and value:
        size, _, name = max((size, len(name), name) for name, size in _SIZE_UNITS.items() if value % size == 0)
        return f"{value // size}{name}"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of all settings, with their defaults. Make one with `settings_from`."""

    url: str | None = field(
        default=None,
        metadata=_setting(
            "The repository to work on: the URL of a server, or a folder (a path or file:///...); several servers of one "
            "repository are several URLs",
            unit="URL or path, or URLs with commas or spaces between them",
            parse=_urls,
            default="the local folder, which the setting root names",
            is_repeatable=True,
        ),
    )
    token: str | None = field(
        default=None,
        repr=False,
        metadata=_setting(
            "The token for the server; with `filestore serve`, a token that is accepted until this server stops",
            unit="text",
            parse=_token,
            default="none",
        ),
    )
    token_file: Path | None = field(
        default=None,
        metadata=_setting(
            "A file whose only line is the token; other users of the machine cannot see it in the list of processes",
            unit="path",
            parse=_path,
            default="none",
        ),
    )
    root: Path = field(
        metadata=_setting(
            "The folder that `filestore serve` serves; commands work on it if url is not set",
            unit="path",
            parse=_path,
            default="filestore in the user's data folder; on Linux ~/.local/share/filestore",
        )
    )
    store: str | None = field(
        default=None,
        metadata=_setting(
            "The object store that has the content of a repository past one machine, in place of a folder",
            unit="URL",
            parse=_store,
            default="none: the repository is in a folder",
        ),
    )
    index: str | None = field(
        default=None,
        repr=False,
        metadata=_setting(
            "The PostgreSQL database that has the index of such a repository; give its password in FILESTORE_INDEX, PGPASSWORD "
            "or a passfile",
            unit="URL",
            parse=_index,
            default="none",
        ),
    )
    cache: Path = field(
        metadata=_setting(
            "The cache folder of the commands `filestore cache`, from which `filestore fetch` copies what it has",
            unit="path",
            parse=_path,
            default="filestore in the user's cache folder; on Linux ~/.cache/filestore",
        )
    )
    cache_size_limit: int | None = field(
        default=None,
        metadata=_setting(
            "Bytes of disk that the cache may take; the least recently used entries are evicted before more is written",
            unit=_SIZE_UNIT,
            parse=_size(0),
            default="none: as much as the disk holds",
        ),
    )
    cache_min_free: int = field(
        default=0,
        metadata=_setting(
            "Bytes of its disk that the cache leaves free; the least recently used entries are evicted before more is written",
            unit=_SIZE_UNIT,
            parse=_size(0),
        ),
    )
    peer_size_limit: int = field(
        default=10 << 30,
        metadata=_setting(
            "Bytes of disk that the frames of `filestore cache serve` may take, beside the entries of the cache",
            unit=_SIZE_UNIT,
            parse=_size(0),
            default="10GiB",
        ),
    )
    listen: tuple[str, int] = field(
        default=("127.0.0.1", 8600),
        metadata=_setting(
            "Where `filestore cache serve` listens; port 0 takes any free one",
            unit="HOST:PORT",
            parse=_host_and_port,
            default="127.0.0.1:8600",
            has_environment=False,
        ),
    )
    metrics_listen: tuple[str, int] | None = field(
        default=None,
        metadata=_setting(
            "Where `filestore cache serve` shows its metrics to everybody who reaches this address",
            unit="HOST:PORT",
            parse=_host_and_port,
            default="none: it shows none",
            has_environment=False,
        ),
    )
    push_cache: Path = field(
        metadata=_setting(
            "The file that remembers the last pushes, so that unchanged files are not read again",
            unit="path",
            parse=_path,
            default="journal.sqlite in the user's state folder; on Linux ~/.local/state/filestore/journal.sqlite",
        )
    )
    codec: str = field(
        default="auto",
        metadata=_setting(
            f"How a push encodes chunks: {', '.join(CODEC_CHOICES)}; auto chooses the best for each chunk by a sample",
            unit="choice",
            choices=CODEC_CHOICES,
        ),
    )
    connections: int | None = field(
        default=None,
        metadata=_setting(
            "The most connections to a server at the same time, together with those of the worker processes of a push or a fetch,"
            " of which each needs one: with 1 there are none",
            unit="count",
            parse=_whole(1, 1024),
            default="by cores: 4 to 8 for each of its processes",
        ),
    )
    processes: int | None = field(
        default=None,
        metadata=_setting(
            "How many worker processes a push or a fetch of 256 MiB and more starts; 0: none",
            unit="count",
            parse=_whole(0, 256),
            default="by cores: one for four cores, and none with fewer than eight",
        ),
    )
    transfer_memory: int | None = field(
        default=None,
        metadata=_setting(
            "The most bytes of memory of one push or fetch, with all its processes",
            unit=_SIZE_UNIT,
            parse=_size(100 << 20),
            default="300MiB, and 48MiB more for each core after the second; at most half of the memory",
        ),
    )
    limit_rate: int | None = field(
        default=None,
        metadata=_setting(
            "The most bytes per second of all connections of a command together, in both directions; no effect on a folder",
            unit=f"{_SIZE_UNIT}; /s may follow",
            parse=_rate,
            default="no limit",
        ),
    )
    stall_seconds: float = field(
        default=DEFAULT_SERVER_LIMITS.stall_seconds,
        metadata=_setting(
            "Abort a connection after this many seconds without progress; a client then retries",
            unit="seconds",
            parse=_seconds(86400),
        ),
    )
    retry_seconds: float = field(
        default=RETRY_SECONDS,
        metadata=_setting(
            "How long a server that has answered is tried again, also that of a URL, counted since the last progress",
            unit="seconds",
            parse=_seconds(7 * 86400),
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_setting(
            "The address that `filestore serve` listens on; only the option changes it, because others may then reach the server",
            unit="host name or address",
            parse=_host,
            has_environment=False,
        ),
    )
    port: int = field(
        default=8080,
        metadata=_setting(
            "The port that `filestore serve` listens on; 0 takes any free one", unit="port", parse=_whole(0, _PORT_LIMIT)
        ),
    )
    workers: int | None = field(
        default=None,
        metadata=_setting(
            "Number of server processes on that port; auto is one for every four cores, and one on fewer than eight",
            unit="count, or auto",
            parse=_whole_or_auto(1, 256),
            default="auto",
        ),
    )
    memory_limit: int = field(
        default=DEFAULT_SERVER_LIMITS.memory_limit,
        metadata=_setting(
            "The most bytes in flight in one server process, for any number of clients",
            unit=_SIZE_UNIT,
            parse=_size(16 << 20),
        ),
    )
    spool_folder: Path | None = field(
        default=None,
        metadata=_setting(
            "The folder where a server collects an upload by form or in parts until it is complete",
            unit="path",
            parse=_path,
            default="the local folder, which the setting root names",
        ),
    )
    upload_limit: int | None = field(
        default=DEFAULT_SERVER_LIMITS.upload_limit,
        metadata=_setting(
            "Bytes of the largest file that a server accepts",
            unit=_SIZE_UNIT,
            parse=_size(0),
            default="none: as much as the disk holds",
        ),
    )
    chunks_limit: int | None = field(
        default=DEFAULT_SERVER_LIMITS.chunks_limit,
        metadata=_setting(
            "The most chunks of a file that is pushed to a server",
            unit="count",
            parse=_whole(1, 1_000_000_000),
            default="none: as many as fit into the list of chunks, about 1.8 million",
        ),
    )
    request_limit: int = field(
        default=DEFAULT_SERVER_LIMITS.request_limit,
        metadata=_setting(
            "Bytes of the largest request that a server accepts, apart from files by form or in parts; clients send smaller ones",
            unit=_SIZE_UNIT,
            parse=_size(8 << 20),
        ),
    )
    uploads_limit: int = field(
        default=DEFAULT_SERVER_LIMITS.uploads_limit,
        metadata=_setting(
            "The most uploads in parts, and permitted forms, that a namespace has in progress on a server",
            unit="count",
            parse=_whole(1, 1_000_000_000),
        ),
    )
    uploads_size_limit: int | None = field(
        default=DEFAULT_SERVER_LIMITS.uploads_size_limit,
        metadata=_setting(
            "Bytes of unfinished uploads, by form or in parts, that a namespace may have on a server",
            unit=_SIZE_UNIT,
            parse=_size(1),
            default="half of the disk space that would be free without them",
        ),
    )
    upload_idle_seconds: float = field(
        default=DEFAULT_SERVER_LIMITS.upload_idle_seconds,
        metadata=_setting(
            "How long an upload in parts may receive nothing before a server removes it and frees its space",
            unit="seconds",
            parse=_seconds(30 * 86400),
        ),
    )
    upload_seconds: float = field(
        default=DEFAULT_SERVER_LIMITS.upload_seconds,
        metadata=_setting(
            "How long an upload in parts may take before a server removes it, whatever arrives",
            unit="seconds",
            parse=_seconds(365 * 86400),
        ),
    )
    index_connections: int = field(
        default=CONNECTIONS,
        metadata=_setting(
            "The most connections of one server process to PostgreSQL, for requests, long reads and locks; "
            "each is made when it is needed",
            unit="count",
            parse=_whole(LEAST_CONNECTIONS, 1000),
        ),
    )
    min_free: int | None = field(
        default=None,
        metadata=_setting(
            "Bytes of a repository's disk that stay free; nothing new is stored below that, and reading and removing go on",
            unit=_SIZE_UNIT,
            parse=_size(0),
            default="1 % of the disk, at most 256MiB",
        ),
    )
    presigned_reads: bool = field(
        default=DEFAULT_SERVER_LIMITS.presigned_reads,
        metadata=_setting(
            "Whether a server gives URLs by which frames are read from its object store, and whether a client uses them",
            unit="yes or no",
            parse=_claim,
        ),
    )
    peers: str | None = field(
        default=None,
        metadata=_setting(
            "Caches on other machines, where `filestore cache serve` runs: frames come from them, and from the server only what "
            "they do not give",
            unit="dns:///NAME:PORT, dns+https:///NAME:PORT, or http://HOST:PORT with commas or spaces between several",
            parse=_peers,
            default="none",
            is_repeatable=True,
        ),
    )
    connections_limit: int = field(
        default=DEFAULT_SERVER_LIMITS.connections_limit,
        metadata=_setting(
            "The most connections of one server process; further ones get the answer 503",
            unit="count",
            parse=_whole(1, 1_000_000_000),
        ),
    )
    address_connections_limit: int = field(
        default=DEFAULT_SERVER_LIMITS.address_connections_limit,
        metadata=_setting(
            "The most connections of one server process from one IPv4 address, or from one network of 64 bits of IPv6",
            unit="count",
            parse=_whole(1, 1_000_000_000),
        ),
    )
    head_seconds: float = field(
        default=DEFAULT_SERVER_LIMITS.head_seconds,
        metadata=_setting(
            "How long the head of a request may take, from its first byte, or from the start of a new connection",
            unit="seconds",
            parse=_seconds(3600),
        ),
    )
    drain_seconds: float = field(
        default=DEFAULT_SERVER_LIMITS.drain_seconds,
        metadata=_setting(
            "How long a server that is stopping waits for current transfers", unit="seconds", parse=_seconds(86400)
        ),
    )
    gc_grace: float = field(
        default=DEFAULT_SERVER_LIMITS.gc_grace,
        metadata=_setting(
            "How long `filestore gc` and a server keep content that no stored file needs, after a push last used it",
            unit=AGE_UNIT,
            parse=parse_age,
            default="24h",
        ),
    )
    gc_rate: int = field(
        default=DEFAULT_SERVER_LIMITS.gc_rate,
        metadata=_setting(
            "How many chunks a second a server looks at to remove content that nothing needs; 0: it removes none by itself",
            unit="count",
            parse=_whole(0, 1_000_000_000),
        ),
    )
    gc_hours: tuple[int, int] | None = field(
        default=None,
        metadata=_setting(
            "The hours of the day in which a server removes content that nothing needs, in local time",
            unit="hours such as 22-6",
            parse=_hours,
            default="none: any time",
        ),
    )
    signed_seconds: int = field(
        default=DEFAULT_SERVER_LIMITS.signed_seconds,
        metadata=_setting(
            "How long everyone who has a signed URL can read its file", unit="seconds", parse=_whole(1, 31_622_400)
        ),
    )
    scrub_rate: int = field(
        default=DEFAULT_SERVER_LIMITS.scrub_rate,
        metadata=_setting(
            "The most bytes per second that a server reads to check stored content for damage; 0 turns this off",
            unit=_SIZE_UNIT,
            parse=_size(0),
        ),
    )
    scrub_days: int = field(
        default=DEFAULT_SERVER_LIMITS.scrub_days,
        metadata=_setting(
            "In how many days a server reads all stored content once to find damage, if scrub_rate allows it",
            unit="days",
            parse=_whole(1, 3650),
        ),
    )
    guesses_limit: int = field(
        default=DEFAULT_SERVER_LIMITS.guesses_limit,
        metadata=_setting(
            "How many wrong tokens and signatures of an address a server process answers in a minute before it answers 429",
            unit="count",
            parse=_whole(1, 1_000_000_000),
        ),
    )
    public_url: str | None = field(
        default=None,
        metadata=_setting(
            "The URL of a server as its clients know it, for links and signed URLs",
            unit="URL",
            parse=_public_url,
            default="none: the URL that a request names",
        ),
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = field(
        default=(),
        metadata=_setting(
            "The addresses of the proxies of a server, whose headers X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, "
            "Forwarded and X-Request-Id count",
            unit="addresses or networks, with commas between them",
            parse=_proxy_networks,
            default="none: these headers do not count",
        ),
    )
    tls_cert: Path | None = field(
        default=None,
        metadata=_setting(
            "The certificate of a server that speaks TLS, in PEM, with the certificates between it and its authority after it",
            unit="path",
            parse=_path,
            default="none: the server speaks plain HTTP",
        ),
    )
    tls_key: Path | None = field(
        default=None,
        metadata=_setting(
            "The private key of tls_cert, in PEM and without a password",
            unit="path",
            parse=_path,
            default="none: the key is in the file of tls_cert",
        ),
    )
    tls_client_ca: Path | None = field(
        default=None,
        metadata=_setting(
            "The authorities of client certificates, in PEM; a client then needs a certificate in addition to its token",
            unit="path",
            parse=_path,
            default="none: no client certificate is asked for",
        ),
    )
    tls_by_proxy: tuple[IPv4Network | IPv6Network, ...] = field(
        default=(),
        metadata=_setting(
            "The addresses of the proxy that speaks TLS for a server; only these can connect, and they are trusted_proxies "
            "if that names none",
            unit="addresses or networks, with commas between them",
            parse=_proxy_networks,
            default="none: all addresses can connect",
            is_repeatable=True,
        ),
    )
    tls_client_cert: Path | None = field(
        default=None,
        metadata=_setting(
            "The certificate that a command shows to a server which asks for one, in PEM",
            unit="path",
            parse=_path,
            default="none",
            has_option=False,
        ),
    )
    tls_client_key: Path | None = field(
        default=None,
        metadata=_setting(
            "The private key of tls_client_cert, in PEM and without a password",
            unit="path",
            parse=_path,
            default="none: the key is in the file of tls_client_cert",
            has_option=False,
        ),
    )
    upstream: str | None = field(
        default=None,
        metadata=_setting(
            "The Hub that a server asks for repositories which it does not have, and keeps what it fetches from there",
            unit="URL such as https://huggingface.co",
            parse=_public_url,
            default="none: no other server is asked",
        ),
    )
    upstream_max_age_seconds: float = field(
        default=300.0,
        metadata=_setting(
            "How long the last answer of the upstream about a revision counts before it is asked again",
            unit="seconds",
            parse=_seconds(365 * 86400),
        ),
    )
    upstream_limit: int | None = field(
        default=None,
        metadata=_setting(
            "Bytes of files of the upstream that a server keeps; the least recently used are removed before more is fetched",
            unit=_SIZE_UNIT,
            parse=_size(1),
            default="none: as much as the disk holds",
        ),
    )
    offline: bool = field(
        default=False,
        metadata=_setting(
            "Whether a server never asks its upstream, and serves only what it has",
            unit="yes or no",
            parse=_claim,
            is_flag=True,
        ),
    )
    insecure: bool = field(
        default=False,
        metadata=_setting(
            "Whether a server may speak plain HTTP with other machines, and a command may send its token to one without TLS",
            unit="yes or no",
            parse=_claim,
            is_flag=True,
        ),
    )
    access_log: str = field(
        default="off",
        metadata=_setting(
            f"Whether a server writes a line for each request, and in which form: {', '.join(ACCESS_LOG_CHOICES)}",
            unit="choice",
            choices=ACCESS_LOG_CHOICES,
        ),
    )
    access_log_file: Path | None = field(
        default=None,
        metadata=_setting(
            "The file of the lines of access_log", unit="path", parse=_path, default="none: they go to standard error"
        ),
    )
    audit_log: Path | None = field(
        default=None,
        metadata=_setting(
            "The file in which a server writes who has read, stored or removed what, and which requests were denied",
            unit="path",
            parse=_path,
            default="none: nothing is written",
        ),
    )
    audit_log_size: int | None = field(
        default=None,
        metadata=_setting(
            "From how many bytes on the file of audit_log is renamed to FILE.1, and another one is begun; 9 such files are kept",
            unit=_SIZE_UNIT,
            parse=_size(4096),
            default="none: it grows, or other tools rotate it",
        ),
    )
    jwt_keys: Path | str | None = field(
        default=None,
        metadata=_setting(
            "The JWKS with the public keys of JSON Web Tokens that a server accepts, with jwt_issuer and jwt_audience",
            unit="path or URL",
            parse=_jwks,
            default="none: no such token is accepted",
        ),
    )
    jwt_issuer: str | None = field(
        default=None,
        metadata=_setting("The claim iss that a JSON Web Token must have", unit="text", parse=_text, default="none"),
    )
    jwt_audience: str | None = field(
        default=None,
        metadata=_setting(
            "The claim aud that a JSON Web Token must have or contain; choose one that is used for this server only",
            unit="text",
            parse=_text,
            default="none",
        ),
    )
    jwt_rules: Path | None = field(
        default=None,
        metadata=_setting(
            "The file of rules from the claims of a JSON Web Token to a namespace and a scope",
            unit="path",
            parse=_path,
            default="none: the claims that the settings jwt_*_claim name are used",
        ),
    )
    jwt_namespace_claim: str = field(
        default="filestore_namespace",
        metadata=_setting("The claim of a JSON Web Token that has its namespace", unit="text", parse=_text, has_option=False),
    )
    jwt_scope_claim: str = field(
        default="scope",
        metadata=_setting(
            "The claim of a JSON Web Token that has its scopes, such as filestore:read",
            unit="text",
            parse=_text,
            has_option=False,
        ),
    )
    jwt_prefix_claim: str | None = field(
        default=None,
        metadata=_setting(
            "The claim of a JSON Web Token that has the beginning of the names that it sees; then each token must have it",
            unit="text",
            parse=_text,
            default="none: a token sees all names",
            has_option=False,
        ),
    )
    completion_seconds: float = field(
        default=1.0,
        metadata=_setting(
            "How long the completion of a shell waits for the names of stored files; then it offers none",
            unit="seconds",
            parse=_seconds(60),
            has_option=False,
        ),
    )
    run_seconds: float = field(
        default=300.0,
        metadata=_setting(
            "How long a pipeline may take to load, to start, and for each run, before `filestore runtime serve` ends it",
            unit="seconds",
            parse=_seconds(86400),
        ),
    )
    run_memory_limit: int = field(
        default=16 << 30,
        metadata=_setting(
            "Bytes of memory for each process of a pipeline; mapped files and memory of a GPU do not count",
            unit=_SIZE_UNIT,
            parse=_size(256 << 20),
        ),
    )
    loaded_pipelines: int = field(
        default=4,
        metadata=_setting(
            "Number of processes that `filestore runtime serve` keeps for pipelines, each with one of them loaded",
            unit="count",
            parse=_whole(1, 1024),
        ),
    )
    processes_per_pipeline: int | None = field(
        default=None,
        metadata=_setting(
            "Number of processes of one pipeline, which do as many runs at once; they count in loaded_pipelines",
            unit="count",
            parse=_whole(1, 1024),
            default="as many as there are cores, and as run_memory_limit fits into the memory; at least 1",
        ),
    )
    environment: tuple[tuple[str, Path], ...] = field(
        default=(),
        metadata=_setting(
            "The Python in which `filestore runtime serve` runs the pipelines of the environment NAME; "
            "an option for each, and commas between them in the variable",
            unit="NAME=PATH of a Python with the Pipeline SDK",
            parse=_pythons,
            default="none: all pipelines run in the Python of the runtime",
            is_repeatable=True,
        ),
    )
    run_results_seconds: float = field(
        default=7 * 86400.0,
        metadata=_setting(
            "How long the result and the logs of a run are kept after its end",
            unit="seconds",
            parse=_seconds(10 * 366 * 86400),
        ),
    )
    run_files_seconds: float | None = field(
        default=None,
        metadata=_setting(
            "How long a file that runs have returned is kept after a run last returned or used it",
            unit="seconds",
            parse=_seconds(10 * 366 * 86400),
            default="none: it is kept",
        ),
    )
    public_run_files: bool = field(
        default=False,
        metadata=_setting(
            "Whether everyone who knows its path can read a file that a run has returned",
            unit="yes or no",
            parse=_claim,
        ),
    )
    zip_entries: int = field(
        default=DEFAULT_LIMITS.entries,
        metadata=_setting(
            "The most files, links and folders in a zip file that is unpacked",
            unit="count",
            parse=_whole(1, 1_000_000_000),
            has_option=False,
        ),
    )
    zip_total_size: int = field(
        default=DEFAULT_LIMITS.total_size,
        metadata=_setting("The most bytes that a zip file may unpack to", unit=_SIZE_UNIT, parse=_size(1), has_option=False),
    )
    zip_ratio: int = field(
        default=DEFAULT_LIMITS.ratio,
        metadata=_setting(
            "How many times its own size a zip file may unpack to; the first MiB is always allowed",
            unit="ratio",
            parse=_whole(1, 1_000_000),
            has_option=False,
        ),
    )
    zip_name_size: int = field(
        default=DEFAULT_LIMITS.name_size,
        metadata=_setting("The most bytes of a path in a zip file", unit=_SIZE_UNIT, parse=_size(1), has_option=False),
    )
    zip_depth: int = field(
        default=DEFAULT_LIMITS.depth,
        metadata=_setting(
            "The most folders inside each other in a zip file", unit="count", parse=_whole(1, 65535), has_option=False
        ),
    )
    zip_directory_size: int = field(
        default=DEFAULT_LIMITS.directory_size,
        metadata=_setting(
            "The most bytes of the central directory of a zip file, which is held in memory",
            unit=_SIZE_UNIT,
            parse=_size(1),
            has_option=False,
        ),
    )
    url_private_allowed: bool = field(
        default=DEFAULT_DOWNLOAD_LIMITS.private_allowed,
        metadata=_setting(
            "Whether a URL may lead to an address that is not public, such as 127.0.0.1 or 10.0.0.1",
            unit="yes or no",
            parse=_claim,
            has_option=False,
        ),
    )
    url_networks_refused: tuple[str, ...] = field(
        default=DEFAULT_DOWNLOAD_LIMITS.networks_refused,
        metadata=_setting(
            "The networks that a URL may not lead to, with commas between them, also where url_private_allowed is yes",
            unit="networks such as 203.0.113.0/24",
            parse=_networks,
            default="none",
            has_option=False,
        ),
    )
    url_size_limit: int = field(
        default=DEFAULT_DOWNLOAD_LIMITS.size,
        metadata=_setting(
            "Bytes of the largest file that is downloaded from a URL", unit=_SIZE_UNIT, parse=_size(0), has_option=False
        ),
    )
    url_redirects: int = field(
        default=DEFAULT_DOWNLOAD_LIMITS.redirects,
        metadata=_setting(
            "The most redirects from a URL that are followed", unit="count", parse=_whole(0, 100), has_option=False
        ),
    )
    url_first_byte_seconds: float = field(
        default=DEFAULT_DOWNLOAD_LIMITS.first_byte_seconds,
        metadata=_setting(
            "How long the server of a URL may take until its answer begins, including redirects",
            unit="seconds",
            parse=_seconds(86400),
            has_option=False,
        ),
    )
    url_proxy: str | None = field(
        default=None,
        repr=False,
        metadata=_setting(
            "The HTTP proxy for downloads from URLs; it then decides which addresses can be reached",
            unit="URL such as http://HOST:PORT",
            parse=_proxy,
            default="none: HTTP_PROXY and HTTPS_PROXY are not used for them",
            has_option=False,
        ),
    )

    @property
    def download_limits(self) -> DownloadLimits:
        """The limits of a download from a URL: the settings `url_*`, `stall_seconds` and `retry_seconds`."""
        return DownloadLimits(
            size=self.url_size_limit,
            redirects=self.url_redirects,
            first_byte_seconds=self.url_first_byte_seconds,
            stall_seconds=self.stall_seconds,
            retry_seconds=self.retry_seconds,
            private_allowed=self.url_private_allowed,
            networks_refused=self.url_networks_refused,
            proxy=self.url_proxy,
        )

    @property
    def server_limits(self) -> ServerLimits:
        """The limits of a server: all settings that have the name of such a limit."""
        return ServerLimits(**{limit.name: getattr(self, limit.name) for limit in fields(ServerLimits)})

    @property
    def zip_limits(self) -> ZipLimits:
        """The limits of a zip file that is unpacked: all settings whose names begin with `zip_`."""
        return ZipLimits(**{limit.name: getattr(self, f"zip_{limit.name}") for limit in fields(ZipLimits)})


@cache
def setting_definitions() -> Mapping[str, Setting]:
    """The definition of each setting by its name, in the order of the documentation."""
    return {setting.name: setting.metadata["definition"](setting.name, setting.default) for setting in fields(Settings)}


def settings_from(
    *,
    folders: Folders,
    options: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    file_path: str = "",
    used: Collection[str] = ("root", "cache"),
) -> Settings:
    """Take each setting from the options, the environment or the configuration file, in this order, or its default.

    None and an empty variable count as not set. If this user has no home folder, the default folders are not
    known. That is an error for the folders in `used`. Each other folder becomes a path at which nothing can be made.

    Raises InvalidSetting, which names the place of a bad value, or a name in the file that is not a setting.
    """
    for name in file or {}:
        if name not in setting_definitions() or setting_definitions()[name].environment is None:
            raise InvalidSetting(f"{name} in {file_path}", _unknown_reason(name))
    values: dict[str, Any] = {
        "root": folders.data or UNKNOWN_FOLDER,
        "cache": folders.cache or UNKNOWN_FOLDER,
        "push_cache": (folders.state or UNKNOWN_FOLDER) / "journal.sqlite",
    }
    for name, setting in setting_definitions().items():
        given = _first_given(name, setting, options=options or {}, environ=environ or {}, file=file or {}, file_path=file_path)
        if given is not None:
            values[name] = parse_setting(name, given.value, source=given.source)
        elif values.get(name) == UNKNOWN_FOLDER and name in used:
            reason = f"the home folder of this user is not known; set HOME, or give {option_of(name)} or {setting.environment}"
            raise InvalidSetting(f"the default of {name}", reason)
    return Settings(**values)


def _unknown_reason(name: str) -> str:
    if name in setting_definitions():
        return f"only the option {option_of(name)} changes it"
    known = [known for known, setting in setting_definitions().items() if setting.environment is not None]
    nearest = get_close_matches(name.lower().replace("-", "_"), known, 1)
    if nearest:
        return f"there is no such setting; did you mean {nearest[0]}?"
    return f"there is no such setting; the settings are {', '.join(known)}"


def without_effect(environ: Mapping[str, str]) -> dict[str, str]:
    """Return why some variables of the environment have no effect, by their names.

    Such a variable looks like a mistyped one of a setting, or like one of a setting that only its option changes. Other
    programs may have variables that begin in the same way too, so one that is like none of ours is not among them.
    """
    variables = {setting.environment for setting in setting_definitions().values()}
    names = [name for name, setting in setting_definitions().items() if setting.environment is not None]
    found = {}
    for variable in sorted(environ):
        name = variable.lower().removeprefix(_VARIABLE_START)
        if not variable.lower().startswith(_VARIABLE_START) or variable in variables:
            continue
        if name in setting_definitions() and name not in names:
            found[variable] = _unknown_reason(name)
        elif nearest := get_close_matches(name, names, 1, _NEAR if len(name) > _SHORT else _NEAR_SHORT):
            found[variable] = f"no setting has this name; did you mean {setting_definitions()[nearest[0]].environment}?"
    return found


def option_of(name: str) -> str:
    """Return the option of the command line for a setting."""
    return "--" + name.replace("_", "-")


def parse_setting(name: str, value: object, *, source: str) -> Any:
    """Return the value of the setting `name` that was written as `value`.

    Raises InvalidSetting, which names `source`.
    """
    try:
        return setting_definitions()[name].parse(value)
    except ValueError as error:
        raise InvalidSetting(source, str(error)) from None


class _GivenValue(NamedTuple):
    source: str
    value: object


def _first_given(
    name: str,
    setting: Setting,
    *,
    options: Mapping[str, object],
    environ: Mapping[str, str],
    file: Mapping[str, object],
    file_path: str,
) -> _GivenValue | None:
    if options.get(name) is not None:
        return _GivenValue(option_of(name), options[name])
    text = "" if setting.environment is None else environ.get(setting.environment)
    # A URL or another value of this form is a mistake, of which the user must hear.
    if text and not (name == "port" and _SERVICE.match(text)):
        return _GivenValue(str(setting.environment), text)
    if name in file:
        return _GivenValue(f"{name} in {file_path}", file[name])
    return None
