"""A zip file has entries with the names that a fetch itself uses at its target. None of them is lost or changed unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

from filestore.errors import TargetError
from filestore.repository.local import LocalRepository
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.target import tree_label
from tests.support.archives import Forged, forged
from tests.support.fetching_trees import stored
from tests.support.trees import plant, standing

LABEL = tree_label("target")
OWN_NAMES = (
    f".{LABEL}.filestore-aside",
    f".{LABEL}.filestore-halfway",
    f".{LABEL}.filestore-discarded",
    f".{LABEL}.FILESTORE-ASIDE",
    f".{'0' * 32}-{LABEL}.filestore-replacing",
    f".{'0' * 32}-{LABEL}.filestore-moving",
)


@pytest.mark.parametrize("name", OWN_NAMES)
@pytest.mark.parametrize("inner", ["", "/inside"])
async def test_an_entry_with_our_own_name_is_refused(repository: LocalRepository, tmp_path: Path, name: str, inner: str) -> None:
    """The error names the entry, and nothing is written: at a new target, in an empty folder, and in one that is replaced."""
    archive = forged([Forged("honest.txt", b"well"), Forged(name + inner, b"lost")])
    record = await stored(repository, archive)
    for stands in ("new", "empty", "older"):
        folder = tmp_path / stands
        folder.mkdir()
        if stands != "new":
            plant(folder / "target", {} if stands == "empty" else {"older": b"older"})
        before = standing(folder)
        with pytest.raises(TargetError, match=f"has the name '{name}'"):
            await fetch_tree(repository, record, target=folder / "target", force=stands == "older")
        assert before == standing(folder)


@pytest.mark.parametrize("stands", ["new", "empty", "older"])
async def test_an_entry_like_our_own_name_is_unpacked(repository: LocalRepository, tmp_path: Path, stands: str) -> None:
    """Names of another target, and names in inner folders, are content. A second fetch does not remove them either."""
    names = [f".{tree_label('other')}.filestore-aside", f"inner/{OWN_NAMES[0]}", ".filestore-staging", ".filestore-aside"]
    record = await stored(repository, forged([Forged(name, name.encode()) for name in names]))
    if stands != "new":
        plant(tmp_path / "target", {} if stands == "empty" else {"older": b"older"})
    for force in (stands == "older", True):
        await fetch_tree(repository, record, target=tmp_path / "target", force=force)
        assert {name: name.encode() for name in names} == standing(tmp_path / "target")
