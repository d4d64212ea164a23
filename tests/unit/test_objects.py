from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest

from filestore.digest import Digest, chunk_digest
from filestore.errors import InvalidName, InvalidReference
from filestore.objects import (
    Directory,
    File,
    Kind,
    Record,
    Reference,
    checked_name,
    checked_namespace,
    record_from_json,
    tree_name,
)

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


@pytest.mark.parametrize("value", [File, Directory])
def test_a_value_is_named_by_path_id_or_digest(value: type[File | Directory]) -> None:
    """A path may be positional; each form is what a repository is asked for."""
    assert Reference(digest=DIGEST, name="model v2.safetensors") == value(PATH).reference
    assert Reference(digest=DIGEST, name="model v2.safetensors") == value(path="/" + PATH).reference
    assert Reference(id=FILE_ID) == value(id=FILE_ID).reference
    assert Reference(digest=DIGEST) == value(digest=str(DIGEST)).reference


def test_values_are_equal_by_what_they_hold() -> None:
    """Two that are named alike are equal, and one key; a file is never equal to a directory."""
    assert {File(PATH)} == {File(path=PATH), File(PATH)}
    assert {Directory("./a"): 1} == {Directory(path="./a"): 1}
    assert File("./a") != File("a")
    assert 2 == len({File(id=FILE_ID), Directory(id=FILE_ID)})


def test_values_print_as_they_are_written() -> None:
    """What is not given is not shown."""
    assert f"File(id='{FILE_ID}')" == repr(File(id=FILE_ID))
    assert "Directory(path='./my dir')" == repr(Directory("./my dir"))


@pytest.mark.parametrize("value", [File(id=FILE_ID), Directory("./a")])
def test_values_never_change(value: File | Directory) -> None:
    """They are frozen, and survive being sent to another process."""
    with pytest.raises(FrozenInstanceError):
        value.path = "b"  # type: ignore[misc]  # which is what is tested
    assert value == pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("value", [File, Directory])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"id": FILE_ID, "digest": str(DIGEST)},
        {"path": PATH, "id": FILE_ID},
        {"id": str(DIGEST)},
        {"digest": FILE_ID},
        {"id": "name"},
        {"path": ""},
    ],
)
def test_a_value_that_names_nothing(value: type[File | Directory], given: dict[str, str]) -> None:
    """None of the three, several, or one that is another's form: refused when the value is made."""
    with pytest.raises(InvalidReference):
        value(**given)


@pytest.mark.parametrize("path", ["./my_dir", "my.zip", "/srv/pipeline_files", "..", "file_" + "0a" * 16])
def test_a_local_path_is_a_value_and_no_reference(path: str) -> None:
    """What is to be pushed may be called anything; asked of a repository, it is refused with what to do."""
    for value in (File(path), Directory(path)):
        with pytest.raises(InvalidReference, match="push it first"):
            _ = value.reference


@pytest.mark.parametrize("path", [PATH.replace(str(DIGEST), str(chunk_digest(b"other"))), "pipeline_files/a", "/pipeline_files/"])
def test_a_stored_path_that_is_wrong(path: str) -> None:
    """It is not taken for a local one."""
    with pytest.raises(InvalidReference) as caught:
        _ = File(path).reference
    assert "push it first" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("my_model.zip", "my_model"),
        ("my_model", "my_model"),
        ("a.tar.zip.zip", "a.tar.zip"),
        (".zip", ".zip"),
        ("..zip", "..zip"),
        ("...zip", "...zip"),
    ],
)
def test_a_tree_has_the_name_of_its_zip(name: str, folder: str) -> None:
    """Without `.zip`, but where nothing would be left that a folder can be called."""
    assert folder == checked_name(tree_name(name))


def test_digest_is_bytes_and_prints_as_hex() -> None:
    """A digest serves as a key, and reads as 64 digits in messages."""
    assert DIGEST == Digest.parse(str(DIGEST)) == Digest(bytes(DIGEST))
    assert f"Digest('{DIGEST.hex()}')" == repr(DIGEST)
