from __future__ import annotations

from urllib.parse import quote

import pytest

from filestore.core.digest import token_digest
from filestore.core.names import SEGMENT_LIMIT, shortened
from filestore.core.signing import NO_ISSUER, SigningKeys, sign, signed_path, unsigned_path, verify_path
from filestore.errors import UrlRefused

KEYS = SigningKeys.first(b"s" * 32)
PATH = "/pipeline_files/a b/100%é.bin"
ISSUER = KEYS.issuer(token_digest("a token"))


def parts_of(url: str) -> dict[str, str]:
    """Return what the pattern of a route finds in a signed path."""
    _, _, namespace, expires_at, signature, *_ = url.split("/")
    return {"namespace": namespace, "expires_at": expires_at, "signature": signature}


def signed(keys: SigningKeys = KEYS, *, issuer: str = ISSUER) -> dict[str, str]:
    """The parts of a path that `keys` sign for GET until the time 100."""
    return parts_of(signed_path(keys, "GET", PATH, namespace="team", expires_at=100, issuer=issuer))


def test_a_signed_path_names_the_path_at_its_end() -> None:
    """It is percent-encoded, for any name; HEAD is accepted where GET is; it tells who asked for it."""
    path = signed_path(KEYS, "GET", PATH, namespace="team", expires_at=100, issuer=ISSUER)
    assert path.endswith("/pipeline_files/a%20b/100%25%C3%A9.bin")
    for method in ("GET", "HEAD"):
        assert ISSUER == verify_path(KEYS, method, PATH, **parts_of(path), now=99)


def test_a_signature_holds_for_its_own_arguments_only() -> None:
    """Each of them counts, and so do the key and the issuer that it names."""
    signature = signed()["signature"]
    for method, asked, changed in (
        ("PUT", PATH, {}),
        ("GET", PATH + "x", {}),
        ("GET", PATH, {"namespace": "other"}),
        ("GET", PATH, {"expires_at": "101"}),
        ("GET", PATH, {"expires_at": "0100"}),
        ("GET", PATH, {"expires_at": "\uff11\uff10\uff10"}),
        ("GET", PATH, {"expires_at": "9" * 400}),
        ("GET", PATH, {"expires_at": ""}),
        ("GET", PATH, {"signature": "\udcff"}),
        ("GET", PATH, {"signature": signature.upper()}),
        ("GET", PATH, {"signature": f"{'0' * 8}{signature[8:]}"}),
        ("GET", PATH, {"signature": f"{signature[:8]}{NO_ISSUER}{signature[24:]}"}),
        ("GET", PATH, {"signature": f"{signature[:24]}{'0' * 40}"}),
        ("GET", PATH, {"signature": sign(KEYS.secret, "GET", "team", PATH, expires_at=100)}),
        ("GET", PATH, signed(SigningKeys.first(b"o" * 32))),
    ):
        with pytest.raises(UrlRefused, match="is not ours"):
            verify_path(KEYS, method, asked, **(signed() | changed), now=99)
    with pytest.raises(UrlRefused, match="has expired"):
        verify_path(KEYS, "GET", PATH, **signed(), now=100)


def test_two_keys_are_accepted() -> None:
    """The URLs of the previous key are accepted until a time, and those of a revoked one never."""
    rotated = KEYS.rotated(b"n" * 32, now=50, until=90)
    assert (
        ISSUER
        == verify_path(rotated, "GET", PATH, **signed(), now=89)
        == verify_path(rotated, "GET", PATH, **signed(rotated), now=99)
    )
    revoked = (rotated, 90), (KEYS.rotated(b"n" * 32, now=50, until=50), 51), (rotated.rotated(b"m" * 32, now=60, until=90), 61)
    for keys, now in revoked:
        with pytest.raises(UrlRefused, match="is not ours"):
            verify_path(keys, "GET", PATH, **signed(), now=now)


def test_issuers_are_those_of_the_repository() -> None:
    """They outlive a rotation, differ between tokens and between repositories, and do not tell the digest of a token."""
    digest = token_digest("a token")
    assert ISSUER == KEYS.rotated(b"n" * 32, now=50, until=90).issuer(digest)
    assert 3 == len({ISSUER, KEYS.issuer(token_digest("another")), SigningKeys.first(b"o" * 32).issuer(digest)})
    assert ISSUER not in str(digest)


def test_keys_are_not_shown() -> None:
    """Not in what a log or a traceback shows of them."""
    assert "s" * 8 not in repr(KEYS)
    assert KEYS.current.secret.hex() not in repr(KEYS)
    assert repr(KEYS.current.secret) not in repr(KEYS)


def test_what_a_signed_path_stands_for() -> None:
    """The inner path of a signed path is returned; any other path is returned as it is."""
    path = "/run_files/ab/cd/uuid/name"
    assert path == unsigned_path(signed_path(KEYS, "GET", path, namespace="team", expires_at=100))
    for other in (path, "/signed", "/signed/team/100", "/", "/signedness/a/b/c/d"):
        assert other == unsigned_path(other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image-0.jpg", "image-0.jpg"),
        ("a" * 255, "a" * 255),
        ("a" * 251 + ".bin", "a" * 251 + ".bin"),
        ("é" * 42 + "abc", "é" * 42 + "abc"),
        ("é" * 42 + ".bin", "é" * 41 + ".bin"),
        ("€" * 80 + ".tar.gz", "€" * 28 + ".gz"),
        ("%" * 255, "%" * 85),
        ("." + "€" * 80, "." + "€" * 28),
        ("a." + "€" * 80, "a." + "€" * 28),
    ],
    ids=["short", "255", "255 with an extension", "longest", "letters", "two dots", "percents", "hidden", "no extension"],
)
def test_a_long_name_is_shortened(name: str, expected: str) -> None:
    """It keeps whole characters, and its extension."""
    assert expected == shortened(name)
    assert SEGMENT_LIMIT >= len(quote(expected, safe=""))
