from __future__ import annotations

import copy
import pickle

import pytest

from filestore.core.digest import Digest, chunk_digest, manifest_digest, parse_digests, token_digest
from filestore.errors import InvalidDigest

TEXT = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_a_chunk_is_named_by_plain_blake3() -> None:
    """The value that the BLAKE3 specification gives for no bytes."""
    assert TEXT == str(chunk_digest(b""))


def test_parse_is_the_inverse_of_str() -> None:
    """A digest is the same after `str` and `parse`."""
    assert chunk_digest(b"") == Digest.parse(TEXT)
    assert bytes.fromhex(TEXT) == Digest.parse(TEXT)
    assert f"Digest('{TEXT}')" == repr(Digest.parse(TEXT))


@pytest.mark.parametrize(
    "text",
    ["", TEXT[:-1], TEXT + "0", TEXT.upper(), TEXT[:-1] + "g", TEXT + "\n", " " + TEXT[1:], "0x" + TEXT[2:], TEXT[:-1] + "٣"],
)
def test_refuses_every_other_text(text: str) -> None:
    """Only 64 lower-case hexadecimal digits are a digest, without anything before, after or between them."""
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_refuses_every_other_length(size: int) -> None:
    """A digest has 32 bytes."""
    with pytest.raises(InvalidDigest):
        Digest(bytes(size))


def test_any_memory_is_digested_alike() -> None:
    """Bytes, bytearray and views give the same digest, and may become one."""
    content = b"filestore" * 1000
    digests = {chunk_digest(memory) for memory in (content, bytearray(content), memoryview(content))}
    assert 1 == len(digests)
    raw = digests.pop()
    assert raw == Digest(memoryview(raw)) == Digest(bytearray(raw))


def test_kinds_of_digests_are_kept_apart() -> None:
    """No chunk can pass for a manifest, nor either of them for a token."""
    assert 3 == len({chunk_digest(b"same"), manifest_digest(b"same"), token_digest("same")})


def test_a_copy_is_a_digest() -> None:
    """Copies and pickles, as between processes, keep the type."""
    digest = chunk_digest(b"")
    for other in (copy.copy(digest), copy.deepcopy(digest), pickle.loads(pickle.dumps(digest))):
        assert (Digest, digest) == (type(other), other)


def test_parse_digests_takes_them_apart() -> None:
    """Digests in a row are returned in order, from any kind of memory."""
    digests = [chunk_digest(bytes([number])) for number in range(3)]
    assert digests == parse_digests(b"".join(digests)) == parse_digests(memoryview(b"".join(digests)))
    assert [] == parse_digests(b"")


def test_parse_digests_refuses_a_torn_one() -> None:
    """A last one that is not whole is an error, not ignored."""
    with pytest.raises(InvalidDigest):
        parse_digests(bytes(33))


def test_any_token_has_a_digest() -> None:
    """Bytes of a header that are not UTF-8 arrive as lone surrogates: the token is unknown, and not a failure."""
    assert 3 == len({token_digest("\udcff"), token_digest("\udcfe"), token_digest("ÿ")})
