"""Load a certificate and its private key into a TLS context, and say what is wrong with the files."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from filestore.errors import InvalidSetting


def load_pair(context: ssl.SSLContext, cert: Path, key: Path | None, *, name: str) -> None:
    """Load a pair from files in PEM. None means that the key is in the file of the certificate.

    The settings of the files are `name` with `_cert` and with `_key`. Raises InvalidSetting, which names the right one.
    """
    of_cert, of_key = f"{name}_cert", f"{name}_key"
    check_readable(of_cert, cert)
    check_readable(of_key, key or cert)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _KeyEncryptedError:
        reason = f"the key in {key or cert} is encrypted, and nobody is asked for its password; decrypt it with `openssl pkey`"
        raise InvalidSetting(of_key, reason) from None
    except ssl.SSLError as error:
        setting, reason = _fault(error.reason or "unknown reason", cert, key or cert)
        raise InvalidSetting(of_key if setting == "key" else of_cert, reason) from None
    except (OSError, ValueError) as error:
        raise InvalidSetting(of_cert, f"{cert}: {error}") from None


def check_readable(setting: str, path: Path) -> None:
    """Raise InvalidSetting if a file cannot be read. To read a pipe would wait for somebody who writes."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):
            raise InvalidSetting(setting, f"{path} is not a file")
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InvalidSetting(setting, f"{path}: {error.strerror or error}") from None


def _fault(reason: str, cert: Path, key: Path) -> tuple[str, str]:
    """Return which of the two files OpenSSL does not take, and why."""
    if reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}:
        return "key", f"the key in {key} does not belong to the certificate in {cert}"
    if reason in {"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}:
        return "cert", f"the certificate in {cert} is too weak for today's TLS; make one with a longer key"
    if b"-----BEGIN CERTIFICATE-----" not in cert.read_bytes():
        return "cert", f"{cert} has no certificate in PEM"
    if b"PRIVATE KEY-----" not in key.read_bytes():
        return "key", f"{key} has no private key in PEM"
    return "cert", f"the certificate in {cert} or the key in {key} is damaged ({reason.lower().replace('_', ' ')})"


class _KeyEncryptedError(Exception):
    """OpenSSL asks for a password."""


def _no_password() -> str:
    raise _KeyEncryptedError
