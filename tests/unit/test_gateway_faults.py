from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from tests.support.ceph import Bucket
from tests.support.gateway_faults import (
    Answer,
    CarryOutLate,
    CutAnswer,
    CutRequest,
    FaultyGateway,
    LoseAnswer,
    Silence,
    faulty_gateway,
)
from tests.support.server import eventually

_LOST = (ConnectionError, HTTPException)


@pytest.fixture
def faulty(bucket: Bucket) -> Iterator[FaultyGateway]:
    """A proxy that passes on what comes, until a test says otherwise."""
    with faulty_gateway(bucket.endpoint) as faulty:
        yield faulty


@pytest.fixture
def reached(faulty: FaultyGateway, bucket: Bucket) -> Bucket:
    """The bucket, as a client reaches it through the proxy."""
    return faulty.before(bucket)


def _store(bucket: Bucket) -> S3Store:
    return S3Store(
        bucket.name,
        endpoint=bucket.endpoint,
        access_key_id=bucket.credentials.access_key,
        secret_access_key=bucket.credentials.secret_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def test_requests_of_a_client_pass(faulty: FaultyGateway, bucket: Bucket, reached: Bucket) -> None:
    """The signatures stay valid, and each request is counted as what it is."""
    store = _store(reached)
    obstore.put(store, "a/b", b"content")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a/b", b"other", mode="create")
    assert b"nte" == bytes(obstore.get_range(store, "a/b", start=2, end=5))
    assert 7 == obstore.head(store, "a/b")["size"]
    assert ["a/b"] == [item["path"] for item in obstore.list(store).collect()]
    shown = urlsplit(obstore.sign(store, "GET", "a/b", timedelta(minutes=1)))
    connection = HTTPConnection(shown.netloc)
    connection.request("GET", f"{shown.path}?{shown.query}")
    with connection.getresponse() as answer:
        assert (200, b"content") == (answer.status, answer.read())
    connection.close()
    obstore.delete(store, ["a/b"])
    assert [] == bucket.list_keys()
    assert {"PUT": 2, "GET": 2, "HEAD": 1, "LIST": 1, "POST": 1} == faulty.counts
    assert (12, 10) == (faulty.received["PUT"], faulty.sent["GET"])


def test_an_upload_in_parts_passes(bucket: Bucket, reached: Bucket) -> None:
    """It has several kinds of requests."""
    content = bytes(range(256)) * (11 << 12)
    obstore.put(_store(reached), "a", content, chunk_size=5 << 20, use_multipart=True)
    assert content == bucket.read("a")


@pytest.mark.parametrize("fault", [Answer(500, "InternalError"), Answer(503, "SlowDown"), Answer(403, "ExpiredToken")])
def test_an_error_is_answered_as_often_as_it_was_injected(faulty: FaultyGateway, reached: Bucket, fault: Answer) -> None:
    """And only to the kinds of requests that it was injected for."""
    faulty.inject(fault, kinds=["PUT"], times=2, after=1)
    assert [200, fault.status, fault.status, 200] == [reached.request("PUT", "a").status for _ in range(4)]
    assert 200 == reached.request("GET", "a").status


def test_a_request_may_be_cut_before_or_after_it_is_carried_out(faulty: FaultyGateway, bucket: Bucket, reached: Bucket) -> None:
    """A client cannot tell which."""
    faulty.inject(CutRequest(), kinds=["PUT"])
    faulty.inject(LoseAnswer(), kinds=["PUT"])
    for name in ("a", "b"):
        with pytest.raises(_LOST):
            reached.put(name, b"content")
    assert ["b"] == bucket.list_keys()


def test_the_body_of_an_answer_may_be_cut(faulty: FaultyGateway, bucket: Bucket, reached: Bucket) -> None:
    """The head says how long it is."""
    bucket.put("a", b"content")
    faulty.inject(CutAnswer(), kinds=["GET"])
    with pytest.raises(_LOST):
        reached.read("a")
    assert b"content" == reached.read("a")


def test_a_request_may_be_carried_out_when_its_client_has_gone(faulty: FaultyGateway, bucket: Bucket, reached: Bucket) -> None:
    """Until then, it has no effect."""
    bucket.put("a", b"content")
    faulty.inject(CarryOutLate(), kinds=["DELETE"])
    with pytest.raises(_LOST):
        reached.delete("a")
    assert (1, ["a"]) == (faulty.late, bucket.list_keys())
    assert [204] == faulty.carry_out_late()
    assert [] == bucket.list_keys()


def test_silence_ends_with_the_proxy(bucket: Bucket) -> None:
    """A client that waits is told by the end of its connection."""
    with faulty_gateway(bucket.endpoint) as faulty:
        faulty.inject(Silence(), kinds=["LIST"])
        parts = urlsplit(faulty.endpoint)
        connection = HTTPConnection(parts.netloc)
        connection.request("GET", "/")
        eventually(lambda: faulty.counts["LIST"] == 1)
    with pytest.raises(_LOST):
        connection.getresponse()
    connection.close()
