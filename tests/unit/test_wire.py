from __future__ import annotations

import inspect
import json
import pickle
import struct
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestore import errors
from filestore.errors import FilestoreError, InvalidBatch, InvalidFrame, ServerError
from filestore.format.codec import FRAME_LIMIT
from filestore.http import wire
from filestore.http.wire import BatchEntry, BatchParser, decode_problem, encode_problem
from tests.support.errors import classes, example
from tests.support.frames import frames
from tests.support.server import batch

URL = "http://server"


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
def test_every_error_crosses_the_wire(kind: type[FilestoreError]) -> None:
    """It arrives as the same error, with its facts, after JSON."""
    error = example(kind)
    problem = encode_problem(error)
    arrived = decode_problem(URL, problem.status, json.loads(json.dumps(problem.document)))
    if kind is FilestoreError:
        # The root says nothing that a client could act on but its sentence.
        assert f"{URL} answered 500: a fact" == str(arrived)
        return
    assert (kind, error.args) == (type(arrived), arrived.args)


@pytest.mark.parametrize(
    ("status", "detail", "said"),
    [
        (404, "", "404: Not Found"),
        (404, "404", "404: Not Found"),
        (404, "404: 404", "404: Not Found"),
        (404, "404: Not Found", "404: Not Found"),
        (404, "404 pages were not found", "404: 404 pages were not found"),
        (599, " ", "599: no explanation"),
    ],
)
def test_an_answer_without_a_reason(status: int, detail: str, said: str) -> None:
    """The error never ends in an empty reason, and never says the status twice."""
    assert f"{URL} answered {said}" == str(decode_problem(URL, status, {"type": "about:blank", "detail": detail}))


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
def test_every_error_is_made_of_its_facts(kind: type[FilestoreError]) -> None:
    """A pickle gives the same error with all attributes; its repr is the call that makes it."""
    error = example(kind)
    copied = pickle.loads(pickle.dumps(error))
    state = (kind, error.args, str(error), vars(error))
    assert state == (type(copied), copied.args, str(copied), vars(copied))
    made = eval(repr(error), {kind.__name__: kind})
    assert state == (type(made), made.args, str(made), vars(made))


def test_no_error_replaces_its_args() -> None:
    """The facts of an error are those that its constructor got."""
    assert "self.args =" not in inspect.getsource(errors)


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_an_explanation(kind: type[FilestoreError]) -> None:
    """The document has the same status as the answer, and the sentence that the Pipeline SDK shows."""
    error = example(kind)
    status, document = encode_problem(error)
    assert 400 <= status < 600
    assert (status, str(error)) == (document["status"], document["detail"])
    assert document["title"] == kind.slug.replace("-", " ").capitalize()


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.InvalidName, 400),
        (errors.InvalidDigest, 400),
        (errors.Unauthorized, 401),
        (errors.NotFound, 404),
        (errors.ChunksMissing, 409),
        (errors.LimitExceeded, 413),
        (errors.InvalidRange, 416),
        (errors.InvalidFrame, 422),
        (errors.InvalidBatch, 422),
        (errors.InvalidManifest, 422),
        (errors.DamagedChunk, 500),
        (errors.DamagedRecord, 500),
        (errors.StorageError, 500),
        (errors.Busy, 503),
        (errors.StorageFull, 507),
    ],
)
def test_statuses(kind: type[FilestoreError], status: int) -> None:
    """4xx is for what the client can mend, 5xx for the rest. An error has the status of its nearest listed parent."""
    assert status == encode_problem(example(kind)).status


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        (None, "no explanation"),
        ("text", "no explanation"),
        ([], "no explanation"),
        ({}, ""),
        ({"detail": "so it is"}, "so it is"),
        ({"type": "about:blank", "detail": "so it is"}, "so it is"),
        ({"type": "urn:filestore:error:no-such", "detail": "so it is", "reference": "x"}, "so it is"),
        ({"type": "urn:filestore:error:NotFound", "detail": "so it is", "reference": "x"}, "so it is"),
        ({"type": "urn:filestore:error:failed", "detail": "so it is", "reason": "x"}, "so it is"),
        ({"type": "urn:filestore:error:not-found", "detail": "so it is"}, "so it is"),
        ({"type": "urn:filestore:error:not-found", "detail": "so it is", "facts": ["x"]}, "so it is"),
        ({"type": "urn:filestore:error:not-found", "detail": "so it is", "reference": ["x"]}, "so it is"),
        ({"type": "urn:filestore:error:not-found", "detail": "so it is", "reference": None}, "so it is"),
        ({"type": "urn:filestore:error:not-found", "detail": "so it is", "reference": 7}, "so it is"),
        ({"type": "urn:filestore:error:invalid-range", "detail": "so it is", "range": "0-1", "size": "7"}, "so it is"),
        ({"type": "urn:filestore:error:invalid-range", "detail": "so it is", "range": "0-1", "size": True}, "so it is"),
        ({"type": "urn:filestore:error:invalid-range", "detail": "so it is", "range": "0-1", "size": 1.5}, "so it is"),
        ({"type": "urn:filestore:error:stalled", "detail": "so it is", "url": "x", "seconds": "7"}, "so it is"),
        ({"type": "urn:filestore:error:stalled", "detail": "so it is", "url": "x", "seconds": 10**400}, "so it is"),
        ({"type": "urn:filestore:error:chunks-missing", "detail": "so it is", "digests": []}, "so it is"),
        ({"type": "urn:filestore:error:chunks-missing", "detail": "so it is", "digests": "ab"}, "so it is"),
        ({"type": "urn:filestore:error:chunks-missing", "detail": "so it is", "digests": ["ab", 7]}, "so it is"),
        ({"type": ["not-found"], "detail": "so it is", "reference": "a"}, "so it is"),
    ],
)
def test_what_is_not_a_problem_of_ours_is_a_server_error(document: object, detail: str) -> None:
    """For another server, a proxy or another version, the error has the status and the text."""
    error = decode_problem(URL, 404, document)
    assert (ServerError, (URL, 404, detail)) == (type(error), error.args)


def test_a_member_that_is_not_known_is_ignored() -> None:
    """A newer server may say more of an error, and a member is never taken for an attribute or a hint."""
    document = encode_problem(errors.NotFound("x")).document | {"retryable": True, "hint": "exclude", "args": [7], "more": {}}
    arrived = decode_problem(URL, 404, document)
    assert (errors.NotFound, ("x",), vars(errors.NotFound("x"))) == (type(arrived), arrived.args, vars(arrived))


def test_a_fact_that_has_a_default_may_be_missing() -> None:
    """An older server does not send it."""
    document = encode_problem(errors.LimitExceeded("a size", 2, 1)).document
    assert "" == document.pop("setting")
    assert ("a size", 2, 1, "") == decode_problem(URL, 413, document).args


def test_an_error_takes_no_wrong_number_of_facts() -> None:
    """A fact without a default is needed, and none is taken that has no name."""
    with pytest.raises(TypeError, match="NotFound takes the facts reference, and was given 0"):
        errors.NotFound()
    with pytest.raises(TypeError, match="NotFound takes the facts reference, and was given 2"):
        errors.NotFound("x", "y")


def test_a_hint_goes_with_a_pickle() -> None:
    """The one that was given to the constructor, before that of the class."""
    error = errors.Unreachable("x", "y", hint="replace")
    assert "replace" == pickle.loads(pickle.dumps(error)).hint
    assert ("start-server", "") == (errors.Unreachable("x", "y").hint, errors.OriginUnreachable("x", "y").hint)


ENTRIES = [BatchEntry(frame.digest, len(frame.data)) for frame in frames(3)]


def test_batch_header_is_its_own_inverse() -> None:
    """Count and entries are read back. Only in an answer, a size of 0 means an absent chunk."""
    entries = [*ENTRIES, BatchEntry(ENTRIES[0].digest, 0)]
    header = wire.encode_batch_header(entries)
    assert wire.batch_header_size(4) == len(header)
    assert 4 == wire.decode_batch_count(header)
    assert entries == wire.decode_batch_entries(header[4:], absent_allowed=True)
    with pytest.raises(InvalidBatch):
        wire.decode_batch_entries(header[4:], absent_allowed=False)


def parsed(pieces: list[bytes], *, size: int) -> tuple[list[tuple[BatchEntry, bytes]], BatchParser]:
    """Parse a batch that arrives in `pieces`."""
    parser = BatchParser(size=size)
    found: list[tuple[BatchEntry, bytearray]] = []
    for piece in pieces:
        for part in parser.feed(piece):
            if isinstance(part, BatchEntry):
                found.append((part, bytearray()))
            else:
                found[-1][1].extend(part)
    return [(entry, bytes(data)) for entry, data in found], parser


@pytest.mark.slow
@given(count=st.integers(0, 4), cuts=st.lists(st.integers(0, 5000), max_size=8))
def test_a_batch_is_taken_apart_in_any_split(count: int, cuts: list[int]) -> None:
    """Entries and bytes do not depend on how it arrives."""
    sent = frames(count)
    whole = batch(sent)
    places = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    found, parser = parsed([whole[start:stop] for start, stop in pairwise(places)], size=len(whole))
    assert [(BatchEntry(frame.digest, len(frame.data)), bytes(frame.data)) for frame in sent] == found
    assert parser.finished


@pytest.mark.slow
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=8), limit=st.integers(1, 4000), head=st.integers(36, 400))
def test_a_batch_is_read_frame_by_frame(sizes: list[int], limit: int, head: int) -> None:
    """Whatever came at first, `reach` leads to the end of a frame, over as many as fit the limit, and to the batch's end."""
    sent = [frame._replace(data=bytes(size)) for frame, size in zip(frames(len(sizes)), sizes, strict=True)]
    whole = batch(sent)
    header = len(whole) - sum(sizes)
    ends = list(accumulate(sizes, initial=header))
    at = min(max(head, header), len(whole) - 1)
    parser = BatchParser(size=len(whole))
    assert limit == parser.reach(limit)
    list(parser.feed(whole[:at]))
    while at < len(whole):
        reach = parser.reach(limit)
        first = next(end for end in ends if end > at)
        assert at + reach == max(first, max((end for end in ends if end <= at + limit), default=0))
        list(parser.feed(whole[at : at + reach]))
        at += reach
    assert parser.finished


@pytest.mark.slow
@given(length=st.integers(0, 3000))
def test_a_cut_batch_gives_what_was_there(length: int) -> None:
    """Whole frames whole, the torn one as far as it came; it is not finished."""
    sent = frames(2)
    whole = batch(sent)
    start = whole[: min(length, len(whole) - 1)]
    found, parser = parsed([start], size=len(whole))
    assert not parser.finished
    content = b"".join(data for _, data in found)
    assert start[wire.batch_header_size(2) :] == content


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<I", wire.BATCH_COUNT_LIMIT + 1),
        struct.pack("<I", 0xFFFFFFFF),
        wire.encode_batch_header([BatchEntry(ENTRIES[0].digest, FRAME_LIMIT + 1)]),
        wire.encode_batch_header([BatchEntry(ENTRIES[0].digest, 0xFFFFFFFF)]),
        wire.encode_batch_header([BatchEntry(ENTRIES[0].digest, 0)]),
        wire.encode_batch_header(ENTRIES),
        wire.encode_batch_header([]),
    ],
    ids=["too many", "4 billion", "too large", "4 GiB", "empty frame", "longer than announced", "shorter than announced"],
)
def test_a_lying_batch_header_is_refused_when_it_is_whole(head: bytes) -> None:
    """Before any frame of it is taken."""
    with pytest.raises(InvalidBatch):
        parsed([bytes([octet]) for octet in head], size=100)


def test_whole_frames_are_taken_at_once() -> None:
    """As views of the piece. A piece that begins or ends within a frame is left to `feed`."""
    sent = frames(3)
    whole = memoryview(batch(sent))
    header = wire.batch_header_size(3)
    parser = BatchParser(size=len(whole))
    assert parser.take_whole(whole[:header]) is None
    list(parser.feed(whole[:header]))
    first, second = len(sent[0].data), len(sent[1].data)
    assert parser.take_whole(whole[header : header + first - 1]) is None
    assert parser.take_whole(whole[header : header + first + 1]) is None
    assert parser.take_whole(memoryview(bytes(whole[header:]) + b"more")) is None
    assert [(sent[0].digest, sent[0].data)] == parser.take_whole(whole[header : header + first])
    list(parser.feed(whole[header + first : header + first + 1]))
    assert parser.take_whole(whole[header + first + 1 : header + first + second]) is None
    list(parser.feed(whole[header + first + 1 : header + first + second]))
    assert [(sent[2].digest, sent[2].data)] == parser.take_whole(whole[header + first + second :])
    assert parser.finished


def test_bytes_after_the_last_frame_are_refused() -> None:
    """The frames before them are kept."""
    whole = batch(frames(1))
    parser = BatchParser(size=len(whole))
    parts = parser.feed(whole + b"more")
    assert ENTRIES[0] == next(parts)
    assert frames(1)[0].data == next(parts)
    with pytest.raises(InvalidBatch):
        next(parts)


def test_the_digest_of_a_refused_frame_arrives() -> None:
    """A client can tell which of its frames was refused."""
    error = InvalidFrame("ab" * 32, "its content has another digest")
    arrived = decode_problem(URL, 422, encode_problem(error).document)
    assert isinstance(arrived, InvalidFrame)
    assert ("ab" * 32, "its content has another digest") == (arrived.digest, arrived.reason)
