"""Uploads from a browser: dropped files and folders, cut by a reload or a lost connection, cancelled, and changed since."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, Route, expect

from filestore.format.zip.write import Entry, PlacedEntry, central_directory, local_header, local_header_size, sorted_entries
from filestore.http.wire import API
from tests.support.browser import Browsing, check_accessible
from tests.support.commands import Home, Server
from tests.support.generator import octets
from tests.support.server import eventually
from tests.support.trees import AWKWARD_NAMES, Folder, plant

PART = 8 << 20
"""The size of the parts of a small upload."""
PARTS = "/v3/pipeline_files/uploads/{upload_id}/parts/{number}"
UNKNOWN = r"status of 404 .*/files/find"
"""What Chromium writes to the console when the page asks for a version of a name that nothing is stored under."""
LEAVE = "^dialog: beforeunload"
"""The question whether to leave the page while something is uploaded."""
SURE = "^dialog: Cancel the upload of model.bin[?] The server removes what has arrived of it"
"""The question before an upload is cancelled."""
CUT = "ERR_CONNECTION_RESET|ERR_INTERNET_DISCONNECTED|ERR_FAILED"


class Host(NamedTuple):
    """A server, and a user of the command."""

    home: Home
    server: Server

    def page(self, browsing: Browsing, token: str | None = None) -> Page:
        """Open the page for uploads in a browser of its own."""
        browsing.allow(UNKNOWN)
        page = browsing.page(self.server.url, token or self.server.token)
        page.goto("/ui/upload")
        return page

    def get(self, path: str, *, accept: str = "application/json") -> bytes:
        """Ask the server."""
        headers = {"Authorization": f"Bearer {self.server.token}", "Accept": accept}
        with urlopen(Request(self.server.url + path, headers=headers)) as answer:
            return bytes(answer.read())

    def record(self, name: str) -> Any:
        """Return the newest record of a name."""
        return json.loads(self.get(f"{API}/files/find?name={quote(name)}"))

    def received(self) -> int:
        """Return how many bytes of parts the server has received so far."""
        found = re.search(
            rf'^filestore_http_received_bytes_total\{{route="{re.escape(PARTS)}"\}} (\S+)$',
            self.get("/metrics").decode(),
            re.MULTILINE,
        )
        return int(float(found[1])) if found else 0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A server that has nothing."""
    (tmp_path / "home").mkdir()
    home = Home(tmp_path / "home")
    with home.server(root=tmp_path / "store") as server:
        yield Host(home, server)


def drop(page: Page, *paths: Path) -> None:
    """Drop files and folders of this machine on a page, as a user does with the mouse."""
    box = page.locator("#drop").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": data})
    session.detach()


def upload(page: Page, name: str) -> None:
    """Press the button that begins an upload."""
    page.get_by_role("button", name=f"Upload: {name}", exact=True).click()


def expect_stored(page: Page, name: str) -> None:
    """Wait until the page links to the stored file."""
    expect(page.get_by_role("link", name=f"Show {name}", exact=True)).to_be_visible()


def expect_received(host: Host, size: int) -> None:
    """Wait until the server has counted these bytes of parts. It never counts less than before."""
    eventually(lambda: host.received() == size, host.received)


def hold(page: Page, numbers: range) -> list[Route]:
    """Keep requests that send parts of these numbers from the server. They are in the list that is returned."""
    held: list[Route] = []

    def keep(route: Route) -> None:
        if route.request.method == "PUT":
            held.append(route)
        else:
            route.fallback()

    page.route(re.compile(f"/parts/({'|'.join(map(str, numbers))})$"), keep)
    return held


def wait_for_requests(page: Page, reached: Callable[[], bool], said: Callable[[], object]) -> None:
    """Wait, while Playwright tells this process about requests, which it does only while it is called."""
    eventually(lambda: page.evaluate("true") and reached(), said)


def file_of(path: Path, size: int, *, seed: int = 1) -> Path:
    """Write a file of random bytes."""
    path.write_bytes(octets(seed, size))
    return path


def test_large_file_goes_on_after_a_reload(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """A file of 300 MB whose upload a reload cuts at the half is not sent from its start once more."""
    size = 300_000_000
    path = file_of(tmp_path / "model.bin", size)
    page = host.page(browsing)
    browsing.allow(LEAVE)
    half = size // PART // 2
    held = hold(page, range(half + 1, 1000))
    drop(page, path)
    upload(page, "model.bin")
    wait_for_requests(page, lambda: len(held) == 4 and host.received() == half * PART, host.received)

    page.reload()
    page.unroute_all()
    expect(page.get_by_role("heading", name="Unfinished uploads")).to_be_visible()
    drop(page, path)
    page.get_by_role("button", name="Go on: model.bin", exact=True).click()
    expect_stored(page, "model.bin")

    expect_received(host, size)
    assert size - half * PART < 0.6 * size
    assert host.record("model.bin")["digest"] == host.home.result("push", path, environ=host.server.environ)["digest"]
    expect(page.get_by_role("heading", name="Unfinished uploads")).to_be_hidden()
    page.reload()
    expect(page.get_by_role("heading", name="Unfinished uploads")).to_be_hidden()


def test_folder_is_what_a_push_of_it_is(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """Its digest is the same, whatever its names are, with empty files, and with empty folders where it is dropped."""
    tree: dict[str, Any] = {f"names/{name}": octets(number, 100) for number, name in enumerate(AWKWARD_NAMES)}
    tree |= {"empty.bin": b"", "void": Folder(), "sub/void/inner": Folder(), "large.bin": octets(7, 2 * PART + 1)}
    tree |= {f"many/{number}": b"%d" % number for number in range(250)}
    folder = plant(tmp_path / "tree", tree)
    page = host.page(browsing)
    drop(page, folder)
    upload(page, "tree")
    expect_stored(page, "tree.zip")
    record = host.record("tree.zip")

    pushed = host.home.result("push", folder, environ=host.server.environ)

    assert (record["digest"], record["kind"]) == (pushed["digest"], "directory")


def test_folder_is_chosen_with_the_keyboard(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """The button for folders makes the same of one without empty folders."""
    folder = plant(tmp_path / "tree", {"a/b.bin": octets(1, 1000), "a.bin": b"x"})
    page = host.page(browsing)
    page.get_by_label("Choose a folder").set_input_files(folder)
    button = page.get_by_role("button", name="Upload: tree", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Show tree.zip")).to_be_focused()
    record = host.record("tree.zip")

    assert record["digest"] == host.home.result("push", folder, environ=host.server.environ)["digest"]


@pytest.mark.parametrize("content", [{}, {"empty.bin": b""}])
def test_empty_things_are_stored(host: Host, browsing: Browsing, tmp_path: Path, content: dict[str, bytes]) -> None:
    """An empty folder, one with an empty file, and an empty file by itself."""
    folder, path = plant(tmp_path / "tree", content), file_of(tmp_path / "empty.bin", 0)
    page = host.page(browsing)
    drop(page, folder, path)
    page.get_by_role("button", name="Upload all").click()
    expect_stored(page, "tree.zip")
    expect_stored(page, "empty.bin")
    record = host.record("tree.zip")

    assert record["digest"] == host.home.result("push", folder, environ=host.server.environ)["digest"]
    assert 0 == host.record("empty.bin")["size"]


def test_changed_version_sends_what_changed(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """Of a version that differs in one place one part is sent, and of an equal one nothing."""
    content = bytearray(octets(1, 6 * PART + 5))
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    page = host.page(browsing)
    browsing.allow(r"status of 409 .*/copy")
    for sent in (len(content), 0, PART):
        before = host.received()
        if sent == PART:
            content[2 * PART] ^= 1
            path.write_bytes(content)
        page.goto("/ui/upload")
        page.get_by_label("Choose files").set_input_files(path)
        upload(page, "model.bin")
        expect_stored(page, "model.bin")
        if not sent:
            expect(page.get_by_text("Nothing had to be sent")).to_be_visible()

        expect_received(host, before + sent)
    assert host.record("model.bin")["digest"] == host.home.result("push", path, environ=host.server.environ)["digest"]


def test_lost_connection_is_waited_for(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """While the browser has no connection the page says so, and then it goes on by itself, with what was missing."""
    size = 6 * PART
    path = file_of(tmp_path / "model.bin", size)
    page = host.page(browsing)
    browsing.allow(CUT)
    held = hold(page, range(4, 1000))
    drop(page, path)
    upload(page, "model.bin")
    wait_for_requests(page, lambda: len(held) == 3 and host.received() == 3 * PART, host.received)

    page.context.set_offline(True)
    for route in held:
        route.abort("connectionreset")
    page.unroute_all()
    expect(page.get_by_text("The server does not answer, or asks to wait.")).to_be_visible()
    page.context.set_offline(False)
    expect_stored(page, "model.bin")

    expect_received(host, size)


def test_upload_is_tried_again_by_hand(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """After some minutes without an answer the user decides, and what has arrived is not sent once more."""
    path = file_of(tmp_path / "model.bin", 3 * PART)
    page = host.page(browsing)
    browsing.allow(CUT)
    page.clock.install()
    page.reload()
    page.route(re.compile("/parts/3$"), lambda route: route.abort("connectionreset"))
    drop(page, path)
    upload(page, "model.bin")
    wait_for_requests(page, lambda: host.received() == 2 * PART, host.received)
    again = page.get_by_role("button", name="Try again: model.bin", exact=True)

    def is_over() -> bool:
        page.clock.fast_forward(30_000)
        return again.is_visible()

    eventually(is_over)
    expect(page.locator(".item .problem")).to_have_text("The server cannot be reached.")
    page.unroute_all()
    again.click()
    expect_stored(page, "model.bin")

    expect_received(host, 3 * PART)


def test_upload_goes_on_after_another_sign_in(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """The page says that its session has ended, and not what a program with a token is told. What has arrived is kept."""
    made = host.home.result("token", "new", "--root", host.server.root, "--scope", "write")
    path = file_of(tmp_path / "model.bin", 3 * PART)
    page = host.page(browsing, str(made["token"]))
    browsing.allow("status of 401")
    held = hold(page, range(3, 4))
    drop(page, path)
    upload(page, "model.bin")
    wait_for_requests(page, lambda: len(held) == 1 and host.received() == 2 * PART, host.received)
    host.home.run("token", "rm", "--root", host.server.root, str(made["id"]))
    eventually(lambda: page.evaluate("async () => (await fetch('/ui/upload', {redirect: 'manual'})).type") == "opaqueredirect")
    held[0].continue_()
    page.unroute_all()
    expect(page.locator(".item .problem")).to_contain_text("Your session has ended. Sign in again in another tab")
    check_accessible(page)
    other = page.context.new_page()
    other.goto(host.server.url)
    other.get_by_label("Token").fill(host.server.token)
    other.get_by_role("button", name="Sign in").click()
    expect(other.get_by_role("heading", name="Stored names")).to_be_visible()
    page.get_by_role("button", name="Try again: model.bin", exact=True).click()
    expect_stored(page, "model.bin")

    assert 3 * PART == host.record("model.bin")["size"]


def test_cancelled_upload_leaves_nothing(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """What has arrived is removed at the server, and the page does not offer it again."""
    path = file_of(tmp_path / "model.bin", 4 * PART)
    page = host.page(browsing)
    browsing.allow("status of 404 .*/parts")
    browsing.allow(SURE)
    held = hold(page, range(2, 1000))
    drop(page, path)
    with page.expect_response(re.compile("initiate")) as begun:
        upload(page, "model.bin")
    upload_id = begun.value.json()["upload_id"]
    wait_for_requests(page, lambda: len(held) == 3, lambda: len(held))
    check_accessible(page)

    page.get_by_role("button", name="Cancel: model.bin", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="was cancelled")).to_be_attached()
    page.reload()

    expect(page.get_by_role("heading", name="Unfinished uploads")).to_be_hidden()
    assert 404 == page.evaluate("async (id) => (await fetch(`/v3/pipeline_files/uploads/${id}/parts`)).status", upload_id)


def test_unfinished_upload_is_cancelled_after_a_reload(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """Also without the file."""
    path = file_of(tmp_path / "model.bin", 4 * PART)
    page = host.page(browsing)
    browsing.allow(LEAVE)
    browsing.allow(SURE)
    held = hold(page, range(2, 1000))
    drop(page, path)
    upload(page, "model.bin")
    wait_for_requests(page, lambda: len(held) == 3, lambda: len(held))
    page.reload()
    check_accessible(page)

    page.get_by_role("button", name="Cancel: model.bin", exact=True).click()
    expect(page.get_by_role("heading", name="Unfinished uploads")).to_be_hidden()

    assert [] == page.evaluate("Object.keys(localStorage)")


def test_refused_name_can_be_changed(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """The page shows what the server says, and the same field takes another name."""
    path = file_of(tmp_path / "model.bin", 1000)
    page = host.page(browsing)
    browsing.allow("status of 400")
    page.get_by_label("Choose files").set_input_files(path)
    field = page.get_by_label("Store it under the name")
    field.fill("model:bin")
    upload(page, "model.bin")
    problem = page.locator(".item .problem")
    expect(problem).to_contain_text("choose another name")
    assert re.match(r"[A-Z].*\.\Z", problem.inner_text(), re.DOTALL)
    check_accessible(page)
    field.fill("other.bin")
    field.press("Enter")
    expect_stored(page, "other.bin")

    assert 1000 == host.record("other.bin")["size"]


def test_name_that_no_directory_can_have_is_refused(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """As a push does, and before anything is sent."""
    folder = plant(tmp_path / "tree", {"c:": b"x", "fine": b"y"})
    page = host.page(browsing)
    drop(page, folder)

    expect(page.locator(".item .problem")).to_contain_text("“c:”: it begins with a drive letter")
    expect(page.get_by_role("button", name="Upload: tree")).to_be_hidden()
    assert "drive letter" in host.home.failure("push", folder, environ=host.server.environ)


def test_changed_file_is_not_stored(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """A file that is another one than it was when it was dropped is refused with a sentence."""
    path = file_of(tmp_path / "model.bin", 1000)
    page = host.page(browsing)
    drop(page, path)
    expect(page.get_by_role("button", name="Upload: model.bin")).to_be_visible()
    file_of(path, 2000, seed=2)
    upload(page, "model.bin")

    expect(page.locator(".item .problem")).to_contain_text("changed or was removed while it was read")
    expect_received(host, 0)


def test_names_and_memory_are_only_text(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """What a name or the storage of the browser has is never read as HTML, and what is not an upload is removed."""
    name = "<img src=x onerror=alert(1)>"
    entry: dict[str, object] = {
        "namespace": "default",
        "kind": "file",
        "source": name,
        "identity": "1-1",
        "name": f"'\"{name}",
        "fileId": "file_1",
    }
    entry |= {"uploadId": "../../../ui/names?", "size": 1, "partSize": 1, "begun": 1}
    broken = ["{", "null", "[]", json.dumps(entry | {"size": "1"}), json.dumps(entry | {"partSize": 0})]
    page = host.page(browsing)
    browsing.allow("status of 404 .*/uploads/")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        "texts => texts.forEach((text, place) => localStorage.setItem(`filestore-upload:${place}`, text))",
        [*broken, json.dumps(entry)],
    )
    page.reload()
    drop(page, file_of(tmp_path / name, 10))

    expect(page.get_by_role("heading", name=name, exact=True)).to_have_count(2)
    expect(page.get_by_text(f"to be stored as '\"{name}")).to_be_visible()
    assert ["filestore-upload:5"] == page.evaluate("Object.keys(localStorage)")
    in_one_part = "/uploads/..%2F..%2F..%2Fui%2Fnames%3F/parts"
    wait_for_requests(page, lambda: any(url.endswith(in_one_part) for url in asked), lambda: asked)


def test_prefix_of_the_token_is_suggested(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """The names that a token with a prefix may write begin with it."""
    made = host.home.result("token", "new", "--root", host.server.root, "--scope", "write", "--prefix", "team-")
    page = host.page(browsing, str(made["token"]))
    page.get_by_label("Choose files").set_input_files([file_of(tmp_path / "a.bin", 10), file_of(tmp_path / "team-b.bin", 10)])

    expect(page.get_by_label("Store it under the name").first).to_have_value("team-a.bin")
    expect(page.get_by_label("Store it under the name").last).to_have_value("team-b.bin")
    page.get_by_role("button", name="Upload all").click()
    expect_stored(page, "team-a.bin")
    expect_stored(page, "team-b.bin")


def test_prefix_with_an_owner_is_suggested(host: Host, browsing: Browsing, tmp_path: Path) -> None:
    """What is before the slash is the owner. An upload is resumed under its whole name, and other owners are refused."""
    made = host.home.result("token", "new", "--root", host.server.root, "--scope", "write", "--prefix", "team/")
    browsing.allow("status of 40[03] .*/initiate-multipart-upload")
    browsing.allow(LEAVE)
    path = file_of(tmp_path / "a.bin", PART + 1000)
    page = host.page(browsing, str(made["token"]))
    held = hold(page, range(2, 3))
    drop(page, path)
    field = page.get_by_label("Store it under the name")
    expect(field).to_have_value("team/a.bin")
    for name, problem in (("other/a.bin", "the name 'other/a.bin'"), ("team/b/a.bin", "after an owner, a name has")):
        field.fill(name)
        field.press("Enter")
        expect(page.locator(".item .problem")).to_contain_text(problem)
    field.fill("team/a.bin")
    field.press("Enter")
    wait_for_requests(page, lambda: len(held) == 1 and host.received() == PART, host.received)
    page.reload()
    expect(page.get_by_text("to be stored as team/a.bin")).to_be_visible()
    page.unroute_all()
    drop(page, path)
    page.get_by_role("button", name="Go on: a.bin", exact=True).click()
    expect_stored(page, "team/a.bin")

    record = host.record("team/a.bin")
    assert ("team", "a.bin", PART + 1000) == (record["owner"], record["name"], record["size"])


_SCRIPT_OF_ZIP = """async (sizes) => {
    const found = sizes.map(([path, size]) => ({
        path, file: size === null ? null : {size, slice: (start, end) => ({size: end - start})},
    }));
    const layout = new ZipLayout(found);
    layout.crcs.forEach((_, place) => (layout.crcs[place] = place * 65537));
    const sum = async (piece) => {
        const digest = await crypto.subtle.digest("SHA-256", await new Blob([piece.part]).arrayBuffer());
        return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    };
    const headers = [];
    for (let place = 0; place < Math.min(layout.entries.length, 9); place += 1) {
        const start = layout.offsets[place];
        headers.push(await sum(layout.pieces(start, start + 30 + layout.entries[place].nameBytes.length +
            (layout.entries[place].size >= 0xffffffff ? 20 : 0))[0]));
    }
    const tail = await sum(layout.pieces(layout.contentEnd, layout.size)[0]);
    return {names: layout.entries.map((entry) => entry.path), headers, tail, size: layout.size};
}"""


@pytest.mark.parametrize(
    "sizes",
    [
        {"a": (1 << 32) - 2, "b": (1 << 32) - 1, "c": 5 << 30, "d": None, "e": 1},
        {f"{number}": 0 for number in range(0xFFFE)},
        {f"{number}": 0 for number in range(0xFFFF)},
        {"\N{FULLWIDTH LATIN SMALL LETTER A}": 1, "\N{PILE OF POO}": 2, "z": 3},
        {},
    ],
    ids=["large", "65534", "65535", "order", "empty"],
)
def test_large_directory_has_the_zip_of_a_push(host: Host, browsing: Browsing, sizes: dict[str, int | None]) -> None:
    """All bytes that are not content are those of the library, also above 4 GiB and with many entries."""
    page = browsing.page(host.server.url)
    page.goto("/")
    page.add_script_tag(url="/ui/static/upload-zip.js")
    made = page.evaluate(_SCRIPT_OF_ZIP, list(sizes.items()))
    entries = sorted_entries(Entry(name, size or 0, is_folder=size is None) for name, size in sizes.items())
    offset, placed = 0, []
    for place, entry in enumerate(entries):
        placed.append(PlacedEntry(entry, place * 65537, offset))
        offset += local_header_size(len(entry.stored_name), entry.size) + entry.size
    tail = central_directory(placed, offset)

    assert [entry.name for entry in entries] == made["names"]
    assert [sha256(local_header(each.entry, each.crc)).hexdigest() for each in placed[:9]] == made["headers"]
    assert sha256(tail).hexdigest() == made["tail"]
    assert offset + len(tail) == made["size"]


def test_page_without_script_names_the_command(host: Host, browsing: Browsing) -> None:
    """Everything else of the pages works without it."""
    page = browsing.page(host.server.url, host.server.token, has_script=False)
    page.goto("/ui/upload")

    expect(page.get_by_text("filestore push FILE_OR_FOLDER")).to_be_visible()
    expect(page.get_by_label("Choose files")).to_be_hidden()


def test_page_is_only_for_those_who_may_write(host: Host, browsing: Browsing) -> None:
    """A token that reads gets neither the page nor a link to it."""
    made = host.home.result("token", "new", "--root", host.server.root, "--scope", "read")
    browsing.allow("status of 403 .*/ui/upload")
    page = browsing.page(host.server.url, str(made["token"]))
    answer = page.goto("/ui/upload")

    assert answer is not None
    assert 403 == answer.status
    expect(page.get_by_role("link", name="Upload")).to_have_count(0)
