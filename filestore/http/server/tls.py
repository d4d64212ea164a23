"""The certificate of a server: load it, and load it again when its files change.

New connections get the new certificate. Those that are open keep what they have. If the files cannot be used, for example
because only one of two has been replaced, the server keeps the certificate that it has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filestore.errors import InvalidSetting
from filestore.system.certificates import check_readable, load_pair
from filestore.system.metrics import Gauge, note
from filestore.system.threads import in_disk_thread, work_beside

logger = logging.getLogger("filestore.server")
_report = logging.getLogger("filestore.maintenance")

LOOK_SECONDS = 1.0
"""The time between two looks at the files."""
_WEEK = 7 * 86400
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python does not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files of a server that speaks TLS, in PEM."""

    cert: Path
    """The certificate of the server, and after it those between it and an authority that clients trust."""
    key: Path | None = None
    """The private key. None means that it is in the file of the certificate."""
    client_ca: Path | None = None
    """The authorities of client certificates. With it, a client needs a certificate of one of these, in addition to its token."""


class Certificate(NamedTuple):
    """A certificate that was loaded."""

    context: ssl.SSLContext
    expires_at: float | None
    """When it expires, in seconds since 1970, or None if it is not known."""
    is_self_signed: bool
    names: tuple[str, ...]
    """The host names and addresses that it is for, as far as they are known. One may begin with `*.`"""
    warnings: tuple[str, ...]
    """What an operator should know of it."""


class ServerTls:
    """The certificate that new connections get."""

    def __init__(self, files: TlsFiles) -> None:
        """Load the files. Raises InvalidSetting, which names the setting and says what is wrong."""
        self._files = files
        self._is_asked = asyncio.Event()
        self._failure = ""
        self._seen = _signature(files)
        self.certificate = load(files)

    @property
    def context(self) -> ssl.SSLContext:
        """What a new connection needs."""
        return self.certificate.context

    def log_warnings(self) -> None:
        """Write to the log what an operator should know of the certificate."""
        for warning in self.certificate.warnings:
            logger.warning("%s", warning)

    def reload(self) -> None:
        """Load the files again soon, also if they look the same. Call it in the event loop."""
        self._is_asked.set()

    @asynccontextmanager
    async def watched(self, *, tells: bool = True) -> AsyncIterator[None]:
        """Load the files again whenever they change during the block. Only a process that `tells` writes it to the log."""
        self._is_asked = asyncio.Event()
        await in_disk_thread(partial(self._look, tells=tells, is_asked=False))
        self._note_expiry()
        async with work_beside(self._watch(tells=tells)):
            yield

    async def _watch(self, *, tells: bool) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._is_asked.wait()
            is_asked = self._is_asked.is_set()
            self._is_asked.clear()
            await in_disk_thread(partial(self._look, tells=tells, is_asked=is_asked))

    def _look(self, *, tells: bool, is_asked: bool) -> None:
        seen = _signature(self._files)
        if seen == self._seen and not is_asked:
            return
        # What changes while the files are read is seen by the next look.
        self._seen = seen
        try:
            self.certificate = load(self._files)
        except InvalidSetting as error:
            if tells and (is_asked or str(error) != self._failure):
                logger.warning("the certificate in use is kept: %s", error)
            self._failure = str(error)
            return
        self._failure = ""
        self._note_expiry()
        if tells:
            until = "" if self.certificate.expires_at is None else f", which is valid until {_day(self.certificate.expires_at)}"
            _report.info("new connections get the certificate in %s%s", self._files.cert, until)
            self.log_warnings()

    def _note_expiry(self) -> None:
        if self.certificate.expires_at is not None:
            note(Gauge.CERTIFICATE_EXPIRES_AT, value=self.certificate.expires_at)


def load(files: TlsFiles) -> Certificate:
    """Load the certificate and the key of a server, and check that they work. Raises InvalidSetting."""
    try:
        return _load(files)
    except OSError as error:  # a file was replaced in between
        raise InvalidSetting("tls_cert", f"{files.cert}: {error.strerror or error}") from None


def _load(files: TlsFiles) -> Certificate:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    load_pair(context, files.cert, files.key, name="tls")
    shown, complaint = _shown(context, files.cert)
    warnings = [*_readers_warning(files.key or files.cert), *_validity_warnings(files.cert, shown, complaint, now=time.time())]
    if files.client_ca is not None:
        check_readable("tls_client_ca", files.client_ca)
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, ValueError):
            raise InvalidSetting("tls_client_ca", f"{files.client_ca} has no certificate in PEM") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return Certificate(context, _seconds(shown, "notAfter"), _is_self_signed(shown), _names(shown), tuple(warnings))


def _shown(context: ssl.SSLContext, cert: Path) -> tuple[Mapping[str, object], str]:
    """Return what a client sees of the certificate, and why it refuses it, except for dates and names.

    A handshake in memory shows it: Python itself reads a certificate only from a connection.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [context.wrap_bio(to_server, to_client, server_side=True), client.wrap_bio(to_client, to_server)]
    for _ in range(4):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return {}, error.verify_message
            except ssl.SSLError as error:
                return {}, (error.reason or "unknown reason").lower().replace("_", " ")
    return ends[1].getpeercert() or {}, ""


def _validity_warnings(cert: Path, shown: Mapping[str, object], complaint: str, *, now: float) -> list[str]:
    begins_at, expires_at = _seconds(shown, "notBefore"), _seconds(shown, "notAfter")
    if complaint:
        return [f"clients refuse the certificate in {cert}: {complaint}"]
    if expires_at is not None and expires_at < now:
        return [f"the certificate in {cert} expired on {_day(expires_at)}, and clients refuse it; replace it"]
    if expires_at is not None and expires_at < now + _WEEK:
        return [f"the certificate in {cert} expires on {_day(expires_at)}; replace it before"]
    if begins_at is not None and begins_at > now:
        return [f"the certificate in {cert} is valid from {_day(begins_at)} only, and clients refuse it; check the clock"]
    return []


def _readers_warning(key: Path) -> list[str]:
    if os.stat(key).st_mode & stat.S_IROTH:  # noqa: PTH116  # as in `_signature`
        return [f"other users of this machine can read the private key in {key}; run `chmod 600` on it"]
    return []


def _seconds(shown: Mapping[str, object], name: str) -> float | None:
    value = shown.get(name)
    try:
        return float(ssl.cert_time_to_seconds(value)) if isinstance(value, str) else None
    except ValueError:  # not a date of today's certificates
        return None


def _is_self_signed(shown: Mapping[str, object]) -> bool:
    return bool(shown) and shown.get("issuer") == shown.get("subject")


def _names(shown: Mapping[str, object]) -> tuple[str, ...]:
    pairs = shown.get("subjectAltName")
    return tuple(name for kind, name in pairs if kind in {"DNS", "IP Address"}) if isinstance(pairs, tuple) else ()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _signature(files: TlsFiles) -> tuple[object, ...]:
    """Return what changes when one of the files does. A link is followed: that is how some programs replace certificates."""
    return tuple(_state(path) for path in (files.cert, files.key, files.client_ca) if path is not None)


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
