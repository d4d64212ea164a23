from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.names import checked_name, checked_namespace, tree_name
from filestore.core.paths import run_path
from filestore.core.records import Kind, Record, record_from_json
from filestore.core.references import Directory, File, FileURL, Reference
from filestore.errors import InvalidName, InvalidReference

DIGEST = chunk_digest(b"content")
SHA256 = "sha256:" + "0b" * 32
URL = "https://example.org/models/model.safetensors"
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
    """Every file name of Linux that prints on one line is allowed."""
    assert name == checked_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../x", "a/b", "/", "nul\0", "line\nfeed", "tab\t", "del\x7f", "x" * 256, "é" * 128, "lone\udc80"]
)
def test_names_that_are_refused(name: str) -> None:
    """A name has no folder, no control character, and no bytes that are not UTF-8."""
    with pytest.raises(InvalidName):
        checked_name(name)


@pytest.mark.parametrize("namespace", ["", "-a", "_a", "A", "a/b", "..", "a" * 64, "ä", "a\n"])
def test_namespaces_that_are_refused(namespace: str) -> None:
    """A namespace is a part of every key in a store, so only simple characters are allowed."""
    with pytest.raises(InvalidName):
        checked_namespace(namespace)


def test_reference_is_an_id_a_digest_a_path_or_a_name() -> None:
    """One text, four meanings, tried in this order."""
    assert Reference(id=FILE_ID) == Reference.parse(FILE_ID)
    assert Reference(digest=DIGEST) == Reference.parse(str(DIGEST))
    assert Reference(digest=DIGEST, name="model v2.safetensors") == Reference.parse(PATH)
    assert Reference(digest=DIGEST, name="model v2.safetensors") == Reference.parse("/" + PATH)
    assert Reference(id=FILE_ID) == Reference.parse(run_path(FILE_ID, "model v2.safetensors"))
    assert Reference(name="model.safetensors") == Reference.parse("model.safetensors")


@pytest.mark.parametrize(
    "text", ["a/b/c", "pipeline_files/ab/cd/x/y", PATH.replace("pipeline_files", "run_files"), "", "..", "a\nb"]
)
def test_reference_that_names_nothing(text: str) -> None:
    """A text that is none of the forms is refused."""
    with pytest.raises(InvalidReference):
        Reference.parse(text)


def test_reference_prints_as_it_was_typed() -> None:
    """An error shows the reference as the user typed it."""
    assert [FILE_ID, str(DIGEST), PATH, "name"] == [str(Reference.parse(text)) for text in (FILE_ID, str(DIGEST), PATH, "name")]


def test_record_crosses_the_wire_unchanged() -> None:
    """`record_from_json` is the inverse of `as_json`, to the microsecond."""
    record = Record(FILE_ID, "a b%.bin", DIGEST, 5, Kind.DIRECTORY, "team-1", 1_700_000_000_000_001, 1_700_000_000_999_999)
    assert record == record_from_json(record.as_json())
    assert "2023-11-14T22:13:20.000001Z" == record.as_json()["created_at"]


@pytest.mark.parametrize("value", [File, Directory])
def test_a_value_is_named_by_path_id_or_digest(value: type[File | Directory]) -> None:
    """The path may be positional; a repository can be asked for each form."""
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
    """Arguments that are not given are not shown."""
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
        {"path": PATH, "digest": str(DIGEST)},
        {"path": 3},
        {"id": b"file_"},
        {"url": URL, "id": FILE_ID},
        {"url": URL, "path": PATH},
        {"url": "file:///etc/passwd"},
        {"url": URL, "digest": "md5:" + "0" * 32},
        {"path": PATH, "max_age_seconds": 3},
        {"id": FILE_ID, "stale_ok": True},
    ],
)
def test_a_value_that_names_nothing(value: type[File | Directory], given: dict[str, Any]) -> None:
    """None of the four, several, or one that is another's form: refused when the value is made."""
    with pytest.raises(InvalidReference):
        value(**given)


@pytest.mark.parametrize("value", [File, Directory])
def test_a_path_is_a_text_or_a_path_of_this_machine(value: type[File | Directory]) -> None:
    """Both say the same."""
    assert value("a b/c") == value(Path("a b/c"))
    assert "a b/c" == value(Path("a b/c")).path


@pytest.mark.parametrize("value", [File, Directory])
def test_a_value_behind_a_url(value: type[File | Directory]) -> None:
    """It has the fields of a FileURL, and a repository cannot be asked for it."""
    made = value(url=URL, digest=SHA256, max_age_seconds=60, stale_ok=True)

    assert FileURL(URL, digest=SHA256, max_age_seconds=60, stale_ok=True) == made.origin
    assert value(PATH).origin is None
    with pytest.raises(InvalidReference, match="no repository knows"):
        _ = made.reference


def test_urls_are_equal_by_what_they_hold() -> None:
    """The URL may be positional. Another expected digest makes another value."""
    assert {FileURL(URL)} == {FileURL(url=URL), FileURL(URL)}
    assert FileURL(URL) != FileURL(URL, digest=SHA256)
    assert FileURL(URL) == pickle.loads(pickle.dumps(FileURL(URL)))
    with pytest.raises(FrozenInstanceError):
        FileURL(URL).url = "b"  # type: ignore[misc]  # which is what is tested


def test_a_url_prints_without_its_query() -> None:
    """A query may have signatures and tokens, and logs are kept for a long time."""
    assert "FileURL(url='https://example.org/@a/b.bin?...', stale_ok=True)" == repr(
        FileURL("https://example.org/@a/b.bin?X-Signature=secret#part", stale_ok=True)
    )
    assert f"Directory(digest='{SHA256}', url='https://example.org/a.zip?...')" == repr(
        Directory(url="https://example.org/a.zip?token=secret", digest=SHA256)
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "model.bin",
        "/pipeline_files/a",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "data:,a",
        "gopher://example.org/",
        "http://",
        "http:///a",
        "https://:443/a",
        "https://example.org:0/a",
        "https://example.org:99999/a",
        "https://example.org:a/",
        "https://[::1/a",
        " https://example.org/a",
        "https://example.org/a\nb",
        "https://example.org/a\0",
        "https:\\\\example.org\\a",
        "https://example.org/\udc80",
        None,
        7,
        b"https://example.org/",
    ],
)
def test_what_is_not_a_url_to_download_from(url: Any) -> None:
    """It is refused when the value is made, and nothing is asked of any scheme but http and https."""
    with pytest.raises(InvalidReference):
        FileURL(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@example.org/a",
        "https://user:sec/ret@example.org/a",
        "https://user:sec?ret@example.org/secret",
        "https://user:secret@[::1/a",
        "https:\\\\user:secret@example.org",
        "user:secret@example.org",
        "https://secret@example.org:a/",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_printed(url: str) -> None:
    """This holds for every place in the URL."""
    for value in (FileURL, File, Directory):
        with pytest.raises(InvalidReference) as caught:
            value(url=url)
        assert "secret" not in str(caught.value)
        assert "ret@" not in str(caught.value)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "0" * 63, "md5:" + "0" * 64, "0" * 63, "SHA256:" + "0" * 64, 7])
def test_what_is_not_a_digest_to_expect(digest: Any) -> None:
    """It is refused when the value is made, not after a download."""
    with pytest.raises(InvalidReference):
        FileURL(URL, digest=digest)


@pytest.mark.parametrize("age", [-1, float("nan"), "60"])
def test_what_is_not_an_age(age: Any) -> None:
    """It is refused when the value is made."""
    with pytest.raises(InvalidReference):
        FileURL(URL, max_age_seconds=age)


def test_an_expected_digest_is_a_publishers_or_ours() -> None:
    """A SHA-256 in any case of letters, or a file digest."""
    assert DIGEST == FileURL(URL, digest=str(DIGEST)).expected
    assert "ab" * 32 == FileURL(URL, digest="sha256:" + "aB" * 32).expected
    assert FileURL(URL).expected is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/model.bin", "model.bin"),
        ("/my%20model%C3%A9.bin?x=/y", "my modelé.bin"),
        ("", "download"),
        ("/a/", "download"),
        ("/%2e%2e", "download"),
        ("/..%2f..%2fetc%2Fpasswd", ".._.._etc_passwd"),
        ("/a%00b%0ac", "a_b_c"),
        ("/%ff.bin", "�.bin"),
        ("/" + "x" * 300 + ".safetensors", "x" * 243 + ".safetensors"),
        ("/" + "é" * 200 + ".bin", "é" * 125 + ".bin"),
        ("/a." + "x" * 300, "a." + "x" * 253),
        ("/." + "x" * 300, "." + "x" * 254),
    ],
)
def test_the_name_of_what_stands_behind_a_url(path: str, name: str) -> None:
    """It is the last part of the path, as far as a file can be called that."""
    assert name == checked_name(FileURL("https://example.org" + path).name)


@pytest.mark.parametrize("path", ["./my_dir", "my.zip", "/srv/pipeline_files", "..", "file_" + "0a" * 16])
def test_a_local_path_is_a_value_and_no_reference(path: str) -> None:
    """A local path may be any text. If a repository is asked for it, the error says what to do."""
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
