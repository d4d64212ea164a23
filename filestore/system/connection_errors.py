"""Say why a connection failed, in plain words, without the class names and codes of a library."""

from __future__ import annotations

import os
import re
import socket
import ssl

_NUMBERS = re.compile(r"\[Errno ([0-9]+)\]")
_TLS_REASON = re.compile(r"\[SSL: ([A-Z0-9_]+)\]")
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
"""The reasons that OpenSSL gives for bytes that are not TLS."""

# The reasons of OpenSSL for the alerts that a server sends about the certificate of a client.
_NO_CLIENT_CERTIFICATE = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED"})
_REFUSED_CLIENT_CERTIFICATE = {
    "TLSV1_ALERT_UNKNOWN_CA",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
}

# Numbers of OpenSSL, of which Python has no names.
_OTHER_NAME = {62, 64}
"""The certificate is for other names, or for other addresses."""
_OTHER_TIME = {9, 10}
"""The certificate is not valid yet, or not any more."""


def failure_reason(error: BaseException) -> str:
    """Return in plain words why a connection failed.

    `error` is an error of the operating system, OpenSSL, asyncio or aiohttp.
    """
    # An error of aiohttp contains the error that caused it.
    error = getattr(error, "certificate_error", None) or getattr(error, "_os_error", None) or error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused, {error.verify_message.rstrip('.')}; {_advice_about(error.verify_code)}"
    if isinstance(error, ssl.SSLError):
        return _tls_reason(error.reason or "", is_cut=isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError))
    # aiohttp repeats only the text of an error on an open connection.
    found = _TLS_REASON.search(str(error))
    if found is not None:
        return _tls_reason(found[1], is_cut=False)
    if isinstance(error, UnicodeError):
        return "its host is not a name that a network can have"
    if isinstance(error, OSError):
        return _system_reason(error)
    return _http_reason(error)


def is_host_unknown(error: BaseException) -> bool:
    """Return whether a connection failed because its host has no address."""
    # An error of aiohttp contains the error that caused it.
    return isinstance(getattr(error, "_os_error", None) or error, socket.gaierror | UnicodeError)


def _advice_about(verify_code: int) -> str:
    if verify_code in _OTHER_NAME:
        return "give a URL with a name that is in the certificate"
    if verify_code in _OTHER_TIME:
        return "whoever runs the server must replace it, unless the clock of this machine is wrong"
    return "SSL_CERT_FILE names the file of an authority that you trust"


def _tls_reason(reason: str, *, is_cut: bool) -> str:
    if reason in _NO_TLS:
        return "what answers there does not speak TLS; a URL that begins with http:// may be meant"
    if reason in _NO_CLIENT_CERTIFICATE:
        return "it asks for a certificate of the client; the setting tls_client_cert names its file"
    if reason in _REFUSED_CLIENT_CERTIFICATE:
        return "it refuses the certificate of the client, which the setting tls_client_cert names"
    if is_cut:
        return "it ended the connection in the middle of TLS"
    return f"TLS failed, {(reason or 'unknown reason').lower().replace('_', ' ')}"


def _system_reason(error: OSError) -> str:
    if error.errno:
        # Numbers below 0 are errors of the look-up of names.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror or "the connection failed"
    # Several addresses were tried, and each may have failed for another reason.
    tried = dict.fromkeys(os.strerror(int(number)) for number in _NUMBERS.findall(str(error)))
    if tried:
        return ", ".join(tried)
    return "the connection was lost" if isinstance(error, ConnectionError) else error.strerror or "the connection failed"


def _http_reason(error: BaseException) -> str:
    import aiohttp  # noqa: PLC0415  # takes 0.15 s, and is loaded already if it raised the error

    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it ended the connection without an answer"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError):
        return "its answer ended too early"
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.http_exceptions.HttpProcessingError):
        return "its answer is not HTTP"
    return "the connection failed"
