from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import matplotlib as mpl
import pytest
from matplotlib import font_manager

from filestore.system.metrics import Stage
from filestore_cli.bench import processes
from tests.support.commands import REPOSITORY, SCRIPTS, Home, Server
from tests.support.forwarding import running_forwarding
from tests.support.generator import octets
from tests.support.interrupted_bench import interrupted_bench
from tests.support.server import eventually

SIZE = 1 << 20
LIMITS = {"interpreter lock", "link", "disk", "other programs", "connections", "waiting", "python", *map(str, Stage)}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Where the command runs, with a folder to work in."""
    (tmp_path / "work").mkdir()
    return Home(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the user's own."""
    folder = tmp_path_factory.mktemp("served")
    with Home(folder).server(root=folder / "root") as server:
        yield server


def measured(home: Home, verb: str, *arguments: str | Path, environ: dict[str, str] | None = None, warns: bool = False) -> Any:
    """Return the result, and check that nothing is left in the folder."""
    found = home.result("bench", verb, "--folder", home.folder / "work", *arguments, environ=environ, warns=warns)
    assert [] == list((home.folder / "work").iterdir())
    return found


def sizes(side: Any) -> dict[str, int]:
    """Bytes of each stage that counts any."""
    return {name: stage["size"] for name, stage in side["stages"].items() if stage["size"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bf16", "fp32", "random", "text"])
def test_an_upload_is_counted_to_the_byte(home: Home, server: Server, kind: str) -> None:
    """Each stage has all of the content, or all of the frames, and none of it was there before."""
    arguments = ["--kind", kind, "--size", str(SIZE), "--server", server.url]
    (run,) = measured(home, "upload", *arguments, environ=server.environ)["runs"]
    assert (SIZE, 1, 0) == (run["size"], run["clients"], run["bytes_shared"])
    sent = run["bytes_sent"]
    assert {"read": SIZE, "cut": SIZE, "hash": SIZE, "encode": SIZE, "send": sent} == sizes(run["client"])
    taken = sizes(run["server"])
    assert SIZE == taken["verify"]
    # What a batch has beside its frames is its header; a manifest is written too.
    chunks = run["server"]["stages"]["verify"]["times"]
    assert sent + 36 * chunks + 4 == taken["receive"]
    assert sent < taken["write"] < sent + 40 * chunks + 1000
    # The chunks of a window are encoded together.
    assert 0 < run["client"]["stages"]["encode"]["times"] <= chunks
    assert 0 < run["server"]["stages"]["sync"]["times"] <= chunks


@pytest.mark.slow
def test_a_fetch_is_counted_to_the_byte(home: Home) -> None:
    """All clients together: each receives and verifies all of it."""
    found = measured(home, "fetch", "--size", str(SIZE), "--clients", "2")
    (run,) = found["runs"]
    assert (2 * SIZE, 2, 0) == (run["size"], run["clients"], run["bytes_shared"])
    received = run["bytes_received"]
    assert {"receive": received, "verify": 2 * SIZE, "write": 2 * SIZE} == sizes(run["client"])
    assert {"send": received} == sizes(run["server"])


@pytest.mark.slow
def test_a_server_of_its_own_is_reached_without_the_proxy(home: Home) -> None:
    """It is on loopback, and the proxy of the environment, here one that is not there, leads to other machines."""
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:1")
    (run,) = measured(home, "fetch", "--size", "64KiB", environ=proxies)["runs"]
    assert run["server"] is not None
    assert 64 << 10 == sizes(run["client"])["verify"]


@pytest.mark.slow
async def test_a_server_of_the_user_is_reached_through_the_proxy(home: Home, server: Server) -> None:
    """Clients, the status of the server and the removal of records all use the proxy."""
    async with running_forwarding() as proxy:
        proxies = {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"}
        # A name that only the proxy knows.
        url = f"http://models.invalid:{urlsplit(server.url).port}"
        asked = ["upload", "--size", "64KiB", "--server", url]
        # The token goes to another machine without encryption.
        environ = server.environ | proxies | {"FILESTORE_INSECURE": "1"}
        found = await asyncio.to_thread(measured, home, *asked, environ=environ, warns=True)
    assert found["runs"][0]["server"] is not None
    assert 1 == found["records_removed"]
    asked_of = {(line.split()[0], urlsplit(line.split()[1]).path.removeprefix("/native/v1")) for line, _ in proxy.asked}
    assert {("GET", "/repository"), ("GET", "/status"), ("POST", "/chunks")} <= asked_of
    assert "DELETE" in {method for method, _ in asked_of}


@pytest.mark.slow
def test_a_fetch_of_a_tree_unpacks_it(home: Home) -> None:
    """Every byte of its files is written."""
    (run,) = measured(home, "fetch", "--kind", "tree", "--size", str(SIZE))["runs"]
    assert run["size"] >= sizes(run["client"])["write"] >= SIZE


@pytest.mark.slow
def test_the_result_has_the_members_that_are_documented(home: Home) -> None:
    """With numbers that can be; and a picture is drawn of them."""
    picture = home.folder / "bench.png"
    # Made here, if it is not there yet: making a list of fonts takes a while, and matplotlib says so on standard error.
    assert font_manager.fontManager
    fonts = {"MPLCONFIGDIR": mpl.get_cachedir()}
    found = measured(home, "upload", "--size", "64KiB", "--clients", "1,2", "--plot", picture, environ=fonts)
    assert picture.read_bytes().startswith(PNG)
    documented = ["verb", "kind", "path", "server", "is_own_server", "codec", "connections", "workers", "folder", "machine"]
    assert [*documented, "ceilings", "runs", "records_removed"] == list(found)
    assert {"memory_copy", "blake3", "loopback", "disk_write_sync"} == set(found["ceilings"])
    assert all(rate > 1e6 for rate in found["ceilings"].values())
    assert ("upload", "bf16", None, True, "auto", 0) == tuple(
        found[key] for key in ("verb", "kind", "path", "is_own_server", "codec", "records_removed")
    )
    assert [(64 << 10, 1), (128 << 10, 2)] == [(run["size"], run["clients"]) for run in found["runs"]]
    for run in found["runs"]:
        assert run["rate"] == pytest.approx(run["size"] / run["seconds"])
        for side in (run["client"], run["server"]):
            assert 0 < sum(stage["cpu_seconds"] for stage in side["stages"].values()) < side["cpu_seconds"]
            assert side["peak_memory"] > 1 << 20
            assert 0 < side["busiest_lock_seconds"] <= side["lock_seconds"] <= side["cpu_seconds"] + 0.01
        assert run["cores_busy"] == pytest.approx((run["client"]["cpu_seconds"] + run["server"]["cpu_seconds"]) / run["seconds"])
        assert run["limited_by"] in LIMITS
        assert run["limited_by_reason"]


def stored(server: Server) -> set[Path]:
    """The frames and manifests that a server keeps."""
    return {path for name in ("chunks", "manifests") for path in (server.root / name).rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_server_of_the_user_is_left_as_it_was(home: Home, server: Server) -> None:
    """Only what the measurement pushed is removed, also if another record has the same content."""
    mine = home.folder / "mine.bin"
    mine.write_bytes(octets(1, 300_000))
    pushed = home.result("push", mine, environ=server.environ)
    before = stored(server)
    uploaded = measured(home, "upload", "--kind", mine, "--server", server.url, environ=server.environ)
    assert ("path", str(mine), 300_000, 0) == (
        uploaded["kind"],
        uploaded["path"],
        uploaded["runs"][0]["bytes_shared"],
        uploaded["runs"][0]["bytes_sent"],
    )
    assert 1 == uploaded["records_removed"]
    assert uploaded["ceilings"]["link_send"] > 1e5
    fetched = measured(home, "fetch", "--size", "64KiB", "--server", server.url, environ=server.environ)
    assert 1 == fetched["records_removed"]
    assert fetched["ceilings"]["link_receive"] > 1e5
    again = measured(home, "upload", "--size", "64KiB,1MiB", "--clients", "1,2", "--server", server.url, environ=server.environ)
    assert 6 == again["records_removed"]
    assert before == stored(server)
    assert [pushed["id"]] == [record["id"] for record in home.result("ls", environ=server.environ)["files"]]
    assert octets(1, 300_000) == mine.read_bytes()


@pytest.mark.slow
def test_what_cannot_be_removed_from_a_server_is_told(home: Home) -> None:
    """Another record has lost its manifest: the warning names that record, and what stays."""
    mine = home.folder / "mine.bin"
    mine.write_bytes(octets(2, 70_000))
    with home.server(root=home.folder / "root", complains=True) as server:
        pushed = home.result("push", mine, environ=server.environ)
        (manifest,) = (path for path in (server.root / "manifests").rglob("*") if path.is_file())
        manifest.unlink()
        done = home.run("bench", "upload", "--size", "64KiB", "--server", server.url, "--quiet", environ=server.environ)
        left = [record["name"] for record in home.result("ls", environ=server.environ)["files"]]
    assert 2 == len(left)
    assert left[0].startswith("filestore-bench-")
    assert (0, "0 records were removed from the server") == (done.returncode, done.stdout.splitlines()[-1].partition(",")[0])
    assert done.stderr.startswith(f"Warning: the records named {left[0]} may still be there, since the record {pushed['id']} ")
    assert f"its manifest {pushed['digest']} is missing" in done.stderr
    assert done.stderr.endswith("; `filestore rm` removes them.\n")


@pytest.mark.slow
async def test_an_interrupted_upload_leaves_no_record_on_a_server(home: Home, server: Server) -> None:
    """Other records stay, and a warning says that chunks stay too."""
    before = home.result("ls", environ=server.environ)["files"]
    work = home.folder / "work"
    done = await interrupted_bench(home, server, "upload", "--folder", str(work), "--quiet", stored=stored)
    assert (
        130,
        (
            f"Warning: chunks that were already sent to {done.url} stay there,"
            " because nothing removes chunks without a record yet.\nInterrupted.\n"
        ),
    ) == (
        done.status,
        done.errors,
    )
    assert before == home.result("ls", environ=server.environ)["files"]
    assert [] == list(work.iterdir())


@pytest.mark.slow
def test_a_tenant_is_not_told_what_the_server_does(home: Home, server: Server) -> None:
    """Its own side is measured all the same."""
    token = home.result("token", "new", "--namespace", "tenant", "--root", server.root)["token"]
    environ = {"FILESTORE_TOKEN": token}
    (run,) = measured(home, "upload", "--size", "64KiB", "--server", server.url, environ=environ)["runs"]
    assert run["server"] is None
    assert run["client"]["stages"]["encode"]["size"] == 64 << 10


@pytest.mark.slow
def test_a_person_sees_stages_ceilings_and_what_was_removed(home: Home, server: Server) -> None:
    """In lines."""
    done = home.run("bench", "upload", "--size", "64KiB", "--server", server.url, "--quiet", environ=server.environ)
    assert (0, "") == (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    begins = {"read", "cut", "hash", "encode", "send", "wait", "receive", "verify", "write", "sync", "commit"}
    assert begins <= {line.split(" ")[0] for line in lines}
    assert any(line.startswith("write to disk and sync") for line in lines)
    assert re.search(r"^the client +spent most of its time [a-z ]+ \(stage [a-z]+\)$", done.stdout, re.MULTILINE)
    assert re.search(r"^the server +spent most of its time [a-z ]+ \(stage [a-z]+\)$", done.stdout, re.MULTILINE)
    assert re.search(r"^processors +[0-9.]+ of [0-9]+ were busy with it here$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^lock +client [0-9.]+ s, server [0-9.]+ s; the busiest process at most [0-9]+% of the time$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^limited by +[a-zP ]+: .+$", done.stdout, re.MULTILINE)
    assert re.fullmatch(r"1 record was removed from the server, with all chunks that no other record needs\.", lines[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "bf17"], "'bf17' is not one of bf16, fp32, random, text, tree, and there is no file or folder of that name"),
        (["--kind", ""], "'' is not one of bf16, fp32, random, text, tree, and there is no file or folder of that name"),
        (["--kind", ".", "--size", "1MiB"], "--size is for content that is made; a file or folder of yours has its own"),
        (["--folder", "nowhere"], "there is no folder {home}/nowhere to work in; make it first, or give another --folder"),
        (["--plot", "a.gif"], "a.gif is not a name for a plot; give one that ends in .png, .svg, .pdf"),
        (["--plot", "none/a.png"], "there is no folder none for the plot; make it first"),
        (["--server", "/srv/models"], "'/srv/models' names no repository: a server's URL looks like http://HOST:PORT"),
        (["--server", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached: Connection refused; check"),
    ],
)
def test_bad_input_is_one_sentence(home: Home, arguments: list[str], said: str) -> None:
    """Said before anything is made or moved."""
    failure = home.failure("bench", "upload", "--folder", home.folder / "work", *arguments)
    assert failure.startswith(said.format(home=home.folder))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--size", "1"], ["--size", "1MiB,x"], ["--clients", "0"], ["--clients", "1,65"]])
def test_a_bad_number_is_wrong_usage(home: Home, arguments: list[str]) -> None:
    """With the option named."""
    done = home.run("bench", "fetch", *arguments)
    assert (2, "") == (done.returncode, done.stdout)
    assert arguments[0] in done.stderr


def test_what_does_not_fit_the_disk_is_not_begun(home: Home) -> None:
    """Both numbers are said."""
    failure = home.failure("bench", "upload", "--size", "100TiB", "--folder", home.folder / "work")
    assert "220 TB are written there; give another --folder, a smaller --size or fewer --clients" in failure


def test_a_stranger_is_told_before_anything_is_made(home: Home, server: Server) -> None:
    """The server's refusal of the token, in one sentence."""
    failure = home.failure("bench", "upload", "--server", server.url, environ={"FILESTORE_TOKEN": "a-stranger"})
    assert failure.startswith(f"{server.url} refused the token")


@contextmanager
def under_way(home: Home, sign: str) -> Iterator[subprocess.Popen[str]]:
    """An upload under way, far enough that `sign` is there; afterwards nothing is left of it."""
    work = home.folder / "work"
    # Content whose making is interrupted is so large that it is never done before that.
    size = "1GiB" if sign == MAKING else "128MiB"
    # Content may be sent before a busy machine comes to look for it, so the upload of such content does not end by itself.
    program = [SCRIPTS / "filestore"] if sign == MAKING else [sys.executable, "-m", "tests.support.endless_bench"]
    process = subprocess.Popen(
        [*program, "bench", "upload", "--size", size, "--folder", work, "--retry-seconds", "1", "--quiet"],
        env=home.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: any(work.glob(sign)))
        yield process
    finally:
        process.kill()
        process.communicate()
    assert [] == list(work.iterdir())


MAKING = "*/filestore-bench-*"
SENDING = "*/served/chunks/*"


@pytest.mark.slow
def test_an_interrupted_measurement_leaves_nothing(home: Home) -> None:
    """No file, and no process: those that it started end with it."""
    with under_way(home, MAKING) as process:
        started = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert 143 == process.wait(timeout=60)
    assert 2 == len(started)
    assert [] == [pid for pid in started if is_alive(pid)]


@pytest.mark.slow
def test_a_client_that_dies_ends_the_measurement(home: Home) -> None:
    """In one sentence."""
    with under_way(home, MAKING) as process:
        kill_the(process, b"bench.worker")
        _, errors = process.communicate(timeout=60)
    assert (1, "Error: a process of the measurement died: it gave no reason\n") == (process.returncode, errors)


@pytest.mark.filterwarnings("ignore:.*[Cc]hild.?[Ww]atcher.*:DeprecationWarning")
async def test_a_process_that_dies_before_it_is_ended_is_waited_for_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only asyncio takes its exit status; otherwise asyncio would complain on standard error."""
    if sys.version_info < (3, 12):
        # As in later versions: it takes the status in the loop, and not in a thread, at a moment that nobody knows.
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)
    try:
        async with processes._started("filestore_cli.bench.worker", log=tmp_path / "log") as process:
            os.kill(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        if sys.version_info < (3, 12):
            asyncio.set_child_watcher(None)  # type: ignore[arg-type]  # back to its default

    assert ([], -signal.SIGKILL) == ([record.getMessage() for record in caplog.records], process.returncode)


@pytest.mark.slow
def test_a_server_that_dies_ends_the_measurement(home: Home) -> None:
    """In one sentence, once the client has tried in vain."""
    with under_way(home, SENDING) as process:
        kill_the(process, b"serve")
        _, errors = process.communicate(timeout=60)
    assert (1, 1) == (process.returncode, errors.count("\n"))
    assert re.match(r"Error: http://127\.0\.0\.1:\d+ (cannot be reached|cut the connection): ", errors)


@pytest.mark.slow
def test_a_measurement_that_is_killed_leaves_no_process(home: Home) -> None:
    """The processes that it started end by themselves."""
    work = home.folder / "work"
    with under_way(home, MAKING) as process:
        started = children(process.pid)
        process.kill()
        process.wait()
        eventually(lambda: not any(is_alive(pid) for pid in started))
        # The one thing that nobody is left to remove.
        (folder,) = work.iterdir()
        shutil.rmtree(folder)
    assert 2 == len(started)


def is_alive(pid: int) -> bool:
    """Return whether a process runs. A process that has ended without a wait does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_the(parent: subprocess.Popen[str], word: bytes) -> None:
    """Kill the one process of those that `parent` started whose arguments hold a word."""
    (found,) = (pid for pid in children(parent.pid) if word in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(found, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Processes that a process has started, and that are not waited for yet."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
