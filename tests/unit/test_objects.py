from __future__ import annotations

import pytest

from filestore.digest import Digest, chunk_digest
from filestore.errors import InvalidName, InvalidReference
from filestore.objects import File, Kind, Record, Reference, checked_name, checked_namespace, record_from_json

DIGEST = chunk_digest(b"content")
FILE_ID = "file_" + "0a" * 16
PATH = f"pipeline_files/{DIGEST.hex()[:2]}/{DIGEST.hex()[2:4]}/{DIGEST}/model v2.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "with space",
        'it\'s "quoted"',
        "100%",
        "%2e%2e",
        "ünïcödé-模型",
        ".hidden",
        "..x",
        "back\\slash",
        "x" * 255,
        "é" * 127,
    ],
)
def test_names_that_are_kept(name: str) -> None:
    """Whatever a Linux file can be called is kept, as long as it prints on one line."""
    assert name == checked_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../x", "a/b", "/", "nul\0", "line\nfeed", "tab\t", "del\x7f", "x" * 256, "é" * 128, "lone\udc80"]
)
def test_names_that_are_refused(name: str) -> None:
    """A name never holds a folder, a control character, or what no UTF-8 stands for."""
    with pytest.raises(InvalidName):
        checked_name(name)


@pytest.mark.parametrize("namespace", ["", "-a", "_a", "A", "a/b", "..", "a" * 64, "ä", "a\n"])
def test_namespaces_that_are_refused(namespace: str) -> None:
    """A namespace is a part of every key in a store, so it is nothing but plain."""
    with pytest.raises(InvalidName):
        checked_namespace(namespace)


def test_reference_is_an_id_a_digest_a_path_or_a_name() -> None:
    """One text, four meanings, tried in this order."""
    assert Reference(id=FILE_ID) == Reference.parse(FILE_ID)
    assert Reference(digest=DIGEST) == Reference.parse(str(DIGEST))
    assert Reference(digest=DIGEST, name="model v2.safetensors") == Reference.parse(PATH)
    assert Reference(digest=DIGEST, name="model v2.safetensors") == Reference.parse("/" + PATH)
    assert Reference(name="model.safetensors") == Reference.parse("model.safetensors")


@pytest.mark.parametrize(
    "text", ["a/b", "pipeline_files/ab/cd/x/y", PATH.replace("pipeline_files", "run_files"), "", "..", "a\nb"]
)
def test_reference_that_names_nothing(text: str) -> None:
    """What is none of the four is refused."""
    with pytest.raises(InvalidReference):
        Reference.parse(text)


def test_reference_prints_as_it_was_typed() -> None:
    """Errors name what the user named."""
    assert [FILE_ID, str(DIGEST), PATH, "name"] == [str(Reference.parse(text)) for text in (FILE_ID, str(DIGEST), PATH, "name")]


def test_record_crosses_the_wire_unchanged() -> None:
    """`record_from_json` is the inverse of `as_json`, to the microsecond."""
    record = Record(FILE_ID, "a b%.bin", DIGEST, 5, Kind.DIRECTORY, "team-1", 1_700_000_000_000_001, 1_700_000_000_999_999)
    assert record == record_from_json(record.as_json())
    assert "2023-11-14T22:13:20.000001Z" == record.as_json()["created_at"]


def test_file_is_named_by_path_id_or_digest() -> None:
    """A path may be positional; two files named alike are equal."""
    assert Reference(digest=DIGEST, name="model v2.safetensors") == File(PATH).reference
    assert Reference(id=FILE_ID) == File(id=FILE_ID).reference
    assert Reference(digest=DIGEST) == File(digest=str(DIGEST)).reference
    assert {File(PATH)} == {File(path=PATH), File(PATH)}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"id": FILE_ID, "digest": str(DIGEST)},
        {"id": str(DIGEST)},
        {"digest": FILE_ID},
        {"id": "name"},
        {"path": "model.bin"},
        {"path": PATH.replace(str(DIGEST), str(chunk_digest(b"other")))},
    ],
)
def test_file_that_names_nothing(given: dict[str, str]) -> None:
    """None of the three, several, or one that is another's form: refused when the value is made."""
    with pytest.raises(InvalidReference):
        File(**given)


def test_digest_is_bytes_and_prints_as_hex() -> None:
    """A digest serves as a key, and reads as 64 digits in messages."""
    assert DIGEST == Digest.parse(str(DIGEST)) == Digest(bytes(DIGEST))
    assert f"Digest('{DIGEST.hex()}')" == repr(DIGEST)
