"""The files of a server's certificate: what is wrong with them is said, and a bad pair never takes the place of a good one."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from filestore.errors import InvalidSetting
from filestore.http.server.rarely import Rarely
from filestore.http.server.tls import ServerTls, TlsFiles, load
from tests.support.authority import Authority, Pair
from tests.support.tls import CERTIFICATE

Damage = Callable[[Authority, Pair], TlsFiles]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority with files of its own."""
    return Authority(tmp_path / "authority")


def files(pair: Pair) -> TlsFiles:
    """Return the files of a pair."""
    return TlsFiles(cert=pair.cert, key=pair.key)


def without_key(_: Authority, pair: Pair) -> TlsFiles:
    """The key was moved."""
    pair.key.unlink()
    return files(pair)


def with_other_key(authority: Authority, pair: Pair) -> TlsFiles:
    """The key belongs to another certificate."""
    return TlsFiles(cert=pair.cert, key=authority.pair("other").key)


def with_encrypted_key(_: Authority, pair: Pair) -> TlsFiles:
    """The key needs a password."""
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    return files(pair)


def without_certificate(_: Authority, pair: Pair) -> TlsFiles:
    """The file of the certificate was cut off by a full disk."""
    pair.cert.write_bytes(b"")
    return files(pair)


def with_half_a_certificate(_: Authority, pair: Pair) -> TlsFiles:
    """The file of the certificate is half written."""
    pair.cert.write_bytes(pair.cert.read_bytes()[:200])
    return files(pair)


def with_the_key_in_the_wrong_place(_: Authority, pair: Pair) -> TlsFiles:
    """Both settings name the certificate."""
    return TlsFiles(cert=pair.cert)


def with_no_authority(_: Authority, pair: Pair) -> TlsFiles:
    """The file of the authority of clients holds something else."""
    return TlsFiles(cert=pair.cert, key=pair.key, client_ca=pair.key)


def with_a_pipe(_: Authority, pair: Pair) -> TlsFiles:
    """Nobody writes to it, so to read it would never end."""
    pair.cert.unlink()
    os.mkfifo(pair.cert)
    return files(pair)


@pytest.mark.parametrize(
    ("damage", "source", "reason"),
    [
        (without_key, "tls_key", "No such file or directory"),
        (with_other_key, "tls_key", "does not belong to the certificate in "),
        (with_encrypted_key, "tls_key", "is encrypted, and nobody is asked for its password"),
        (without_certificate, "tls_cert", "has no certificate in PEM"),
        (with_half_a_certificate, "tls_cert", "is damaged"),
        (with_the_key_in_the_wrong_place, "tls_key", "has no private key in PEM"),
        (with_no_authority, "tls_client_ca", "has no certificate in PEM"),
        (with_a_pipe, "tls_cert", "is not a file"),
    ],
)
def test_what_is_wrong_is_said(authority: Authority, damage: Damage, source: str, reason: str) -> None:
    """The error names the setting and the file."""
    with pytest.raises(InvalidSetting) as raised:
        load(damage(authority, authority.pair("server")))
    assert source == raised.value.source
    assert reason in raised.value.reason


def test_a_good_pair_has_no_warning(authority: Authority) -> None:
    """Its context speaks TLS 1.2 and later, and asks for no certificate of a client."""
    pair = authority.pair("server")
    loaded = load(files(pair))
    assert ((), False) == (loaded.warnings, loaded.is_self_signed)
    assert ssl.TLSVersion.TLSv1_2 == loaded.context.minimum_version
    assert ssl.CERT_NONE == loaded.context.verify_mode
    assert ssl.CERT_REQUIRED == load(TlsFiles(cert=pair.cert, key=pair.key, client_ca=authority.path)).context.verify_mode


def test_a_certificate_and_its_key_may_be_in_one_file() -> None:
    """Some programs write them so. This one signs itself."""
    assert load(TlsFiles(cert=CERTIFICATE)).is_self_signed


@pytest.mark.parametrize(
    ("expires_in", "warning"),
    [(timedelta(days=-1), "expired on "), (timedelta(days=3), "expires on ")],
)
def test_an_expired_certificate_is_a_warning(authority: Authority, expires_in: timedelta, warning: str) -> None:
    """The server starts: a client that trusts this certificate alone may go on."""
    (told,) = load(files(authority.pair("server", expires_in=expires_in))).warnings
    assert warning in told


def test_a_key_that_others_can_read_is_a_warning(authority: Authority) -> None:
    """It says how to mend it."""
    pair = authority.pair("server")
    pair.key.chmod(0o644)
    (told,) = load(files(pair)).warnings
    assert f"other users of this machine can read the private key in {pair.key}; run `chmod 600` on it" == told


async def test_a_bad_pair_is_told_once_and_the_good_one_is_kept(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """The next good pair takes its place, also if it has the time and the size of the old one."""
    pair, following = authority.pair("server"), authority.pair("next")
    tls = ServerTls(files(pair))
    first = tls.context
    async with tls.watched():
        pass
    assert tls.context is first
    following.cert.replace(pair.cert)
    for _ in range(3):
        async with tls.watched():
            pass
        os.utime(pair.cert)
    assert tls.context is first
    assert 1 == caplog.text.count("the certificate in use is kept")
    following.key.replace(pair.key)
    async with tls.watched():
        pass
    assert tls.context is not first
    assert 1 == caplog.text.count("is kept")


async def test_a_certificate_that_disappears_is_kept(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """Some programs remove a file before they write the new one."""
    pair = authority.pair("server")
    tls = ServerTls(files(pair))
    first = tls.context
    pair.cert.unlink()
    async with tls.watched():
        pass
    assert tls.context is first
    assert f"the certificate in use is kept: tls_cert cannot be used: {pair.cert}: No such file or directory" in caplog.text


def test_events_are_counted_between_two_lines() -> None:
    """The first one is told at once."""
    now = 0.0
    rarely = Rarely(60, clock=lambda: now)
    assert [1, 0, 0] == [rarely.count() for _ in range(3)]
    now = 61.0
    assert [3, 0] == [rarely.count() for _ in range(2)]
