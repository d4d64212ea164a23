from __future__ import annotations

from urllib.parse import quote

import pytest

from filestore.core.names import SEGMENT_LIMIT, shortened
from filestore.core.signing import sign, signed_path, unsigned_path, verify, verify_path
from filestore.errors import UrlRefused

SECRET, OTHER = b"s" * 32, b"o" * 32


def parts_of(url: str) -> dict[str, str]:
    """Return what the pattern of a route finds in a signed path."""
    _, _, namespace, expires_at, signature, *_ = url.split("/")
    return {"namespace": namespace, "expires_at": expires_at, "signature": signature}


def test_a_signature_holds_for_its_own_arguments_only() -> None:
    """Each of them counts, and so does where one ends and the next begins."""
    signature = sign(SECRET, "GET", "a", "b", expires_at=100)
    verify(SECRET, signature, "GET", "a", "b", expires_at=100, now=99)
    for secret, purpose, parts, expires_at in (
        (OTHER, "GET", ("a", "b"), 100),
        (SECRET, "PUT", ("a", "b"), 100),
        (SECRET, "GET", ("ab",), 100),
        (SECRET, "GET", ("a", "b", ""), 100),
        (SECRET, "GET", ("a", "b"), 101),
    ):
        with pytest.raises(UrlRefused, match="is not ours"):
            verify(secret, signature, purpose, *parts, expires_at=expires_at, now=99)
    with pytest.raises(UrlRefused, match="has expired"):
        verify(SECRET, signature, "GET", "a", "b", expires_at=100, now=100)


def test_a_signed_path_names_the_path_at_its_end() -> None:
    """It is percent-encoded, for any name; HEAD is accepted where GET is."""
    path = "/pipeline_files/a b/100%é.bin"
    signed = signed_path(SECRET, "GET", path, namespace="team", expires_at=100)
    assert signed.endswith("/pipeline_files/a%20b/100%25%C3%A9.bin")
    for method in ("GET", "HEAD"):
        verify_path(SECRET, method, path, **parts_of(signed), now=99)
    for method, asked, changed in (
        ("PUT", path, {}),
        ("GET", path + "x", {}),
        ("GET", path, {"namespace": "other"}),
        ("GET", path, {"expires_at": "101"}),
        ("GET", path, {"expires_at": "0100"}),
        ("GET", path, {"expires_at": "\uff11\uff10\uff10"}),
        ("GET", path, {"expires_at": "9" * 400}),
        ("GET", path, {"expires_at": ""}),
        ("GET", path, {"signature": "\udcff"}),
    ):
        with pytest.raises(UrlRefused, match="is not ours"):
            verify_path(SECRET, method, asked, **(parts_of(signed) | changed), now=99)


def test_what_a_signed_path_stands_for() -> None:
    """The inner path of a signed path is returned; any other path is returned as it is."""
    path = "/run_files/ab/cd/uuid/name"
    assert path == unsigned_path(signed_path(SECRET, "GET", path, namespace="team", expires_at=100))
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
