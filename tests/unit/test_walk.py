from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from filestore.errors import InvalidInput, InvalidName, NothingMatches, SourceChanged, SourceRefused, SourceUnreadable
from filestore.format.zip.chunker import TreeChunker
from filestore.format.zip.write import Entry, sorted_entries
from filestore.transfer.sources.file import FileState
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, WalkResult, walk
from filestore_cli.hints import explained
from tests.support.trees import (
    AWKWARD_NAMES,
    Folder,
    Link,
    Planted,
    Script,
    entries_of,
    many_files,
    plant,
    random_things,
    random_tree,
    snapshot,
)

FOLLOWING = (Symlinks.INSIDE, Symlinks.FOLLOW)


def names(walked: WalkResult) -> list[str]:
    """Return the names of what was found."""
    return [entry.name for entry in walked.entries]


def contents(walked: WalkResult) -> dict[str, bytes]:
    """Read the files at the paths that the walk gives for their content."""
    return {
        entry.name: Path(walked.path(place)).read_bytes()
        for place, entry in enumerate(walked.entries)
        if not entry.is_folder and entry.target is None
    }


def refusal(root: Path, symlinks: Symlinks = Symlinks.INSIDE, *, exclude: Sequence[str] = ()) -> str:
    """What the command line says where something in a tree is refused."""
    with pytest.raises(SourceRefused) as caught:
        walk(root, symlinks=symlinks, exclude=exclude)
    return explained(caught.value)


# What is found.


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("symlinks", Symlinks)
def test_random_trees(tmp_path: Path, seed: int, symlinks: Symlinks) -> None:
    """Files, sizes, executable bits and empty folders are found, in the order of the archive."""
    things = random_things(seed)
    walked = walk(plant(tmp_path / "tree", things), symlinks=symlinks)

    assert entries_of(things) == walked.entries
    assert list(sorted_entries(walked.entries)) == walked.entries
    assert {} == walked.elsewhere


def test_one_glob_is_not_a_list_of_its_characters(tmp_path: Path) -> None:
    """A text stands for one glob: its `*` alone would match everything."""
    tree = plant(tmp_path / "tree", {"a.txt": b"a", "b.bin": b"b", "t": b"t"})
    assert ["a.txt"] == names(walk(tree, include="*.txt"))
    assert ["b.bin", "t"] == names(walk(tree, exclude="*.txt"))


def test_what_becomes_of_links_may_be_a_text(tmp_path: Path) -> None:
    """As at the command line; another text is refused with those that are known."""
    tree = plant(tmp_path / "tree", {"a": b"a", "b": Link("a")})
    assert [None, "a"] == [entry.target for entry in walk(tree, symlinks="keep").entries]
    with pytest.raises(InvalidInput, match="inside, follow, keep or refuse"):
        walk(tree, symlinks="ignore")


def test_states_are_those_of_the_files(tmp_path: Path) -> None:
    """Each file has its state; folders and kept links have none."""
    root = plant(tmp_path / "tree", {"a": b"", "b/c": Script(b"c"), "empty": Folder(), "link": Link("a")})
    os.utime(root / "a", ns=(-1, -1_500_000_000))
    walked = walk(root, symlinks=Symlinks.KEEP)

    assert ["a", "b/c", "empty", "link"] == names(walked)
    assert [*(FileState.of((root / name).stat()) for name in ("a", "b/c")), None, None] == list(walked.states)
    assert len(walked.entries) == len(walked.states)
    assert walked.states[1:] == [walked.states[1], walked.states[2], walked.states[-1]]
    with pytest.raises(IndexError):
        _ = walked.states[4]


def test_where_content_lies(tmp_path: Path) -> None:
    """At its name in the root, if no link was on the way."""
    root = random_tree(tmp_path / "tree", 3)
    walked = walk(root)

    for place, entry in enumerate(walked.entries):
        assert root / entry.name == Path(walked.path(place))


def test_order_is_that_of_whole_paths(tmp_path: Path) -> None:
    """A folder sorts with `/` after its name: `a.b` comes before the content of `a`, and `a0` after it."""
    walked = walk(plant(tmp_path / "tree", {"a/x": b"", "a.b": b"", "a0": b"", "é": b"", "z": Folder(), "z.": b"", "z0": b""}))

    assert ["a.b", "a/x", "a0", "z.", "z", "z0", "é"] == names(walked)


def test_awkward_names(tmp_path: Path) -> None:
    """Line ends, back slashes, letter case and Unicode forms: names that a file system keeps apart are apart."""
    things: dict[str, Planted] = {name: name.encode() for name in AWKWARD_NAMES}
    walked = walk(plant(tmp_path / "tree", things))

    assert things == contents(walked)


def test_only_the_owners_right_to_execute_counts(tmp_path: Path) -> None:
    """The rights of others, and other rights, do not count."""
    modes = {"none": 0o400, "owner": 0o500, "group": 0o410, "others": 0o401, "setuid": 0o4700, "all": 0o777}
    root = plant(tmp_path / "tree", dict.fromkeys(modes, b""))
    for name, mode in modes.items():
        (root / name).chmod(mode)

    assert ["all", "owner", "setuid"] == [entry.name for entry in walk(root).entries if entry.is_executable]


def test_empty_root(tmp_path: Path) -> None:
    """It has no entries, not even itself."""
    assert [] == walk(plant(tmp_path / "tree", {})).entries


def test_folder_of_empty_folders(tmp_path: Path) -> None:
    """Only the innermost is an entry."""
    assert [Entry("a/b", is_folder=True), Entry("a/c/d", is_folder=True)] == walk(
        plant(tmp_path / "tree", {"a/b": Folder(), "a/c/d": Folder()})
    ).entries


def test_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken from the current folder, links in it included."""
    monkeypatch.chdir(plant(tmp_path / "tree", {"a": b"a", "folder/b": Link("../a")}))

    assert {"a": b"a", "folder/b": b"a"} == contents(walk(Path()))
    assert {"b": b"a"} == contents(walk(Path("folder"), symlinks=Symlinks.FOLLOW))
    assert "leads out of the directory" in refusal(Path("folder"))


@pytest.mark.parametrize("symlinks", Symlinks)
def test_root_that_is_a_link(tmp_path: Path, symlinks: Symlinks) -> None:
    """The walk is that of the folder to which the link leads, for every policy."""
    plant(tmp_path, {"tree/folder/a": b"a", "link": Link("tree")})
    walked = walk(tmp_path / "link", symlinks=symlinks)

    assert {"folder/a": b"a"} == contents(walked)
    assert {} == walked.elsewhere


def test_links_in_a_root_that_is_a_link(tmp_path: Path) -> None:
    """A path is inside if it is in the folder to which the root leads, under either name."""
    plant(tmp_path, {"tree/a": b"a", "root": Link("tree")})
    plant(tmp_path / "tree", {"by_link": Link(f"{tmp_path}/root/a"), "by_path": Link(f"{tmp_path}/tree/a")})

    assert {"a": b"a", "by_link": b"a", "by_path": b"a"} == contents(walk(tmp_path / "root"))


def test_root_that_is_not_a_directory(tmp_path: Path) -> None:
    """A file, a missing path and a dangling link are refused with path and reason."""
    plant(tmp_path, {"file": b"", "dangling": Link("nowhere")})

    for name, reason in {"file": "not a directory", "nothing": "No such file", "dangling": "No such file"}.items():
        with pytest.raises(SourceUnreadable, match=reason) as caught:
            walk(tmp_path / name)
        assert str(tmp_path / name) == caught.value.args[0]


@pytest.mark.slow
def test_a_large_tree_stays_small_in_memory(tmp_path: Path) -> None:
    """An entry takes less than 400 bytes at the peak, its name of 17 letters included."""
    root = many_files(tmp_path / "tree", 2000)
    tracemalloc.start()
    try:
        walked = walk(root)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 2000 == len(walked.entries)
    assert peak < 400 * 2000


# Links.


@pytest.mark.parametrize("symlinks", FOLLOWING)
def test_link_to_a_file_inside(tmp_path: Path, symlinks: Symlinks) -> None:
    """It becomes the file: content, state and executable bit."""
    root = plant(tmp_path / "tree", {"a/run": Script(b"run"), "b/link": Link("../a/run"), "chain": Link("b/link")})
    walked = walk(root, symlinks=symlinks)

    assert [Entry(name, 3, is_executable=True) for name in ("a/run", "b/link", "chain")] == walked.entries
    assert [FileState.of((root / "a/run").stat())] * 3 == list(walked.states)
    assert {"b/link": str(root / "a/run"), "chain": str(root / "a/run")} == walked.elsewhere
    assert dict.fromkeys(("a/run", "b/link", "chain"), b"run") == contents(walked)


@pytest.mark.parametrize("symlinks", FOLLOWING)
def test_link_to_a_folder_inside(tmp_path: Path, symlinks: Symlinks) -> None:
    """The content of the folder is also taken under the name of the link, with empty folders and links in it."""
    root = plant(
        tmp_path / "tree",
        {"a/b/c": b"c", "a/empty": Folder(), "a/to_d": Link("../d"), "d": b"d", "link": Link("a"), "hollow": Link("a/empty")},
    )
    walked = walk(root, symlinks=symlinks)

    assert [
        *("a/b/c", "a/empty", "a/to_d", "d", "hollow"),
        *("link/b/c", "link/empty", "link/to_d"),
    ] == names(walked)
    assert {"a/to_d", "link/b/c", "link/to_d"} == set(walked.elsewhere)
    assert {"a/b/c": b"c", "a/to_d": b"d", "d": b"d", "link/b/c": b"c", "link/to_d": b"d"} == contents(walked)


def test_link_that_ends_inside(tmp_path: Path) -> None:
    """Where it leads in the end counts, not the way there."""
    plant(tmp_path, {"tree/a": b"a", "tree/link": Link("../outside/back"), "outside/back": Link("../tree/a")})

    assert {"a": b"a", "link": b"a"} == contents(walk(tmp_path / "tree"))


def test_snapshot_of_hugging_face(tmp_path: Path) -> None:
    """All its files are links to outside: the error says what to do, and that works."""
    found = snapshot(tmp_path)

    sentence = refusal(found.path)
    assert any(f"{found.path / name} was refused: it is a link that leads out" in sentence for name in found.contents)
    assert str(found.path.parents[1] / "blobs") in sentence
    assert "`--symlinks follow`" in sentence
    assert found.contents == contents(walk(found.path, symlinks=Symlinks.FOLLOW))


def test_following_out_of_the_directory(tmp_path: Path) -> None:
    """Files and folders outside are taken under the links' names; their paths are free of links."""
    plant(tmp_path, {"outside/a": b"a", "outside/folder/b": Script(b"b"), "outside/folder/c": Link("../a")})
    root = plant(tmp_path / "tree", {"file": Link(f"{tmp_path}/outside/a"), "folder": Link("../outside/folder")})
    walked = walk(root, symlinks=Symlinks.FOLLOW)

    assert {"file": b"a", "folder/b": b"b", "folder/c": b"a"} == contents(walked)
    assert str(tmp_path / "outside/folder/b") == walked.elsewhere["folder/b"]
    assert str(tmp_path / "outside/a") == walked.elsewhere["folder/c"]


@pytest.mark.parametrize("symlinks", FOLLOWING)
@pytest.mark.parametrize("target", ["nowhere", "file/x", "/nowhere/at/all"])
def test_dangling_link(tmp_path: Path, symlinks: Symlinks, target: str) -> None:
    """The error has its path and target, and says what to do."""
    root = plant(tmp_path / "tree", {"folder/link": Link(target), "folder/file": b""})

    assert refusal(root, symlinks) == (
        f"{root}/folder/link was refused: it is a link to {target!r}, where nothing is; "
        "keep links as they are, or leave it out; `--symlinks keep` and --exclude do that"
    )


def test_kept_links(tmp_path: Path) -> None:
    """To files, to folders, to nothing, round in a circle over a folder: each is an entry, and the archive takes it."""
    things: dict[str, Planted] = {
        "file": b"file",
        "folder/x": b"x",
        "folder/to_file": Link("./../file"),
        "to_folder": Link("folder/"),
        "to_größe": Link("größe"),
        "here": Link("."),
    }
    walked = walk(plant(tmp_path / "tree", things), symlinks=Symlinks.KEEP)

    assert entries_of(things) == walked.entries
    assert walked.entries == list(sorted_entries(walked.entries))
    assert {} == walked.elsewhere


def test_kept_link_that_is_absolute(tmp_path: Path) -> None:
    """It is refused even if it leads inside; the error has its path and target, and says what to do."""
    root = plant(tmp_path / "tree", {"a": b""})
    (root / "link").symlink_to(root / "a")
    sentence = refusal(root, Symlinks.KEEP)

    assert sentence.startswith(f"{root}/link was refused: it is a link to {str(root / 'a')!r}, which is another place")
    assert "make it relative" in sentence


def test_kept_link_that_is_not_utf8(tmp_path: Path) -> None:
    """It could not be written down."""
    root = plant(tmp_path / "tree", {"link": Link(os.fsdecode(b"\xff"))})

    assert f"{root}/link was refused: it is a link to '\\udcff', which is not UTF-8" in refusal(root, Symlinks.KEEP)


@pytest.mark.parametrize("target", ["../../outside", ".././/../outside", "../../tree/folder"])
def test_kept_link_that_leads_out(tmp_path: Path, target: str) -> None:
    """The error has its path and target, and says what to do."""
    root = plant(tmp_path, {"tree/folder/link": Link(target), "outside": b""}) / "tree"
    sentence = refusal(root, Symlinks.KEEP)

    assert sentence.startswith(f"{root}/folder/link was refused: it is a link that leads out of the directory, to {target!r}; ")
    assert "--symlinks follow" in sentence


def test_kept_link_that_leads_out_by_way_of_another(tmp_path: Path) -> None:
    """The writer of the zip refuses it; the error has its name and target."""
    plant(tmp_path, {"tree/a/b/link": Link("../../up/../outside"), "tree/up": Link("."), "outside": b""})
    walked = walk(tmp_path / "tree", symlinks=Symlinks.KEEP)

    with pytest.raises(InvalidName, match=r"'a/b/link'.*leads out of the tree, to '\.\./\.\./up/\.\./outside'"):
        TreeChunker(walked.entries, lambda *_: None)
    with pytest.raises(SourceRefused, match=f"^{tmp_path}/tree/a/b/link was refused: .* leads out of the tree, ") as refused:
        TreeSource(walked)
    assert explained(refused.value).endswith("; leave it out; --exclude does that")


@pytest.mark.parametrize("target", ["a", "nowhere", "folder", "/etc"])
def test_refused_links(tmp_path: Path, target: str) -> None:
    """Any link is refused, by its path and target, wherever it leads."""
    root = plant(tmp_path / "tree", {"a": b"", "folder/b": b"", "link": Link(target)})

    assert refusal(root, Symlinks.REFUSE).startswith(f"{root}/link was refused: it is a link to {target!r}; follow it, or")


# What is taken.


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with something for every glob."""
    root = random_tree(tmp_path_factory.mktemp("walk") / "tree", 7, count=60, large_count=0)
    return plant(root, {"a/b/c.json": b"", "a/b.json": b"", "a.json/d": b"", "a/e": Folder(), "A/b": b"", "e": Folder()})


def taken(globs: Sequence[str], entry: Entry) -> bool:
    """Return whether a glob matches an entry, by a rule that looks at each entry alone."""
    parts = entry.name.split("/")
    paths = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for glob in globs:
        whole = f"{glob}*" if glob.endswith("/") else glob
        if any(fnmatchcase(path, whole) for path in paths):
            return True
        if entry.is_folder and whole.endswith("*") and fnmatchcase(f"{entry.name}/", whole):
            return True
    return False


@pytest.mark.parametrize("seed", range(200))
def test_globs_mean_the_same_for_folders_that_are_not_looked_into(grown: Path, seed: int) -> None:
    """A folder that is skipped as a whole has only entries that would be skipped one by one."""
    rng = random.Random(seed)
    everything = walk(grown).entries
    include, exclude = ([_glob(rng, everything) for _ in range(rng.choice([0, 1, 1, 3]))] for _ in range(2))
    expected = [entry for entry in everything if (not include or taken(include, entry)) and not taken(exclude, entry)]

    if include and not expected:
        with pytest.raises(NothingMatches):
            walk(grown, include=include, exclude=exclude)
        return
    assert expected == walk(grown, include=include, exclude=exclude).entries


def _glob(rng: random.Random, entries: Sequence[Entry]) -> str:
    """A path of the tree, or of a folder on the way, parts of it replaced by wildcards."""
    path = rng.choice(entries).name
    if rng.random() < 0.5:
        path = path[: rng.randrange(len(path)) + 1]
    for _ in range(rng.randrange(3)):
        start = rng.randrange(len(path) + 1)
        path = path[:start] + rng.choice(["*", "*", "?", "/", "[!a-z]", "[", "[*", "*]"]) + path[start + rng.randrange(3) :]
    return path


def test_star_matches_slashes(tmp_path: Path) -> None:
    """As in `huggingface_hub`: a glob is for whole paths."""
    root = plant(tmp_path / "tree", {"a.json": b"", "b/c.json": b"", "b/d.txt": b"", "e.JSON": b""})

    assert ["a.json", "b/c.json"] == names(walk(root, include=["*.json"]))
    assert ["b/d.txt", "e.JSON"] == names(walk(root, exclude=["*.json"]))
    assert ["b/c.json"] == names(walk(root, include=["b/*"], exclude=["*.txt"]))


@pytest.mark.parametrize("glob", ["b", "b/", "b/*", "b*", "[b]", "?/"])
def test_folder_as_a_whole(tmp_path: Path, glob: str) -> None:
    """A glob matches a folder by its name, with or without `/`, or by matching everything in it."""
    root = plant(tmp_path / "tree", {"a": b"", "b/c": b"", "b/d/e": b"", "b/f": Folder()})

    assert ["b/c", "b/d/e", "b/f"] == names(walk(root, include=[glob]))
    assert ["a"] == names(walk(root, exclude=[glob]))


def test_slash_at_the_end_means_a_folder(tmp_path: Path) -> None:
    """A file of that name is another thing; an empty folder is meant too."""
    root = plant(tmp_path / "tree", {"x/logs": b"", "logs": Folder(), "y": b""})

    assert ["x/logs", "y"] == names(walk(root, exclude=["logs/", "*/logs/"]))
    assert ["logs"] == names(walk(root, include=["logs/"]))


def test_folder_that_becomes_empty(tmp_path: Path) -> None:
    """It is not kept; one that is empty anyhow is, if it is meant."""
    root = plant(tmp_path / "tree", {"a/b.txt": b"", "c": Folder(), "d.json": b""})

    assert ["c", "d.json"] == names(walk(root, exclude=["*.txt"]))
    assert ["d.json"] == names(walk(root, include=["*.json"]))
    assert ["c"] == names(walk(root, include=["c"]))
    assert [] == walk(root, exclude=["*"]).entries


def test_excluded_is_stronger_than_included(tmp_path: Path) -> None:
    """An excluded entry is left out, even if a glob includes it."""
    root = plant(tmp_path / "tree", {"a/b.txt": b"", "a/c.txt": b""})

    assert ["a/c.txt"] == names(walk(root, include=["a", "a/b.txt"], exclude=["a/b.txt"]))


@pytest.mark.parametrize(
    ("include", "exclude", "told"),
    [
        (["*.bin"], [], "'*.bin'"),
        (["*.bin", "x/"], [], "'*.bin' or 'x/'"),
        (["*.txt"], ["a", "b"], "'*.txt' and not 'a' or 'b'"),
        (["A.txt"], [], "'A.txt'"),
    ],
)
def test_nothing_matches(tmp_path: Path, include: list[str], exclude: list[str], told: str) -> None:
    """The error has the directory and the globs."""
    root = plant(tmp_path / "tree", {"a/b.txt": b"", "c": Folder()})

    with pytest.raises(NothingMatches) as caught:
        walk(root, include=include, exclude=exclude)
    assert (str(root), told) == caught.value.args


def test_globs_and_links_to_folders(tmp_path: Path) -> None:
    """Globs match the names below a link; the name of the link matches all of them."""
    root = plant(tmp_path / "tree", {"a/b.json": b"", "a/c.txt": b"", "link": Link("a")})

    assert ["a/b.json", "link/b.json"] == names(walk(root, include=["*.json"]))
    assert ["link/b.json", "link/c.txt"] == names(walk(root, include=["link"]))
    assert ["link/b.json"] == names(walk(root, include=["link/"], exclude=["*.txt"]))
    assert ["a/b.json", "a/c.txt"] == names(walk(root, exclude=["link"]))


@pytest.mark.parametrize("symlinks", Symlinks)
@pytest.mark.parametrize("glob", ["bad", "ba*", "bad/"])
def test_excluded_links_are_not_looked_at(tmp_path: Path, symlinks: Symlinks, glob: str) -> None:
    """Wherever they lead: they are not refused."""
    for number, target in enumerate(["..", "nowhere", "bad", "/etc", "\udcff"]):
        root = plant(tmp_path / str(number), {"a": b"", "bad": Link(target)})
        assert ["a"] == names(walk(root, symlinks=symlinks, exclude=[glob]))


@pytest.mark.parametrize("symlinks", Symlinks)
def test_links_that_are_not_included(tmp_path: Path, symlinks: Symlinks) -> None:
    """A link below which nothing is included is not refused."""
    root = plant(tmp_path / "tree", {"a.json": b"", "x": Link("nowhere"), "y": Link("/etc/passwd"), "z": Link("/etc")})

    assert ["a.json"] == names(walk(root, symlinks=symlinks, include=["a*"]))
    assert ["a.json"] == names(walk(root, symlinks=symlinks, include=["*.json"], exclude=["z"]))


# What is refused.


@pytest.mark.parametrize("symlinks", Symlinks)
def test_what_is_neither_file_nor_folder(tmp_path: Path, symlinks: Symlinks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO or a socket is refused, with its path, what it is and what to do; it can be excluded."""
    root = plant(tmp_path / "tree", {"a": b"", "folder/b": b""})
    os.mkfifo(root / "folder/pipe")
    assert refusal(root, symlinks) == (
        f"{root}/folder/pipe was refused: it is a FIFO, which has no content to keep; leave it out; --exclude does that"
    )

    monkeypatch.chdir(root / "folder")  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("door")
    assert f"{root}/folder/door was refused: it is a socket" in refusal(root, symlinks, exclude=["*/pipe"])
    assert ["a", "folder/b"] == names(walk(root, symlinks=symlinks, exclude=["*/pipe", "*/door"]))
    assert ["a"] == names(walk(root, symlinks=symlinks, exclude=["folder"]))
    assert ["folder/b"] == names(walk(root, symlinks=symlinks, include=["*/b"]))


def test_link_to_a_device(tmp_path: Path) -> None:
    """It is refused as the device that it leads to, under the link's name."""
    root = plant(tmp_path / "tree", {"null": Link("/dev/null")})

    assert f"{root}/null was refused: it is a character device" in refusal(root, Symlinks.FOLLOW)


@pytest.mark.parametrize("thing", [b"", Folder(), Link(".")])
@pytest.mark.parametrize("name", ["\udcff", "folder/gr\udcf6ße"])
def test_name_that_is_not_utf8(tmp_path: Path, name: str, thing: Planted) -> None:
    """The error has a path that can be printed, and says what to do."""
    root = plant(tmp_path / "tree", {"a": b"", name: thing})
    sentence = refusal(root, Symlinks.KEEP)

    assert sentence.encode().decode() == sentence
    shown = name.replace("\udcff", "\\xff").replace("\udcf6", "\\xf6")
    assert f"{root}/{shown} was refused: its name is not UTF-8; rename it, or leave it out; --exclude does that" == sentence
    assert ["a"] == names(walk(root, symlinks=Symlinks.KEEP, exclude=["[!a]", "folder/gr?ße"]))


def test_file_in_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """Its path is not UTF-8 either."""
    root = plant(tmp_path / "tree", {"\udcff/a.txt": b""})

    assert f"{root}/\\xff/a.txt was refused: its name is not UTF-8" in refusal(root)


@pytest.mark.parametrize("name", ["C:model", "..\\up", "\\root"])
def test_name_that_no_archive_holds(tmp_path: Path, name: str) -> None:
    """The writer of the zip refuses the name; the error of the push has the path, and says what to do."""
    walked = walk(plant(tmp_path / "tree", {"a": b"", name: b""}))

    with pytest.raises(InvalidName, match="the name") as caught:
        TreeChunker(walked.entries, lambda *_: None)
    assert name == caught.value.args[0]
    with pytest.raises(SourceRefused) as refused:
        TreeSource(walked)
    assert str(refused.value).startswith(f"{tmp_path}/tree/{name} was refused: no archive can hold it: it ")
    assert explained(refused.value).endswith("; leave it out; --exclude does that")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from filestore.errors import FilestoreError
from filestore.transfer.sources.walk import Symlinks, walk
from filestore_cli.hints import explained

if os.geteuid() == 0:  # root may look anywhere
    for folder, folders, files in os.walk("."):
        for name in [".", *folders, *files]:
            os.lchown(os.path.join(folder, name), 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
for name, mode in (("tree/closed", 0), ("tree/blind", 0o444)):
    os.chmod(name, mode)
try:
    for exclude in ([], ["blind"], ["closed"], ["blind", "closed"], ["blind/", "closed/*"], ["blind/a", "closed"]):
        try:
            print([entry.name for entry in walk(Path("tree"), exclude=exclude).entries])
        except FilestoreError as error:
            print(type(error).__name__, explained(error))
    try:
        walk(Path("tree/closed"))
    except FilestoreError as error:
        print(type(error).__name__, explained(error))
    os.symlink("closed/a", "tree/door")
    print([entry.name for entry in walk(Path("tree"), include=["f*"]).entries])
    try:
        walk(Path("tree"), include=["door", "f*"])
    except FilestoreError as error:
        print(type(error).__name__, explained(error))
finally:
    os.chmod("tree/closed", 0o700)
    os.chmod("tree/blind", 0o700)
"""


def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    """The error has path and reason, and says what to do. A folder that is not needed is not read."""
    plant(tmp_path / "tree", {"closed/a": b"", "blind/a": b"", "free": b""})
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], cwd=tmp_path, capture_output=True, text=True, check=True)

    denied = "cannot be read: Permission denied; make it readable with `chmod`"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("SourceUnreadable tree/")
    assert [
        f"SourceUnreadable tree/closed {denied}, or leave it out; --exclude does that",
        f"SourceUnreadable tree/blind/a {denied}, or leave it out; --exclude does that",
        "['free']",
        "['free']",
        "['free']",
        f"SourceUnreadable tree/closed {denied}",
        "['free']",
        f"SourceUnreadable tree/door {denied}, or leave it out; --exclude does that",
    ] == lines[1:]


def test_folder_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported as a change, with its path."""
    root = plant(tmp_path / "tree", {"folder": Folder()})
    real_open = os.open

    def vanish(path: str, flags: int) -> int:
        if path == f"{root}/folder":
            (root / "folder").rmdir()
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", vanish)
    with pytest.raises(SourceChanged, match="it vanished") as caught:
        walk(root)
    assert f"{root}/folder" == caught.value.args[0]
