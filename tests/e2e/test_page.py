"""The pages of names, versions and files at a real server: what they show, and what their forms do."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from urllib.request import urlopen

import pytest

from filestore import Symlinks, blocking
from filestore.core.commits import LabelKind
from filestore.core.digest import Digest, token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.core.scopes import Scope
from filestore.http.server.routes.page.file import PAGE_COUNT
from filestore.http.wire import API
from filestore.repository.index.protocol import Use
from filestore.repository.index.sqlite import open_index
from tests.support.changed_tokens import changed
from tests.support.generator import octets, prose
from tests.support.hub import push_zip
from tests.support.pages import Visitor, page_text, sign_in
from tests.support.parsed_pages import Form, Page, read
from tests.support.server import OTHER_NAMESPACE, OTHER_TOKEN, Reply, RunningServer, running_server
from tests.support.trees import AWKWARD_NAMES, Folder, Link, Planted, Script, plant

NAME = "team/my-model"
HOSTILE = "<b><img src=x onerror=alert(1)><script>alert(1)\"'&amp;\N{RIGHT-TO-LEFT OVERRIDE}.bin"
MESSAGE = "<b>First</b> version\n\n<script>alert(1)</script>"
WEIGHTS = octets(1, 3 << 20)
THINGS: dict[str, Planted] = {
    "README.md": b"---\ntags: [a]\n---\n# <b>A model</b> <script>alert(1)</script>\n",
    "config.json": b"{}",
    "weights/model.safetensors": WEIGHTS,
    "run.sh": Script(b"#!/bin/sh\n"),
    "logs": Folder(),
    "now": Link("run.sh"),
    "nowhere": Link("absent"),
    **{f"awkward/{name}": name.encode() for name in AWKWARD_NAMES},
    "awkward/<img src=x onerror=alert(1)>": b"<script>alert(1)</script>",
    "page.html": b"<script>alert(1)</script>",
}
MANY_FILES = 50_000
MANY_VERSIONS = 10_000
MANY_NAMES = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one process."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


@pytest.fixture(scope="module")
def rows_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server for records that are only rows of its index. It may log that their manifests are missing."""
    with running_server(tmp_path_factory.mktemp("rows") / "root", check=False) as server:
        yield server


async def add_rows(server: RunningServer, namespace: str, names: Iterable[str]) -> None:
    """Add a version of each of these names in turn, without content."""
    index = await open_index(server.root / "index.sqlite")
    async with index.transaction() as transaction:
        for number, name in enumerate(names):
            digest = Digest(number.to_bytes(32, "big"))
            await transaction.add_record(namespace, name=name, digest=digest, size=number, kind=Kind.FILE)
    await index.close()


@pytest.fixture(scope="module")
def versions(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Two versions of a directory, the older one first, with a tag and a branch."""
    folder = plant(tmp_path_factory.mktemp("pushed") / "my-model", THINGS)
    with blocking.connect(server.url, token=server.token) as repository:
        first = blocking.push(repository, folder, name=NAME, message=MESSAGE, symlinks=Symlinks.KEEP).record
        (folder / "config.json").write_bytes(b'{"changed": true}')
        second = blocking.push(repository, folder, name=NAME, message="Second version", symlinks=Symlinks.KEEP).record
        repository.set_label(NAME, "v1.0", revision="~1")
        repository.set_label(NAME, "dev", kind=LabelKind.BRANCH)
    return [first, second]


@pytest.fixture(scope="module")
def visitor(server: RunningServer) -> Visitor:
    """Somebody who may do everything."""
    return sign_in(server)


def visitor_with(server: RunningServer, token: str, scope: Scope, prefix: str = "") -> Visitor:
    """Somebody who has a new token."""
    given: dict[str, Any] = {"namespace": DEFAULT_NAMESPACE, "label": token, "scope": scope, "prefix": prefix}
    changed(server, lambda _, transaction: transaction.add_token(token_digest(token), **given))
    return sign_in(server, token)


def store(server: RunningServer, name: str, content: bytes) -> Record:
    """Store a file of one chunk."""
    with blocking.connect(server.url, token=server.token) as repository:
        path = server.root.parent / "stored"
        path.write_bytes(content)
        return blocking.push(repository, path, name=name).record


def opened(visitor: Visitor, path: str, **query: object) -> Page:
    """Open a page."""
    return read(visitor.get(f"{path}?{urlencode(query)}"))


def sent(visitor: Visitor, form: Form, **fields: object) -> Reply:
    """Send a form after some fields were changed."""
    assert "post" == form.method
    return visitor.post(form.action, {**form.fields, **fields})


def location(reply: Reply) -> tuple[str, dict[str, list[str]]]:
    """Where an answer sends the browser."""
    assert 303 == reply.status, reply.body
    parts = urlsplit(reply.headers["Location"])
    return parts.path, parse_qs(parts.query)


def test_an_empty_store_says_how_to_push(tmp_path: Path) -> None:
    """The command has the URL of this server. Who may not write sees no link to the upload."""
    with running_server(tmp_path / "root") as server:
        reply = sign_in(server).get("/ui/names")
        assert f"filestore push --url {server.url} FOLDER" in page_text(reply)
        assert "/ui/upload" == read(reply).links["upload a file in this browser"]
        reader = visitor_with(server, "reader", Scope.READ).get("/ui/names")
        assert f"filestore push --url {server.url} FOLDER" in page_text(reader)
        assert "/ui/upload" not in read(reader).links.values()
        prefixed = visitor_with(server, "prefixed", Scope.WRITE, "team/").get("/ui/names")
        assert f"filestore push --url {server.url} --name team/NAME.zip FOLDER" in page_text(prefixed)


@pytest.mark.usefixtures("versions")
def test_names_are_listed(server: RunningServer, visitor: Visitor) -> None:
    """With kind, size, number of versions, labels and what they add, as the report on disk usage says it."""
    page = opened(visitor, "/ui/names", q="MY-mod")
    header, row = page.rows
    assert ["Name", "Kind", "Size", "Stored", "Versions", "Tags and branches", "Adds to disk"] == header
    assert [NAME, "directory", "3.15 MB"] == row[:3]
    assert ["2", "dev v1.0"] == row[4:6]
    with blocking.connect(server.url, token=server.token) as repository:
        (usage,) = [usage for usage in repository.usage().names if usage.name == NAME]
    assert f'value="{usage.own_size}"' in visitor.get("/ui/names?q=my-model").body.decode()
    assert f"/ui/name?name={quote(NAME, safe='')}" == page.links[NAME]
    assert len(visitor.get("/ui/names").body) < 90_000


@pytest.mark.parametrize("order", ["name", "newest"])
def test_all_names_are_on_pages(rows_server: RunningServer, order: str) -> None:
    """Each of them once, in the order that was asked for, also where a name has more versions than others."""
    server, token = rows_server, f"of {order}"
    changed(server, lambda _, transaction: transaction.add_token(token_digest(token), namespace=f"many-{order}", label=""))
    names = [f"name-{number * 7 % MANY_NAMES:03}" for number in range(MANY_NAMES)]

    asyncio.run(add_rows(server, f"many-{order}", [*names, *["name-003"] * 300]))
    visitor = sign_in(server, token)
    found: list[str] = []
    following: str | None = f"/ui/names?order={order}"
    pages = 0
    while following:
        page = read(visitor.get(following))
        found += [row[0] for row in page.rows[1:]]
        following = page.links.get("Next page")
        pages += 1
    assert 3 == pages
    names.remove("name-003")
    assert (sorted([*names, "name-003"]) if order == "name" else ["name-003", *names[::-1]]) == found
    page = read(visitor.get(f"/ui/names?order={order}&q=-01"))
    assert 10 == len(page.rows) - 1
    assert "No name contains absent" in " ".join(page_text(visitor.get(f"/ui/names?order={order}&q=absent")).split())


def test_versions_are_listed(server: RunningServer, visitor: Visitor, versions: list[Record]) -> None:
    """As `filestore log` lists them: digits of the commit, labels, message; with what each one adds."""
    reply = visitor.get("/ui/name", name=NAME)
    page = read(reply)
    with blocking.connect(server.url, token=server.token) as repository:
        commits = repository.history(NAME)
        freed = [repository.freed_by([commit.file_id]).stored_size for commit in commits]
    header, newest, oldest = page.rows[:3]
    assert [commit.id[:10] for commit in commits] == [newest[0], oldest[0]]
    assert ["main dev", "v1.0"] == [newest[4], oldest[4]]
    assert "Second version" == newest[5]
    assert "<b>First</b> version<script>alert(1)</script>" == oldest[5]
    assert "Download TagRemove" == newest[-1]
    assert "Adds to disk" == header[3]
    assert all(f'value="{size}"' in reply.body.decode() for size in freed)
    compared = page.forms["/ui/compare"]
    assert {"old": versions[0].id, "new": versions[1].id} == compared.fields
    tagged = read(visitor.get(page.links["v1.0"]))
    assert [commits[1].id[:10]] == [row[0] for row in tagged.rows[1:2]]


def test_pipelines_that_need_a_version_are_named(server: RunningServer, visitor: Visitor) -> None:
    """On its page, among the versions, and before its removal."""
    record = store(server, "needed.bin", b"needed")

    async def used() -> None:
        index = await open_index(server.root / "index.sqlite")
        async with index.transaction() as transaction:
            await transaction.add_uses(DEFAULT_NAMESPACE, [Use(record.id, "pipeline_1", "<b>my pipeline")])
        await index.close()

    asyncio.run(used())
    urls = ("/ui/name?name=needed.bin", f"/ui/file?id={record.id}", f"/ui/remove?id={record.id}")
    pages = [visitor.get(url) for url in urls]
    assert all("<b>my pipeline" in page_text(page) for page in pages)
    form = read(pages[-1]).forms["/ui/remove"]
    assert "is needed by the pipeline &lt;b&gt;my pipeline" in sent(visitor, form).body.decode()
    assert ("/ui/names", {"done": ["removed"]}) == location(sent(visitor, form, force="yes"))


def walk(visitor: Visitor, path: str, *, size: int) -> Iterator[str]:
    """Follow the links to all next pages, none of which may be larger. Yield what begins each row.

    It reads hundreds of pages by their texts, since a parser takes ten times as long as the server.
    """
    following: str | None = path
    while following:
        body = visitor.get(following).body.decode()
        assert len(body) < size
        yield from re.findall(r'<th scope="row">(?:<[^>]*>)*([^<]+)', body)
        found = re.search(r'href="([^"]*)" rel="next"', body)
        following = None if found is None else unescape(found[1])


def test_ten_thousand_versions_are_on_pages(rows_server: RunningServer) -> None:
    """Each page is small. What they add is not measured before somebody asks."""
    server = rows_server
    asyncio.run(add_rows(server, OTHER_NAMESPACE, ["checkpoint"] * MANY_VERSIONS))
    visitor = sign_in(server, OTHER_TOKEN)
    found = list(walk(visitor, "/ui/name?name=checkpoint", size=90_000))
    assert MANY_VERSIONS == len(found) == len(set(found))
    reply = visitor.get("/ui/name?name=checkpoint")
    assert "10,000 versions" in page_text(reply)
    first = read(reply)
    assert "Adds to disk" not in first.rows[0]
    measured = visitor.get(first.links["Measure what each of these versions adds to the disk"])
    assert "What it adds to the disk could not be measured." in page_text(measured), "their manifests are not there"
    names = read(visitor.get("/ui/names"))
    assert "Adds to disk" not in names.rows[0]
    assert "10,000" == names.rows[1][4]
    measured = visitor.get(names.links["Measure what each name adds to the disk"])
    assert "Adds to disk" == read(measured).rows[0][-1]
    assert "Adds to disk" == read(visitor.get("/ui/names")).rows[0][-1], "the result is kept"


def test_a_file_of_a_directory_is_shown(visitor: Visitor, versions: list[Record]) -> None:
    """Folders lead to folders, files to files, and links to what they lead to. The model card is text."""
    record = versions[1]
    reply = visitor.get("/ui/file", id=record.id)
    text, page = page_text(reply), read(reply)
    assert all(fact in text for fact in (record.id, str(record.digest), record.path, "Newest version yes"))
    assert "# <b>A model</b> <script>alert(1)</script>" in text
    entries = {row[0]: row[1] for row in page.rows[1:]}
    assert ("folder", "file, executable") == (entries["weights"], entries["run.sh"])
    assert ("link to run.sh, executable", "link that leads nowhere") == (entries["now"], entries["nowhere"])
    assert f"/ui/compare?old={versions[0].id}&new={record.id}" == page.links["Compare with the version before"]
    assert f"/ui/chunks?id={record.id}" == page.links["Chunks"]
    folder = read(visitor.get(page.links["weights"]))
    assert f"/ui/tensors?id={record.id}&path=weights%2Fmodel.safetensors" == folder.links["Tensors of model.safetensors"]
    assert WEIGHTS == visitor.get(folder.links["Download model.safetensors"]).body
    weights = read(visitor.get(folder.links["model.safetensors"]))
    assert WEIGHTS == visitor.get(weights.links["Download"]).body
    assert b"#!/bin/sh\n" == visitor.get(read(visitor.get(page.links["now"])).links["Download"]).body
    assert "Compare with the version before" not in opened(visitor, "/ui/file", id=versions[0].id).links


def test_commands_of_a_page_work(server: RunningServer, visitor: Visitor, versions: list[Record], tmp_path: Path) -> None:
    """As they stand there, in a shell, with the token in the environment."""
    for path, written in (("", "my-model/run.sh"), ("awkward/a b.txt", "a b.txt"), ("awkward/größe.txt", "größe.txt")):
        page = visitor.get("/ui/file?" + urlencode({"id": versions[1].id, "path": path}))
        command = next(line for line in _commands(page) if line.startswith("filestore fetch "))
        program = f"{shlex.quote(sys.executable)} -m {command}"
        environ = {**os.environ, "FILESTORE_TOKEN": server.token, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(["sh", "-c", program], cwd=tmp_path, env=environ, check=True, capture_output=True)
        assert (tmp_path / written).exists()
    # What no reference can name has no command.
    assert [] == _commands(visitor.get("/ui/file?" + urlencode({"id": versions[1].id, "path": "awkward/new\nline"})))
    record = store(server, HOSTILE, b"hostile")
    curl = next(line for line in _commands(visitor.get("/ui/file", id=record.id)) if line.startswith("curl "))
    environ = {**os.environ, "FILESTORE_TOKEN": server.token}
    subprocess.run(["sh", "-c", curl], cwd=tmp_path, env=environ, check=True, capture_output=True)
    assert b"hostile" == (tmp_path / HOSTILE).read_bytes()


def _commands(reply: Reply) -> list[str]:
    return [unescape(part.partition("</code>")[0]) for part in reply.body.decode().split('"><code>')[1:]]


def test_fifty_thousand_files_are_on_pages(server: RunningServer, visitor: Visitor, tmp_path: Path) -> None:
    """Each page of a folder is small."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(MANY_FILES):
            archive.writestr(f"deep/folder/{number:05}.txt", b"")
    record = push_zip(server, tmp_path / "archive.zip", buffer.getvalue(), "many")
    page = opened(visitor, "/ui/file", id=record.id)
    assert ["deep"] == [row[0] for row in page.rows[1:]]
    url = "/ui/file?" + urlencode({"id": record.id, "path": "deep/folder"})
    assert PAGE_COUNT == len(read(visitor.get(url)).rows) - 1
    found = list(walk(visitor, url, size=150_000))
    assert [f"{number:05}.txt" for number in range(MANY_FILES)] == found


def test_a_directory_that_cannot_be_listed_can_be_downloaded(server: RunningServer, visitor: Visitor, tmp_path: Path) -> None:
    """The page has everything else."""
    record = push_zip(server, tmp_path / "archive.zip", b"not a zip file", "broken")
    reply = visitor.get("/ui/file", id=record.id)
    assert "The files of this directory cannot be listed." in page_text(reply)
    assert b"not a zip file" == visitor.get(read(reply).links["Download as a zip file"]).body


@pytest.mark.parametrize("path", [*(f"awkward/{name}" for name in AWKWARD_NAMES), "page.html"])
def test_content_is_only_saved(visitor: Visitor, versions: list[Record], path: str) -> None:
    """Whatever it is called and has. Its name is that of the file."""
    query = urlencode({"id": versions[1].id, "path": path})
    reply = visitor.get(f"/ui/content?{query}")
    content = THINGS[path]
    assert (200, content) == (reply.status, reply.body)
    _check_saved(reply, path.rpartition("/")[2])
    assert page_text(visitor.get(f"/ui/file?{query}"))


def _check_saved(reply: Reply, name: str) -> None:
    head = reply.headers
    assert ("application/octet-stream", "nosniff") == (head["Content-Type"], head["X-Content-Type-Options"])
    assert head["Content-Security-Policy"].startswith("sandbox;")
    assert "no-cache" in head["Cache-Control"]
    disposition = head["Content-Disposition"]
    assert disposition.startswith("attachment; ")
    plain = disposition == f'attachment; filename="{name}"'
    assert plain or disposition.endswith(f"filename*=UTF-8''{quote(name, safe='')}")


@pytest.mark.parametrize("path", ["", "weights/model.safetensors", "deflated"])
def test_a_download_is_continued(
    server: RunningServer, visitor: Visitor, versions: list[Record], tmp_path: Path, path: str
) -> None:
    """By ranges, with the tag of the content. HEAD says its size, and what has not changed is not sent again."""
    record, content = versions[1], WEIGHTS
    if path == "deflated":
        buffer, content = io.BytesIO(), prose(2, 400_000)
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path, content)
        record = push_zip(server, tmp_path / "archive.zip", buffer.getvalue(), "deflated")
    url = "/ui/content?" + urlencode({"id": record.id, "path": path})

    def ask(method: str = "GET", **headers: str) -> Reply:
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        return server.ask(method, url, headers=visitor.headers | sent, token=None)

    whole = ask()
    assert 200 == whole.status
    if path:
        assert content == whole.body
    else:
        with zipfile.ZipFile(io.BytesIO(whole.body)) as archive:
            assert WEIGHTS == archive.read("weights/model.safetensors")
        _check_saved(whole, "my-model.zip")
    content, tag = whole.body, whole.headers["ETag"]
    head = ask("HEAD")
    assert (200, b"", str(len(content)), tag) == (head.status, head.body, head.headers["Content-Length"], head.headers["ETag"])
    part = ask(Range="bytes=1000-", If_Range=tag)
    assert (206, content[1000:]) == (part.status, part.body)
    assert f"bytes 1000-{len(content) - 1}/{len(content)}" == part.headers["Content-Range"]
    _check_saved(part, path.rpartition("/")[2] or "my-model.zip")
    assert (200, content) == ((other := ask(Range="bytes=1000-", If_Range='"another"')).status, other.body)
    assert 416 == ask(Range=f"bytes={len(content)}-").status
    kept = ask(If_None_Match=tag)
    assert (304, b"") == (kept.status, kept.body)
    assert kept.headers["Content-Security-Policy"].startswith("sandbox;")


@pytest.mark.parametrize(
    "path", ["weights", "absent", "../root", "/etc/passwd", "weights/../config.json", "nowhere", "a\0b", "x" * 5000]
)
def test_what_a_directory_does_not_have_is_not_found(visitor: Visitor, versions: list[Record], path: str) -> None:
    """Also a folder, which has no content of its own."""
    reply = visitor.get("/ui/content?" + urlencode({"id": versions[1].id, "path": path}))
    read(reply, 404)


def test_hostile_names_do_no_harm(server: RunningServer, visitor: Visitor, versions: list[Record]) -> None:
    """They are text on every page. `read` fails for an element or an attribute that could run."""
    record = store(server, HOSTILE, b"hostile")
    store(server, HOSTILE, b"hostile again")
    pages = [
        visitor.get("/ui/names?q=%3Cb%3E"),
        visitor.get("/ui/names?" + urlencode({"q": HOSTILE[:40], "order": "newest"})),
        visitor.get("/ui/name?" + urlencode({"name": HOSTILE})),
        visitor.get(f"/ui/file?id={record.id}"),
        visitor.get(f"/ui/remove?id={record.id}"),
        visitor.get("/ui/label?" + urlencode({"name": HOSTILE})),
        visitor.get("/ui/file?" + urlencode({"id": versions[0].id, "path": "awkward"})),
    ]
    for page in pages:
        read(page)
        assert "<img src=x onerror=alert(1)>" in page_text(page)
    for query in ({"name": HOSTILE, "revision": "<b>"}, {"name": f"{HOSTILE}<script>"}):
        reply = visitor.get("/ui/name?" + urlencode(query))
        read(reply, 404)
        assert "onerror=alert(1)" in page_text(reply)
    found = read(visitor.get("/ui/file?id=%3Cscript%3Ealert(1)%3C/script%3E"), 404)
    assert found.forms
    download = visitor.get("/ui/content", id=record.id)
    _check_saved(download, HOSTILE)
    assert b"hostile" == download.body


def test_a_scope_decides_what_is_shown(server: RunningServer, versions: list[Record]) -> None:
    """And what is permitted, if somebody sends a form all the same."""
    record = versions[0]
    removals = {f"/ui/remove?id={record.id}", "/ui/unlabel?name=team%2Fmy-model&label=v1.0"}
    forms: dict[str, dict[str, object]] = {
        "/ui/label": {"name": NAME, "revision": "~1", "label": "mine", "kind": "tag"},
        "/ui/link": {"id": record.id, "seconds": "3600", "nonce": "0" * 32},
        "/ui/unlabel": {"name": NAME, "label": "v1.0"},
        "/ui/remove": {"id": record.id, "updated_at": record.updated_at, "force": "yes"},
    }
    for scope, shown, refused in (
        (Scope.READ, set[str](), ["/ui/label", "/ui/link", "/ui/unlabel", "/ui/remove"]),
        (Scope.WRITE, {"/ui/link"}, ["/ui/unlabel", "/ui/remove"]),
        (Scope.DELETE, {"/ui/link"}, []),
    ):
        visitor = visitor_with(server, f"scope {scope}", scope)
        pages = [opened(visitor, "/ui/names"), opened(visitor, "/ui/name", name=NAME), opened(visitor, "/ui/file", id=record.id)]
        posted = {action for page in pages for action, form in page.forms.items() if form.method == "post"}
        assert {"/ui/logout", *shown} == posted, scope
        urls = {url for page in pages for url in page.links.values()}
        assert (scope >= Scope.DELETE) is (removals <= urls)
        assert (scope >= Scope.DELETE) is any(url.startswith(("/ui/remove", "/ui/unlabel")) for url in urls)
        assert (scope >= Scope.WRITE) is any(url.startswith("/ui/label") for url in urls)
        for action in refused:
            reply = visitor.post(action, forms[action])
            assert 403 == reply.status, (scope, action)
            assert "scope" in page_text(reply)
        for url in removals:
            assert (403 if scope < Scope.DELETE else 200) == visitor.get(url).status
    assert 200 == visitor.get("/ui/file", id=record.id).status


def test_a_prefix_hides_all_other_names(server: RunningServer, versions: list[Record]) -> None:
    """They are not listed, found or downloaded."""
    store(server, "logs-1", b"a log")
    visitor = visitor_with(server, "prefixed", Scope.ADMIN, "logs-")
    for order in ("name", "newest"):
        page = opened(visitor, "/ui/names", order=order)
        assert ["logs-1"] == [row[0] for row in page.rows[1:]]
    assert 404 == visitor.get("/ui/name", name=NAME).status
    for path in ("file", "content", "remove"):
        assert 404 == visitor.get(f"/ui/{path}?id={versions[0].id}").status
    reply = visitor.post("/ui/remove", {"id": versions[0].id, "updated_at": versions[0].updated_at, "force": "yes"})
    assert 404 == reply.status
    assert 404 == visitor.post("/ui/link", {"id": versions[0].id, "seconds": "3600", "nonce": "1" * 32}).status


def test_a_tag_is_set_moved_and_removed(server: RunningServer, visitor: Visitor) -> None:
    """What is wrong with it is told beside the field. Only who may remove something may move a tag."""
    name = "tagged.bin"
    for content in (b"one", b"two"):
        store(server, name, content)
    page = opened(visitor, "/ui/name", name=name)
    newest, oldest = (row[0] for row in page.rows[1:3])
    form = opened_at(visitor, page.links[f"Tag {oldest}"]).forms["/ui/label"]
    assert ("/ui/name", {"name": [name], "done": ["labelled"]}) == location(sent(visitor, form, label=" v1 "))
    listed = opened(visitor, "/ui/name", name=name)
    assert ["main", "v1"] == [row[4] for row in listed.rows[1:3]]
    again = opened_at(visitor, page.links[f"Tag {newest}"]).forms["/ui/label"]
    refused = sent(visitor, again, label="v1")
    assert 409 == refused.status
    field = next(given for tag, given in read(refused, 409).elements if tag == "input" and given.get("id") == "label")
    assert ("v1", "true", "label-hint label-problem") == (field["value"], field["aria-invalid"], field["aria-describedby"])
    assert f"The commit {oldest} has this tag or branch already." in page_text(refused)
    for text in ("", "a b", "main", "../x", "0123456789", "<b>"):
        reply = sent(visitor, again, label=text)
        assert "aria-invalid" in reply.body.decode()
        read(reply, 400)
    writer = visitor_with(server, "writer of tags", Scope.WRITE)
    assert "move" not in [given.get("id") for _, given in read(sent(writer, again, label="v1"), 409).elements]
    assert 403 == sent(writer, again, label="v1", move="yes").status
    assert 303 == sent(visitor, again, label="v1", move="yes").status
    assert 303 == sent(visitor, again, label="work", kind="branch").status
    listed = opened(visitor, "/ui/name", name=name)
    assert ["main v1 work", ""] == [row[4] for row in listed.rows[1:3]]
    asked = opened_at(visitor, listed.links["Remove the tag v1"]).forms["/ui/unlabel"]
    # Somebody moves it before the answer.
    assert 303 == sent(visitor, opened_at(visitor, page.links[f"Tag {oldest}"]).forms["/ui/label"], label="v1", move="yes").status
    moved = sent(visitor, asked)
    assert (409, True) == (moved.status, "It was moved to another commit" in page_text(moved))
    asked = read(moved, 409).forms["/ui/unlabel"]
    assert ("/ui/name", {"name": [name], "done": ["unlabelled"]}) == location(sent(visitor, asked))
    assert 404 == sent(visitor, asked).status
    assert "The tag or branch was removed." in page_text(visitor.get(f"/ui/name?name={name}&done=unlabelled"))


def opened_at(visitor: Visitor, url: str) -> Page:
    """Follow a link."""
    return read(visitor.get(url))


def test_a_removal_asks_first(server: RunningServer, visitor: Visitor) -> None:
    """It says what goes and what that frees. The version that the form was made for is removed, and no other."""
    name = "removed.bin"
    first, second = (store(server, name, octets(seed, 10_000)) for seed in (11, 12))
    page = visitor.get(opened(visitor, "/ui/file", id=second.id).links["Remove this version"])
    with blocking.connect(server.url, token=server.token) as repository:
        freed = repository.freed_by([second.id]).stored_size
    assert f'value="{freed}"' in page.body.decode()
    assert "It is what the name means now. After this, the name means the version that was stored" in page_text(page)
    form = read(page).forms["/ui/remove"]
    assert second.id == store(server, name, octets(12, 10_000)).id
    changed_since = sent(visitor, form)
    assert 404 == changed_since.status
    assert "it was stored again since" in page_text(changed_since)
    form = opened(visitor, "/ui/remove", id=second.id).forms["/ui/remove"]
    assert ("/ui/name", {"name": [name], "done": ["removed"]}) == location(sent(visitor, form))
    assert "The version was removed." in page_text(visitor.get(f"/ui/name?name={name}&done=removed"))
    last = visitor.get(f"/ui/remove?id={first.id}")
    assert "It is the last version." in page_text(last)
    assert ("/ui/names", {"done": ["removed"]}) == location(sent(visitor, read(last).forms["/ui/remove"]))
    assert 404 == visitor.get(f"/ui/name?name={name}").status


def test_of_two_removals_at_once_one_is_done(server: RunningServer, visitor: Visitor) -> None:
    """The other one says that there is nothing any more."""
    for number in range(5):
        record = store(server, "twice.bin", b"%d" % number)
        form = opened(visitor, "/ui/remove", id=record.id).forms["/ui/remove"]
        with ThreadPoolExecutor(2) as threads:
            statuses = [reply.status for reply in threads.map(sent, [visitor] * 2, [form] * 2)]
        assert [303, 404] == sorted(statuses)


def test_a_version_with_a_tag_is_removed_if_the_form_says_so(server: RunningServer, visitor: Visitor) -> None:
    """A tag that was set since the form was made keeps it."""
    record = store(server, "kept.bin", b"kept")
    form = opened(visitor, "/ui/remove", id=record.id).forms["/ui/remove"]
    with blocking.connect(server.url, token=server.token) as repository:
        repository.set_label("kept.bin", "v1")
    reply = sent(visitor, form)
    assert 409 == reply.status
    assert "has the label v1" in page_text(reply)
    page = opened(visitor, "/ui/remove", id=record.id)
    assert [True] == ["required" in given for tag, given in page.elements if given.get("id") == "force"]
    assert 303 == sent(visitor, page.forms["/ui/remove"], force="yes").status


def test_a_link_is_made(server: RunningServer, visitor: Visitor) -> None:
    """Its URL is shown once, and needs no token. A reload of the page makes no second one."""
    record = store(server, "linked.bin", b"linked")
    form = opened(visitor, "/ui/file", id=record.id).forms["/ui/link"]
    assert ["3600", "86400", "604800", "2592000"] == form.options["seconds"]
    reply = sent(visitor, form)
    (url,) = _commands(reply)
    with urlopen(url, timeout=60) as answer:  # an URL of the test's server
        assert b"linked" == answer.read()
    assert [url] == _commands(sent(visitor, form))
    links = [link for link in server.ask("GET", f"{API}/links").json["links"] if link["file_id"] == record.id]
    assert 1 == len(links)
    assert links[0]["id"] in page_text(reply)
    assert url not in visitor.get("/ui/file", id=record.id).body.decode()
    assert "no-store" == reply.headers["Cache-Control"]
    for fields in ({"seconds": "31536000000"}, {"seconds": "1"}, {"nonce": "short"}, {"id": ""}):
        assert 400 == sent(visitor, form, **fields).status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ui/name", 400),
        ("/ui/name?name=absent", 404),
        ("/ui/name?name=team/my-model&revision=absent", 404),
        ("/ui/name?name=team/my-model&before=x", 400),
        ("/ui/names?order=size", 400),
        ("/ui/names?order=newest&before=x", 400),
        (f"/ui/names?q={'x' * 300}", 400),
        ("/ui/file", 400),
        ("/ui/file?id=x", 404),
        ("/ui/content?id=x", 404),
        ("/ui/remove?id=x", 404),
        ("/ui/unlabel?name=team/my-model&label=absent", 404),
        ("/ui/label?name=absent", 404),
    ],
)
@pytest.mark.usefixtures("versions")
def test_what_is_wrong_is_told_as_a_page(visitor: Visitor, path: str, status: int) -> None:
    """In one sentence."""
    reply = visitor.get(path)
    read(reply, status)
    assert "This did not work" in page_text(reply)


@pytest.mark.parametrize("path", ["/ui/remove", "/ui/label", "/ui/unlabel", "/ui/link"])
def test_forms_without_fields_change_nothing(visitor: Visitor, path: str) -> None:
    """Nor do those of another site, or bodies that are no forms."""
    assert 400 == visitor.post(path).status
    assert 400 == visitor.post(path, {"id": "file_" + 32 * "0"}, headers={"Sec-Fetch-Site": "cross-site"}).status
    assert 413 == visitor.post(path, {"id": "x" * 100_000}).status
    headers = visitor.headers | {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}
    assert 400 == visitor.server.ask("POST", path, b"{}", headers=headers, token=None).status


def test_a_name_without_versions_on_main(server: RunningServer, visitor: Visitor) -> None:
    """The history of its first branch is shown."""
    name = "branches.bin"
    record = store(server, name, b"on main")
    with blocking.connect(server.url, token=server.token) as repository:
        repository.set_label(name, "work", kind=LabelKind.BRANCH)
        path = server.root.parent / "stored"
        path.write_bytes(b"on a branch")
        blocking.push(repository, path, name=name, branch="work")
    form = opened(visitor, "/ui/remove", id=record.id).forms["/ui/remove"]
    assert 303 == sent(visitor, form, force="yes").status
    reply = visitor.get(f"/ui/name?name={name}")
    assert "Shown is the history from work back." in page_text(reply)
    assert "work" == read(reply).rows[1][4]
    assert name in [row[0] for row in opened(visitor, "/ui/names", order="newest", q=name).rows]
