"""Why a connection failed, in plain words: neither the names of a library's classes nor its codes."""

from __future__ import annotations

import os
import re
import ssl

_NUMBERS = re.compile(r"\[Errno ([0-9]+)\]")
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
"""What OpenSSL says of bytes that are no TLS."""


def failure_reason(error: BaseException) -> str:
    """What happened to a connection, from what the operating system, OpenSSL, asyncio or aiohttp raised."""
    # What aiohttp raises holds what it came from.
    error = getattr(error, "certificate_error", None) or getattr(error, "_os_error", None) or error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused, {error.verify_message}; SSL_CERT_FILE names the file of an authority that you trust"
    if isinstance(error, ssl.SSLError):
        return _tls_reason(error)
    if isinstance(error, UnicodeError):
        return "its host is no name that a network can have"
    if isinstance(error, OSError):
        return _system_reason(error)
    return _http_reason(error)


def _tls_reason(error: ssl.SSLError) -> str:
    if error.reason in _NO_TLS:
        return "what answers there does not speak TLS; a URL that begins with http:// may be meant"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "it ended the connection in the middle of TLS"
    return f"TLS failed, {(error.reason or 'unknown reason').lower().replace('_', ' ')}"


def _system_reason(error: OSError) -> str:
    if error.errno:
        # Below 0 are those of names that are looked up.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror or "the connection failed"
    # Several addresses were tried, and each failed in its own way.
    tried = dict.fromkeys(os.strerror(int(number)) for number in _NUMBERS.findall(str(error)))
    if tried:
        return ", ".join(tried)
    return "the connection was lost" if isinstance(error, ConnectionError) else error.strerror or "the connection failed"


def _http_reason(error: BaseException) -> str:
    import aiohttp  # noqa: PLC0415  # takes 0.15 s, and only what it raises comes here

    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it ended the connection without an answer"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError):
        return "its answer ended too early"
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.http_exceptions.HttpProcessingError):
        return "its answer is not HTTP"
    return "the connection failed"
