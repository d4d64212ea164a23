"""The URL of an object store, the keys in it, and what its errors become."""

from __future__ import annotations

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.object_names import ObjectName
from filestore.errors import Busy, FilestoreError, InvalidUrl, StorageError, StorageFull, StoreRefused
from filestore.repository.stores.s3_errors import translated
from filestore.repository.stores.s3_keys import frame_key, manifest_key, parse_key
from filestore.repository.stores.s3_location import S3Location, parse_location
from filestore.repository.stores.s3_open import new_s3_client


@pytest.mark.parametrize(
    ("url", "location", "shown"),
    [
        ("s3://models", S3Location("models"), "s3://models"),
        ("s3://models/", S3Location("models"), "s3://models"),
        ("s3://models/a/b/", S3Location("models", "a/b"), "s3://models/a/b"),
        (
            "s3://models/a?endpoint=http://127.0.0.1:8480/&region=eu-central-1",
            S3Location("models", "a", "http://127.0.0.1:8480", "eu-central-1"),
            "s3://models/a",
        ),
        (
            "s3://models?endpoint=https%3A%2F%2Fs3.example.org&path_style=false",
            S3Location("models", "", "https://s3.example.org", None, path_style=False),
            "s3://models",
        ),
        (
            "s3://models?endpoint=http://10.0.0.1&public_endpoint=https://s3.example.org/",
            S3Location("models", endpoint="http://10.0.0.1", public_endpoint="https://s3.example.org"),
            "s3://models",
        ),
        ("s3://models?path_style=true", S3Location("models"), "s3://models"),
        ("s3://models?endpoint=http://[::1]:80", S3Location("models", endpoint="http://[::1]:80"), "s3://models"),
    ],
)
def test_locations(url: str, location: S3Location, shown: str) -> None:
    """Each part is read. What is shown has no query, and the whole form is read again as the same location."""
    found = parse_location(url)
    assert (location, shown) == (found, str(found))
    assert found == parse_location(found.url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://models/a//b", "its prefix is made of"),
        ("s3://models/../b", "its prefix is made of"),
        ("s3://models/a b", "its prefix is made of"),
        ("s3://models/%2e%2e", "its prefix is made of"),
        ("s3://models?end=http://h", "after the [?] it may have endpoint, region, path_style, public_endpoint, each once"),
        ("s3://models?region=a&region=b", "each once"),
        ("s3://models?region", "looks like"),
        ("s3://models?region=", "its region is not one"),
        ("s3://models?path_style=1", "its path_style"),
        ("s3://models?endpoint=", "its endpoint is the URL"),
        ("s3://models?endpoint=127.0.0.1:8480", "its endpoint is the URL"),
        ("s3://models?endpoint=ftp://host", "its endpoint is the URL"),
        ("s3://models?public_endpoint=ftp://host", "its endpoint is the URL"),
        ("s3://models?endpoint=http://host:port", "its endpoint is the URL"),
        ("s3://models?endpoint=http://host/path", "its endpoint is the URL"),
        ("s3://models#there", "looks like"),
        ("http://models", "looks like"),
        ("s3://[models", "looks like"),
    ],
)
def test_wrong_locations(url: str, reason: str) -> None:
    """Each is refused with what is wrong with it."""
    with pytest.raises(InvalidUrl, match=reason):
        parse_location(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:topsecret@models/prefix",
        "s3://models?endpoint=http://user:topsecret@host",
        "s3://models?secret_access_key=topsecret",
        "s3://models#topsecret",
        "s3://models?region=topsecret!",
    ],
)
def test_a_password_is_not_shown(url: str) -> None:
    """A URL with one is refused, and the refusal does not repeat it."""
    with pytest.raises(InvalidUrl) as caught:
        parse_location(url)
    assert "topsecret" not in str(caught.value)


def test_keys_are_read_again() -> None:
    """The key of an object has its whole name."""
    name = ObjectName(chunk_digest(b"content"), bytes(range(8)))
    text = str(name.digest)
    assert f"frames/default/{text[:2]}/{text}.0001020304050607" == frame_key("default", name)
    assert [name] * 2 == [parse_key(key) for key in (frame_key("a", name), manifest_key("b", name))]
    for key in ("", "clock", f"frames/a/ab/{text}", f"frames/a/ab/{text}.00", f"frames/a/ab/{text}.0001020304050607.tmp"):
        assert parse_key(key) is None


def answered(status: int, code: str = "") -> Exception:
    """What obstore raises for an answer, in the form that `translated` reads."""
    body = f"<Error><Code>{code}</Code><Message>topsecret</Message></Error>"
    return Exception(f"Error performing GET http://h/b/k in 1ms - Server returned non-2xx status code: {status} X: {body}")


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (answered(503, "SlowDown"), Busy, "it answered 503 SlowDown"),
        (answered(500), Busy, "it answered 500"),
        (answered(429), Busy, "it answered 429"),
        (answered(409, "OperationAborted"), Busy, "it answered 409"),
        (answered(400, "RequestTimeout"), Busy, "it answered 400"),
        (answered(403, "QuotaExceeded"), StorageFull, "QuotaExceeded"),
        (answered(507), StorageFull, "507"),
        (answered(403, "AccessDenied"), StoreRefused, "do not permit"),
        (answered(403), StoreRefused, "it answered 403"),
        (answered(401), StoreRefused, "it answered 401"),
        (answered(400, "ExpiredToken"), StoreRefused, "have expired"),
        (answered(403, "RequestTimeTooSkewed"), StoreRefused, "the clock of this machine"),
        (answered(404, "NoSuchBucket"), StorageError, "does not exist"),
        (answered(404, "NoSuchKey"), StorageError, "it answered 404 NoSuchKey"),
        (answered(301, "PermanentRedirect"), StorageError, "in another region"),
        (answered(400, "AuthorizationHeaderMalformed"), StorageError, "in another region"),
        (answered(418), StorageError, "it answered 418"),
        (Exception("HTTP error: error sending request\n\nDebug source:\nkind: Connect"), Busy, "cannot be reached"),
        (Exception("HTTP error: x\n\nDebug source:\nkind: Connect dns error"), Busy, "the name of its host is not known"),
        (Exception("HTTP error: x\n\nDebug source:\nkind: Connect InvalidCertificate"), StorageError, "cannot be trusted"),
        (Exception("HTTP error: operation\n\nDebug source:\nTimedOut"), Busy, "did not answer in time"),
        (Exception("HTTP error: error decoding response body"), Busy, "the connection to it broke"),
        (Exception("Error performing PUT http://169.254.169.254/latest: 403"), StoreRefused, "no credentials are given"),
        (Exception("Generic S3 error: Missing SecretAccessKey"), StoreRefused, "only one of AWS_ACCESS_KEY_ID"),
        (Exception("topsecret"), StorageError, "its answer cannot be understood"),
    ],
)
def test_errors(error: Exception, kind: type[FilestoreError], reason: str) -> None:
    """Each has one meaning. None repeats what a stranger may have written. Another try may help those that are busy."""
    found = translated(error, "s3://models")
    assert (kind, kind is Busy) == (type(found), found.retryable)
    assert reason in str(found)
    assert "s3://models" in str(found)
    assert "topsecret" not in str(found)


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_a_key_is_told(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Before the first request, and without the half that is set."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "topsecret")
    monkeypatch.delenv(missing)
    with pytest.raises(StoreRefused, match="only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set") as raised:
        new_s3_client(S3Location("models"))
    assert "topsecret" not in str(raised.value)
