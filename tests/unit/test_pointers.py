"""Pointers name versions of pipelines. The rules are those of docs/references.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.errors import InvalidInput
from filestore.runtime.errors import PointerExists, PointerLocked, UnknownPipeline, UnknownPointer
from filestore.runtime.pipelines import Pipeline, Pipelines
from tests.support.import_crashes import opened_pipelines


@pytest.fixture
def pipelines(tmp_path: Path) -> Iterator[Pipelines]:
    """Pipelines of a new runtime."""
    with opened_pipelines(tmp_path) as pipelines:
        yield pipelines


def upload(pipelines: Pipelines, *numbers: int, name: str = "team/model") -> None:
    """Add pipelines whose ids have these numbers."""
    for number in numbers:
        pipelines.add(
            Pipeline(
                id=identity(number),
                name=name,
                environment_id="default",
                created_at="2026-11-24T05:57:45.535263Z",
                graph_id="",
                path="",
                input_variables=[],
                output_variables=[],
            )
        )


def identity(number: int) -> str:
    """Return an id of a pipeline."""
    return f"pipeline_{number:032x}"


def meaning(pipelines: Pipelines, reference: str) -> int:
    """Return the number of the pipeline that a reference means."""
    return int(pipelines.find(reference).id.rpartition("_")[2], 16)


def listed(pipelines: Pipelines, name: str | None = None, *, skip: int = 0, limit: int = 100) -> list[str]:
    """Return a page of pointers."""
    return [pointer.pointer for pointer in pipelines.pointer_page(pipeline_name=name, skip=skip, limit=limit)[1]]


def test_uploads_make_versions(pipelines: Pipelines) -> None:
    """Each upload is the next version. Its name and `:latest` mean the newest one."""
    upload(pipelines, 1, 2)
    upload(pipelines, 3, name="other")

    for reference, number in {
        "team/model:v1": 1,
        "team/model:v2": 2,
        "team/model:latest": 2,
        "team/model": 2,
        "other:v1": 3,
    }.items():
        assert number == meaning(pipelines, reference)
    for unknown in ("team/model:v3", "team/model:v0", "team/model:v01", "team", "team/model:", ":v1", "team/model:stable"):
        with pytest.raises(UnknownPipeline):
            pipelines.find(unknown)


def test_pointers_are_listed(pipelines: Pipelines) -> None:
    """The newest pipeline comes first, and of each pipeline its version, which `upload_pipeline` prints."""
    upload(pipelines, 1, 2)
    upload(pipelines, 3, name="other")
    pipelines.create_pointer("a:stable", identity(1), locked=False)

    model = ["team/model:v2", "team/model:latest", "team/model:v1", "a:stable"]
    assert ["other:v1", "other:latest", *model] == listed(pipelines)
    assert model == listed(pipelines, "team/model")
    assert ["other:latest", "team/model:v2"] == listed(pipelines, skip=1, limit=2)
    assert (0, []) == pipelines.pointer_page(pipeline_name="team", skip=0, limit=1)


def test_an_upload_moves_latest_unless_it_is_locked(pipelines: Pipelines) -> None:
    """Also after a user has moved it."""
    upload(pipelines, 1, 2)
    pipelines.edit_pointer("team/model:latest", target="team/model:v1", locked=None)
    assert (1, 1) == (meaning(pipelines, "team/model"), meaning(pipelines, "team/model:latest"))

    upload(pipelines, 3)
    assert 3 == meaning(pipelines, "team/model")

    pipelines.edit_pointer("team/model:latest", target=None, locked=True)
    upload(pipelines, 4)
    assert (3, 4) == (meaning(pipelines, "team/model"), meaning(pipelines, "team/model:v4"))


def test_a_locked_pointer_stays_as_it_is(pipelines: Pipelines) -> None:
    """It is not moved, not by a request that unlocks it either, and neither it nor its pipeline is deleted."""
    upload(pipelines, 1, 2)
    pipelines.create_pointer("team/model:stable", "team/model:v1", locked=True)

    for unlocked in (None, False):
        with pytest.raises(PointerLocked, match="'team/model:stable' is locked"):
            pipelines.edit_pointer("team/model:stable", target=identity(2), locked=unlocked)
    with pytest.raises(PointerLocked):
        pipelines.remove_pointer("team/model:stable")
    with pytest.raises(PointerLocked):
        pipelines.remove(identity(1))
    assert (1, 1) == (meaning(pipelines, "team/model:stable"), meaning(pipelines, "team/model:v1"))

    assert not pipelines.edit_pointer("team/model:stable", target=None, locked=False).locked
    pipelines.edit_pointer("team/model:stable", target=identity(2), locked=None)
    assert 2 == meaning(pipelines, "team/model:stable")
    pipelines.remove_pointer("team/model:stable")
    with pytest.raises(UnknownPointer):
        pipelines.remove_pointer("team/model:stable")


def test_a_version_never_moves(pipelines: Pipelines) -> None:
    """It is neither made, moved nor deleted by a user; it may be locked, which protects its pipeline."""
    upload(pipelines, 1, 2)
    with pytest.raises(InvalidInput, match="only an upload makes a version"):
        pipelines.create_pointer("team/model:v9", identity(1), locked=False)
    with pytest.raises(InvalidInput, match="is a version and never moves"):
        pipelines.edit_pointer("team/model:v1", target=identity(2), locked=None)
    with pytest.raises(InvalidInput, match="delete the pipeline"):
        pipelines.remove_pointer("team/model:v1")

    pipelines.edit_pointer("team/model:v1", target=None, locked=True)
    with pytest.raises(PointerLocked):
        pipelines.remove("team/model:v1")


def test_the_newest_version_is_deleted(pipelines: Pipelines) -> None:
    """`:latest` falls back to the next newest version, and its number is not used again."""
    upload(pipelines, 1, 2, 3)
    pipelines.create_pointer("team/model:stable", identity(3), locked=False)

    assert identity(3) == pipelines.remove(identity(3)).id
    assert (2, 2) == (meaning(pipelines, "team/model"), meaning(pipelines, "team/model:latest"))
    assert ["team/model:v2", "team/model:latest", "team/model:v1"] == listed(pipelines)
    upload(pipelines, 4)
    assert 4 == meaning(pipelines, "team/model:v4")


def test_latest_that_was_moved_does_not_fall_back(pipelines: Pipelines) -> None:
    """It stays where a user has moved it when the newest version is deleted, and falls back when its own is."""
    upload(pipelines, 1, 2, 3)
    pipelines.edit_pointer("team/model:latest", target="team/model:v1", locked=None)

    pipelines.remove("team/model:v3")
    assert 1 == meaning(pipelines, "team/model:latest")
    pipelines.remove("team/model:latest")
    assert 2 == meaning(pipelines, "team/model:latest")
    pipelines.remove(identity(2))
    assert [] == listed(pipelines)
    for reference in ("team/model", "team/model:latest", identity(2)):
        with pytest.raises(UnknownPipeline):
            pipelines.find(reference)


def test_latest_may_be_deleted(pipelines: Pipelines) -> None:
    """Then the name means the newest version, and the next upload makes it again."""
    upload(pipelines, 1, 2)
    pipelines.remove_pointer("team/model:latest")
    assert 2 == meaning(pipelines, "team/model")
    with pytest.raises(UnknownPipeline):
        pipelines.find("team/model:latest")

    upload(pipelines, 3)
    assert 3 == meaning(pipelines, "team/model:latest")


@pytest.mark.parametrize(
    "text", ["", "model", ":tag", "model:", "model:a b", "model:-a", "model:.a", f"model:{'a' * 129}", "a\nb:c"]
)
def test_names_of_pointers(pipelines: Pipelines, text: str) -> None:
    """NAME:TAG, with a name of a pipeline."""
    upload(pipelines, 1)
    with pytest.raises(InvalidInput):
        pipelines.create_pointer(text, identity(1), locked=False)
    with pytest.raises(UnknownPointer):
        pipelines.remove_pointer(text)


def test_nothing_has_two_meanings(pipelines: Pipelines) -> None:
    """A pointer is not made twice, nor where a pipeline has its name, and a pipeline gets no name of a pointer."""
    upload(pipelines, 1)
    upload(pipelines, 2, name="team/model:old")
    pipelines.create_pointer("team/model:stable", identity(1), locked=False)

    for text in ("team/model:stable", "team/model:latest", "team/model:old"):
        with pytest.raises(PointerExists, match=f"'{text}' is already the name of a pointer or a pipeline"):
            pipelines.create_pointer(text, identity(1), locked=False)
    for name in ("team/model:v1", "team/model:stable"):
        with pytest.raises(PointerExists):
            upload(pipelines, 3, name=name)
    with pytest.raises(UnknownPipeline):
        pipelines.create_pointer("team/model:more", "unknown", locked=False)


def test_a_name_is_not_deleted(pipelines: Pipelines) -> None:
    """It may mean several pipelines, so an id or a pointer is needed."""
    upload(pipelines, 1, 2)
    with pytest.raises(InvalidInput, match="may mean several pipelines"):
        pipelines.remove("team/model")
    assert (2, 2) == (pipelines.page(name="team/model", skip=0, limit=1)[0], meaning(pipelines, "team/model"))


def test_pages_of_pipelines(pipelines: Pipelines) -> None:
    """The newest first, of all names or of one."""
    upload(pipelines, 1, 2)
    upload(pipelines, 3, name="other")

    def page(name: str | None, skip: int, limit: int) -> tuple[int, list[str]]:
        total, found = pipelines.page(name=name, skip=skip, limit=limit)
        return total, [pipeline.id for pipeline in found]

    assert (3, [identity(3), identity(2)]) == page(None, 0, 2)
    assert (3, [identity(1)]) == page(None, 2, 2)
    assert (2, [identity(2), identity(1)]) == page("team/model", 0, 100)
    assert (0, []) == page("team", 0, 100)
