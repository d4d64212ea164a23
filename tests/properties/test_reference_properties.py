"""References: what is printed is read again as the same, and no text is read as anything but what the grammar says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from filestore.core.digest import Digest
from filestore.core.names import checked_name, checked_new_name
from filestore.core.paths import file_path, run_path
from filestore.core.records import FILE_ID_PATTERN
from filestore.core.references import PipelineReference, Reference
from filestore.errors import InvalidDigest, InvalidInput, InvalidName, InvalidReference

KINDS = ["file_" + "0a" * 16, "ab" * 32, "pipeline_" + "0b" * 16, "0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a/"]
MARKS = ["@", ":", "/", "//", ".", "..", "pipeline_files/", "run_files/", "ab/cd/", ":latest", ":v1"]
PIECES = st.sampled_from([*KINDS, *MARKS, "a", "my_model", "v2", "~1", "\n", "\udc80", "ü"])
TEXTS = st.text() | st.lists(PIECES, max_size=8).map("".join)
IDS = st.text("0123456789abcdef", min_size=32, max_size=32).map("file_{}".format)
DIGESTS = st.binary(min_size=32, max_size=32).map(Digest)


def is_plain(name: str) -> bool:
    """Whether a new record may have the name, which looks like no id and no digest."""
    try:
        checked_new_name(name)
    except InvalidName:
        return False
    return not FILE_ID_PATTERN.match(name) and not is_digest(name)


def is_kept(name: str) -> bool:
    """Whether a record, also an older one, may have the name."""
    try:
        return bool(checked_name(name))
    except InvalidName:
        return False


def is_digest(text: str) -> bool:
    """Whether a text is a digest."""
    try:
        return bool(Digest.parse(text))
    except InvalidDigest:
        return False


NAMES = st.text(min_size=1, max_size=60).filter(is_plain)
OLD_NAMES = (st.text(min_size=1, max_size=60) | st.text("a@:", min_size=1)).filter(is_kept)
SEGMENTS = NAMES | OLD_NAMES
OWNERS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9][-_.]?){0,20}[A-Za-z0-9]", fullmatch=True)
REVISIONS = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="@:"), min_size=1, max_size=60)
PATHS = st.lists(SEGMENTS, max_size=4).map("/".join)
NAMED = st.builds(
    Reference,
    owner=st.none() | OWNERS,
    name=NAMES,
    revision=st.none() | REVISIONS,
    entry_path=st.none() | PATHS,
)
BY_ID = st.builds(Reference, id=IDS, entry_path=st.none() | PATHS)
BY_DIGEST = st.builds(Reference, digest=DIGESTS, entry_path=st.none() | PATHS)
STORED = st.builds(Reference, digest=DIGESTS, name=OLD_NAMES)


@given(NAMED | BY_ID | BY_DIGEST | STORED)
def test_what_is_printed_is_read_as_the_same(parts: Reference) -> None:
    """The text of a reference has all of its parts."""
    assert parts == Reference.parse(str(parts))


@given(TEXTS)
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """No text raises anything but InvalidReference, and what is read is printed as a text with the same meaning."""
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert reference == Reference.parse(str(reference))


@given(IDS, st.none() | PATHS)
def test_an_id_is_never_read_as_a_name(file_id: str, path: str | None) -> None:
    """With a path after it or without."""
    parts = Reference.parse(file_id if path is None else f"{file_id}:{path}")
    assert (file_id, None, None, path) == (parts.id, parts.name, parts.digest, parts.entry_path)


@given(DIGESTS, st.none() | PATHS)
def test_a_digest_is_never_read_as_a_name(digest: Digest, path: str | None) -> None:
    """With a path after it or without."""
    parts = Reference.parse(str(digest) if path is None else f"{digest}:{path}")
    assert (digest, None, None, path) == (parts.digest, parts.name, parts.id, parts.entry_path)


@given(DIGESTS, IDS, OLD_NAMES, st.sampled_from(["", "/"]))
def test_a_stored_path_is_never_read_as_a_name(digest: Digest, file_id: str, name: str, slash: str) -> None:
    """Its last part may be a name that no new record gets."""
    assert Reference(digest=digest, name=name) == Reference.parse(slash + file_path(digest, name))
    assert Reference(id=file_id) == Reference.parse(slash + run_path(file_id, name))


@given(st.sampled_from(["pipeline_files/", "/pipeline_files/", "run_files/", "/run_files/"]), TEXTS)
def test_what_begins_as_a_stored_path_has_no_owner(prefix: str, rest: str) -> None:
    """It is a stored path, or it is refused."""
    try:
        parts = Reference.parse(prefix + rest)
    except InvalidReference:
        return
    assert parts.id is not None or (parts.digest is not None and parts.name is not None)
    assert (None, None, None) == (parts.owner, parts.revision, parts.entry_path)


@given(NAMES)
def test_a_new_name_is_a_reference(name: str) -> None:
    """Whatever a new record is called is read as that name, unless it looks like an id or a digest."""
    assert Reference(name=name) == Reference.parse(name)


@given(TEXTS)
def test_any_text_is_a_pipeline_or_refused(text: str) -> None:
    """No text raises anything but InvalidInput, and what is read is printed as it was written."""
    try:
        reference = PipelineReference.parse(text)
    except InvalidInput:
        return
    assert text == str(reference)
