"""Directories that would harm or deceive the user who pushes them. Nothing outside is pushed, and every walk ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from filestore.errors import SourceChanged, SourceRefused, SourceUnreadable
from filestore.format.zip.read import DEFAULT_LIMITS
from filestore.transfer.sources import walk as walk_module
from filestore.transfer.sources.walk import Symlinks, WalkResult, walk
from filestore_cli.hints import explained
from tests.support.trees import Folder, Link, Planted, looped_tree, plant

FOLLOWING = (Symlinks.INSIDE, Symlinks.FOLLOW)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree to push, next to files that must not be pushed."""
    plant(tmp_path, {"secret": b"secret", "tree-secret/key": b"key", "outside/folder/key": b"key"})
    return plant(tmp_path / "tree", {"a": b"a", "folder/b": b"b"})


def assert_refused(root: Path, name: str, reason: str, symlinks: Symlinks = Symlinks.INSIDE) -> None:
    """Check that the tree is refused for `reason`, and that the error has the path of `name`."""
    with pytest.raises(SourceRefused, match=reason) as caught:
        walk(root, symlinks=symlinks)
    assert f"{root}/{name}" == caught.value.args[0]


def assert_changed(root: Path, name: str, reason: str) -> None:
    """Check that the tree is refused because `name` changed during the walk."""
    with pytest.raises(SourceChanged, match=reason) as caught:
        walk(root)
    assert f"{root}/{name}" == caught.value.args[0]


def after_listing(monkeypatch: pytest.MonkeyPatch, step: Callable[[], object]) -> None:
    """Take a step after the names in the first folder were read, and before the walk looks at any of them."""
    real = os.scandir

    @contextmanager
    def scandir(descriptor: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        with real(descriptor) as children:
            found = list(children)
        monkeypatch.setattr(os, "scandir", real)
        step()
        yield iter(found)

    monkeypatch.setattr(os, "scandir", scandir)


# Tests of links out of the directory.


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "/etc", "/", "../secret", "..", "../outside", "folder/../../secret", "./folder/.././../secret", "up/secret"],
)
def test_link_out(tree: Path, target: str) -> None:
    """A link leads outside, in different spellings."""
    plant(tree, {"link": Link(target), "up": Link("..")})

    with pytest.raises(SourceRefused, match="leads out of the directory"):
        walk(tree, include=["link"])


def test_link_to_a_neighbour_whose_name_begins_alike(tree: Path) -> None:
    """`tree-secret` is not inside `tree`."""
    plant(tree, {"link": Link("../tree-secret/key")})

    assert_refused(tree, "link", "leads out of the directory, to '.*tree-secret/key'")


def test_chain_of_links_out(tree: Path) -> None:
    """Each link but the last one leads inside."""
    plant(tree, {"folder/1": Link("../2"), "2": Link("folder/3"), "folder/3": Link("../../secret")})

    with pytest.raises(SourceRefused, match=r"leads out of the directory, to '.*/secret'"):
        walk(tree)


def test_link_out_in_a_folder_that_is_followed(tree: Path) -> None:
    """The error has the path by which the walk reached it."""
    plant(tree, {"folder/deep/link": Link("../../../secret"), "way": Link("folder/deep")})

    with pytest.raises(SourceRefused, match="leads out of the directory"):
        walk(tree, include=["way"])


def test_root_moves_up_by_a_link(tree: Path) -> None:
    """A link to the tree itself does not move its root. Things above it stay outside."""
    plant(tree, {"folder/self": Link(".."), "folder/up": Link("../..")})

    assert_refused(tree / "folder", "self", "leads out of the directory")


# Tests of circles.


@pytest.mark.parametrize("symlinks", FOLLOWING)
@pytest.mark.parametrize(
    ("links", "found"),
    [
        ({"self": "self"}, {"self"}),
        ({"1": "folder/2", "folder/2": "../1"}, {"1", "folder/2"}),
        ({"here": "."}, {"here"}),
        ({"folder/deep/up": "../.."}, {"folder/deep/up"}),
        ({"folder/up": "..", "way": "folder/up"}, {"folder/up", "way"}),
        ({"x/to_y": "../y", "y/to_x": "../x"}, {"x/to_y/to_x", "y/to_x/to_y"}),
    ],
    ids=["itself", "each other", "its folder", "a folder above", "by another link", "each other's folder"],
)
def test_loop(tree: Path, links: dict[str, str], found: set[str], symlinks: Symlinks) -> None:
    """Links lead to themselves, or to a folder above them."""
    plant(tree, {name: Link(target) for name, target in links.items()})

    with pytest.raises(SourceRefused, match=r"links make it a part of itself, so that it has no end|round in a circle") as caught:
        walk(tree, symlinks=symlinks)
    assert caught.value.args[0] in {f"{tree}/{name}" for name in found}


def test_loop_by_way_of_the_outside(tree: Path) -> None:
    """A link leads to the folder above the tree, so through it back to the tree and the link."""
    plant(tree, {"folder/out": Link("../..")})

    assert_refused(tree, "folder/out/tree", "links make it a part of itself", Symlinks.FOLLOW)


def test_loops_are_kept_or_left_out(tmp_path: Path) -> None:
    """Links that are not followed make no loop."""
    root = looped_tree(tmp_path / "tree")

    kept = walk(root, symlinks=Symlinks.KEEP)
    assert {"self", "a", "b", "here", "folder/up", "x/to_y", "y/to_x"} == {e.name for e in kept.entries if e.target is not None}
    left = walk(root, exclude=["self", "[ab]", "here", "*/up", "*/to_y"])
    assert ["file.txt", "folder/file.txt"] == [entry.name for entry in left.entries]


@pytest.mark.parametrize("symlinks", FOLLOWING)
def test_links_that_multiply(tmp_path: Path, symlinks: Symlinks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two links to the next folder in each of 40 would be 2^40 files."""
    monkeypatch.setattr(walk_module, "ENTRIES_LIMIT", 1000)
    things: dict[str, Planted] = {"40/file": b""}
    for level in range(40):
        things |= {f"{level}/a": Link(f"../{level + 1}"), f"{level}/b": Link(f"../{level + 1}")}
    root = plant(tmp_path / "tree", things)

    for exclude in ([], ["*/file"]):
        with pytest.raises(
            SourceRefused, match=f"^{root} was refused: it holds more than 1000 files, links and folders, "
        ) as caught:
            walk(root, symlinks=symlinks, exclude=exclude)
        assert explained(caught.value).endswith("; --exclude does that")


def test_limit_is_that_of_whoever_unpacks(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of a fetch. Files, links and folders count; the root and excluded entries do not."""
    assert DEFAULT_LIMITS.entries == walk_module.ENTRIES_LIMIT
    plant(tree, {"link": Link("a"), "empty": Folder(), "x": b""})
    monkeypatch.setattr(walk_module, "ENTRIES_LIMIT", 5)

    for symlinks in (Symlinks.INSIDE, Symlinks.KEEP):
        assert 4 == len(walk(tree, symlinks=symlinks, exclude=["x"]).entries)
        with pytest.raises(SourceRefused, match="more than 5 files"):
            walk(tree, symlinks=symlinks)


@pytest.mark.slow
@pytest.mark.parametrize("symlinks", FOLLOWING)
def test_long_chain_of_links(tree: Path, symlinks: Symlinks) -> None:
    """The longest chain that an operating system follows is allowed, and a longer one is refused."""
    plant(tree, {f"link-{number}": Link(f"link-{number + 1}") for number in range(30)})
    plant(tree, {"link-30": Link("a")})
    walked = walk(tree, symlinks=symlinks)
    assert {str(tree / "a")} == set(walked.elsewhere.values())

    plant(tree, {f"more-{number}": Link(f"more-{number + 1}") for number in range(1100)})
    plant(tree, {"more-1100": Link("a")})
    with pytest.raises(SourceRefused, match="too many links"):
        walk(tree, symlinks=symlinks)


# Tests of depth.


@pytest.mark.slow
def test_deep_folders(tmp_path: Path) -> None:
    """A walk has no limit of depth, as long as a path can be opened."""
    paths = [f"{tmp_path}/tree{'/d' * depth}" for depth in range(1200)]
    for path in paths:
        Path(path).mkdir()
    try:
        assert ["/".join("d" * 1199)] == [entry.name for entry in walk(tmp_path / "tree").entries]
    finally:
        for path in reversed(paths):
            Path(path).rmdir()  # pytest would recurse into each folder


def test_deeper_than_a_path_can_say(tree: Path) -> None:
    """The error has the path and the reason."""
    folders = [os.open(tree, os.O_RDONLY)]
    for _ in range(50):
        os.mkdir("d" * 100, dir_fd=folders[-1])
        folders.append(os.open("d" * 100, os.O_RDONLY, dir_fd=folders[-1]))
    try:
        with pytest.raises(SourceUnreadable, match="File name too long"):
            walk(tree)
    finally:
        while len(folders) > 1:
            os.close(folders.pop())
            os.rmdir("d" * 100, dir_fd=folders[-1])
        os.close(folders.pop())


# Tests of changes during the walk.


def before_opening(monkeypatch: pytest.MonkeyPatch, opened: str, step: Callable[[], None]) -> None:
    """Take a step after a folder was found, and before it is opened."""
    real = os.open

    def step_and_open(path: str, flags: int) -> int:
        if path == opened:
            step()
        return real(path, flags)

    monkeypatch.setattr(os, "open", step_and_open)


def test_folder_becomes_a_link_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder has become a link when it is opened."""

    def step() -> None:
        (tree / "folder").rename(tree / "gone")
        (tree / "folder").symlink_to("../outside")

    before_opening(monkeypatch, f"{tree}/folder", step)
    assert_changed(tree, "folder", "it is not a folder any more")


def test_folder_on_the_way_becomes_a_link_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a folder leads to another one when it is opened."""
    plant(tree, {"way/folder/key": b"not secret"})

    def step() -> None:
        (tree / "way").rename(tree / "gone")
        (tree / "way").symlink_to("../outside")

    before_opening(monkeypatch, f"{tree}/way/folder", step)
    assert_changed(tree, "way/folder", "another folder was put in its place")


def test_link_leads_elsewhere_meanwhile(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link leads outside when the walk examines it, and inside when the walk asks where it leads."""
    plant(tree, {"link": Link("../secret")})
    real = os.path.realpath

    def swap(path: str) -> str:
        if path == f"{tree}/link":
            (tree / "link").unlink()
            (tree / "link").symlink_to("a")
        return real(path)

    monkeypatch.setattr(os.path, "realpath", swap)
    assert_changed(tree, "link", "leads elsewhere now")


@pytest.mark.parametrize("name", ["a", "folder", "link"])
def test_what_was_listed_vanishes(tree: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a folder or a link disappears."""
    plant(tree, {"link": Link("folder/b")})

    after_listing(monkeypatch, lambda: (tree / name).rename(tree.parent / "gone"))
    with pytest.raises(SourceChanged, match="it vanished") as caught:
        walk(tree, include=[name])
    assert f"{tree}/{name}" == caught.value.args[0]


def test_link_becomes_a_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed link is a file when the walk reads it."""
    plant(tree, {"link": Link("a")})

    after_listing(monkeypatch, lambda: (tree / "a").rename(tree / "link"))
    with pytest.raises(SourceChanged, match="it is not a link any more"):
        walk(tree, include=["link"])


def test_file_becomes_a_fifo(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is examined and never opened, so nothing waits for a writer."""

    def step() -> None:
        (tree / "a").unlink()
        os.mkfifo(tree / "a")

    after_listing(monkeypatch, step)
    assert_refused(tree, "a", "a FIFO")


def test_file_becomes_a_link_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed file has become a link. It is not followed."""

    def step() -> None:
        (tree / "a").unlink()
        (tree / "a").symlink_to("../secret")

    after_listing(monkeypatch, step)
    assert_refused(tree, "a", "no regular file")


def test_content_is_that_of_the_file_that_was_found(tree: Path) -> None:
    """Another file at the path is noticed by its state."""
    walked: WalkResult = walk(tree)
    place = [entry.name for entry in walked.entries].index("a")
    state = walked.states[place]
    (tree / "a").unlink()
    (tree / "a").symlink_to("../secret")

    assert state is not None
    assert state.inode != Path(walked.path(place)).stat().st_ino
