from __future__ import annotations

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.paths import chunk_key, file_path, hashed, manifest_key, parse_file_path, parse_run_path, run_path, unhashed
from filestore.errors import InvalidReference

DIGEST = Digest.parse("ab" + "cd" + "0" * 60)
TEXT = str(DIGEST)


def test_hashed_has_two_levels_and_the_whole_digest() -> None:
    """The name of a single file shows its whole digest."""
    assert f"ab/cd/{TEXT}" == hashed(DIGEST)


def test_keys_hold_kind_and_namespace() -> None:
    """Frames and manifests, and those of different namespaces, never meet."""
    assert f"chunks/default/ab/cd/{TEXT}" == chunk_key("default", DIGEST)
    assert f"manifests/tenant/ab/cd/{TEXT}" == manifest_key("tenant", DIGEST)


@pytest.mark.parametrize("content", [b"", b"a", b"filestore"])
def test_unhashed_is_the_inverse_of_hashed(content: bytes) -> None:
    """Every digest comes back."""
    assert chunk_digest(content) == unhashed(hashed(chunk_digest(content)))


NOT_HASHED = f"""
    / {TEXT} ab/{TEXT} cd/ab/{TEXT} ab/cd/ef/{TEXT} /ab/cd/{TEXT} ab//cd/{TEXT} ab/cd/{TEXT}/ ab/cd/{TEXT}.tmp
    AB/CD/{TEXT} ab/cd/{TEXT.upper()} ../ab/cd/{TEXT} ab\\cd\\{TEXT}
"""


@pytest.mark.parametrize("path", ["", f"ab/cd/{TEXT}\n", *NOT_HASHED.split()])
def test_unhashed_refuses_every_other_path(path: str) -> None:
    """Only paths that `hashed` returns have a digest."""
    with pytest.raises(InvalidReference):
        unhashed(path)


@pytest.mark.parametrize("name", ["model.safetensors", "a name with spaces", "100%", "größe.bin", ".hidden", "?x#y", "x" * 255])
def test_parse_file_path_is_the_inverse_of_file_path(name: str) -> None:
    """Digest and name come back, with or without the slash that the SDK writes in front."""
    path = file_path(DIGEST, name)
    assert f"pipeline_files/ab/cd/{TEXT}/{name}" == path
    assert (DIGEST, name) == parse_file_path(path) == parse_file_path("/" + path)


NO_FILE_PATHS = f"""
    / name pipeline_files pipeline_files/ab/cd/{TEXT} pipeline_files/ab/cd/{TEXT}/ ab/cd/{TEXT}/name files/ab/cd/{TEXT}/name
    //pipeline_files/ab/cd/{TEXT}/name pipeline_files/cd/ab/{TEXT}/name pipeline_files/ab/cd/{TEXT}/folder/name
    pipeline_files/../pipeline_files/ab/cd/{TEXT}/name
"""


@pytest.mark.parametrize("path", ["", *NO_FILE_PATHS.split()])
def test_parse_file_path_refuses_every_other_path(path: str) -> None:
    """Only paths that `file_path` returns name a file."""
    with pytest.raises(InvalidReference):
        parse_file_path(path)


FILE_ID = "file_317e304de816403686b27ad82b208b70"
RUN_PATH = "run_files/31/7e/317e304d-e816-4036-86b2-7ad82b208b70/image-0.jpg"


def test_a_record_s_path_is_its_id_as_a_uuid() -> None:
    """As the documentation writes it."""
    assert RUN_PATH == run_path(FILE_ID, "image-0.jpg")
    assert (FILE_ID, "image-0.jpg") == parse_run_path(RUN_PATH) == parse_run_path("/" + RUN_PATH)


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ("run_files/", "files/"),
        ("run_files/31", "run_files/32"),
        ("/7e/", "/"),
        ("317e304d-", "317e304d"),
        ("317e304d-", "317E304D-"),
        ("b70/", "b70a/"),
        ("/image-0.jpg", ""),
        ("image-0.jpg", ""),
        ("/image-0.jpg", "/../image-0.jpg"),
        ("run_files/", "../run_files/"),
    ],
)
def test_any_other_text_is_not_a_record_s_path(correct: str, wrong: str) -> None:
    """One form for each record."""
    with pytest.raises(InvalidReference):
        parse_run_path(RUN_PATH.replace(correct, wrong, 1))
