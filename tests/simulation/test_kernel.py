from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from filestore.system.files import sync_path, write_atomic
from filestore.system.locks import FileLock
from filestore.system.threads import in_disk_thread
from tests.simulation.kernel.process import Process
from tests.simulation.kernel.world import SimulationFailure, World

_STEPS = 20_000


async def _echo(process: Process) -> None:
    """Send back what arrives on port 7."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, process.machine.address, 7)
    process.state["listens"] = True
    async with server:
        await server.serve_forever()


async def _write_forever(process: Process) -> None:
    number = 0
    while True:
        number += 1
        await in_disk_thread(write_atomic, process.folder / f"{process.name}-{number % 5}", b"%d" % number)


async def _append_forever(process: Process) -> None:
    path = process.folder / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(descriptor, b"line\n")
            await asyncio.sleep(0)
    finally:
        path.unlink()


def _digest(seed: int, folder: Path) -> str:
    with World(seed, folder) as world:
        machine = world.machine("one")
        for name in ("a", "b", "c"):
            world.process(name, _write_forever, on=machine)
        world.run(until_steps=2000)
        return world.trace_digest


@pytest.mark.slow
def test_a_seed_gives_one_trace(folder: Path) -> None:
    """The same seed gives the same steps, and another seed gives others."""
    first = _digest(1, folder / "1")
    assert first == _digest(1, folder / "2")
    assert first != _digest(2, folder / "3")


def test_threads_alternate_between_steps(folder: Path) -> None:
    """Two threads without a lock lose an update under some seed: they are interrupted between a read and a write."""
    lost = False
    for seed in range(5):
        with World(seed, folder / str(seed)) as world:

            async def count(process: Process) -> None:
                path = process.folder / "count"
                path.write_text("0")

                def add() -> None:
                    path.write_text(str(int(path.read_text() or "0") + 1))

                await asyncio.gather(*(in_disk_thread(add) for _ in range(3)))
                process.result = path.read_text()

            process = world.process("counter", count, on=world.machine("one"))
            world.run(until_steps=_STEPS)
            lost = lost or (process.folder / "count").read_text() != "3"
    assert lost


def test_locks_exclude_threads(folder: Path) -> None:
    """With a lock, no update is lost under any of several seeds."""
    for seed in range(5):
        with World(seed, folder / str(seed)) as world:

            async def count(process: Process) -> None:
                path = process.folder / "count"
                path.write_text("0")
                lock = threading.Lock()

                def add() -> None:
                    with lock:
                        path.write_text(str(int(path.read_text()) + 1))

                await asyncio.gather(*(in_disk_thread(add) for _ in range(4)))

            process = world.process("counter", count, on=world.machine("one"))
            world.run(until_steps=_STEPS)
            assert "4" == (process.folder / "count").read_text()


def test_waiting_takes_virtual_time(folder: Path) -> None:
    """A sleep of a day, and a pool that a thread waits for, take virtual time only."""

    async def wait(process: Process) -> float:
        started, wall = time.monotonic(), time.time()
        await asyncio.sleep(86400)
        with ThreadPoolExecutor(2) as pool:
            pool.submit(time.sleep, 3600).result()
        assert time.time() - wall == pytest.approx(time.monotonic() - started, abs=0.01)
        return time.monotonic() - started

    with World(1, folder) as world:
        process = world.process("sleeper", wait, on=world.machine("one"))
        world.run(until_steps=_STEPS)
        assert not process.is_running
        assert 90000 == pytest.approx(process.result, abs=1)


def test_a_clock_jumps_for_its_machine_only(folder: Path) -> None:
    """A jump changes the wall clock of one machine, and no monotonic clock."""

    async def look(process: Process) -> tuple[float, float]:
        wall, started = time.time(), time.monotonic()
        await asyncio.sleep(10)
        return time.time() - wall, time.monotonic() - started

    with World(1, folder) as world:
        first = world.process("first", look, on=world.machine("one"))
        second = world.process("second", look, on=world.machine("two"))
        world.run(until_steps=_STEPS, until=lambda: world.now > 1005)
        first.machine.jump_clock(-5000)
        world.run(until_steps=_STEPS)
        assert (-4990, 10) == pytest.approx(first.result, abs=0.1)
        assert (10, 10) == pytest.approx(second.result, abs=0.1)


def test_a_killed_process_does_nothing_more(folder: Path) -> None:
    """Neither its threads nor its `finally` blocks have an effect after a kill, and its lock is free."""
    for seed in range(5):
        with World(seed, folder / str(seed)) as world:

            async def hold(process: Process) -> None:
                lock = FileLock.of_folder(process.folder, is_required=True)
                assert lock.try_acquire()
                await _append_forever(process)

            async def wait(process: Process) -> None:
                with FileLock.of_folder(process.folder, is_required=True) as lock:
                    assert lock.acquire(limit_seconds=1e6)

            machine = world.machine("one")
            holder = world.process("holder", hold, on=machine)
            world.run(until_steps=200)
            waiter = world.process("waiter", wait, on=machine)
            world.run(until_steps=500)
            assert waiter.is_running
            size = (machine.folder / "log").stat().st_size
            holder.kill()
            assert not holder.threads
            world.run(until_steps=2000)
            assert size == (machine.folder / "log").stat().st_size
            assert not waiter.is_running


def test_a_process_can_be_started_again(folder: Path) -> None:
    """It has another number, and its own pools."""
    pids = []

    async def note(process: Process) -> None:
        pids.append(await in_disk_thread(os.getpid))
        await asyncio.sleep(1e6)

    with World(1, folder) as world:
        process = world.process("one", note, on=world.machine("one"))
        world.run(until_steps=100, until=lambda: len(pids) == 1)
        process.kill()
        process.restart()
        world.run(until_steps=200, until=lambda: len(pids) == 2)
    assert 2 == len(set(pids))


def test_steps_go_on_without_a_process(folder: Path) -> None:
    """What is called between steps can start a process again after all were killed."""

    async def sleep(process: Process) -> None:
        await asyncio.sleep(1e9)

    with World(1, folder) as world:
        process = world.process("one", sleep, on=world.machine("one"))
        world.run(until_steps=5)
        process.kill()
        world.each(50, lambda _: process.restart() if not process.is_running else None)
        world.run(until_steps=60)
        assert process.is_running


def _after_power_cut(seed: int, folder: Path, *, is_synced: bool) -> bytes | None:
    """Return what a file has that was renamed before a power cut. Return None if it is not there."""
    with World(seed, folder) as world:

        async def write(process: Process) -> None:
            staging = process.folder / "staging"
            staging.write_bytes(b"content" * 500)
            if is_synced:
                sync_path(staging)
            staging.rename(process.folder / "file")
            if is_synced:
                sync_path(process.folder)

        process = world.process("writer", write, on=world.machine("one"))
        world.run(until_steps=_STEPS)
        process.machine.power_cut()
        path = process.folder / "file"
        return path.read_bytes() if path.exists() else None


def test_a_power_cut_loses_what_was_not_synced(folder: Path) -> None:
    """Without syncs, the name or the content of a file is lost under some seeds. With syncs, neither is under any."""
    whole = b"content" * 500
    found = {_after_power_cut(seed, folder / f"a{seed}", is_synced=False) for seed in range(12)}
    assert {None, whole} < found
    assert {whole} == {_after_power_cut(seed, folder / f"b{seed}", is_synced=True) for seed in range(12)}


def test_a_power_cut_keeps_committed_rows(folder: Path) -> None:
    """A committed transaction survives a power cut, and an open one does not."""

    async def write(process: Process) -> None:
        connection = sqlite3.connect(process.folder / "index.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (value)")
        connection.execute("INSERT INTO rows VALUES (1)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows VALUES (2)")
        process.state["has_written"] = True
        await asyncio.sleep(1e6)

    with World(1, folder) as world:
        machine = world.machine("one")
        process = world.process("writer", write, on=machine)
        world.run(until_steps=_STEPS, until=lambda: "has_written" in process.state)
        machine.power_cut()
        with sqlite3.connect(machine.folder / "index.sqlite") as connection:
            assert [(1,)] == connection.execute("SELECT value FROM rows").fetchall()
        connection.close()


def test_a_lost_sqlite_lock_is_a_failure(folder: Path) -> None:
    """A process that opens and closes the file of its open index drops SQLite's locks, and the simulation says so."""

    async def write(process: Process) -> None:
        path = process.folder / "index.sqlite"
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (value)")
        connection.execute("INSERT INTO rows VALUES (1)")
        path.read_bytes()
        connection.execute("INSERT INTO rows VALUES (2)")

    with World(1, folder) as world:
        world.process("writer", write, on=world.machine("one"))
        with pytest.raises(SimulationFailure, match="without a lock"):
            world.run(until_steps=_STEPS)


def test_a_second_writer_waits_for_the_first(folder: Path) -> None:
    """A transaction of another process is waited for in virtual time, up to the limit of the connection."""

    async def write(process: Process) -> str:
        connection = sqlite3.connect(process.folder / "index.sqlite", isolation_level=None, timeout=100)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS rows (value)")
        for number in range(20):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows VALUES (?)", (number,))
            await asyncio.sleep(0.1)
            connection.execute("COMMIT")
        connection.close()
        return "written"

    with World(3, folder) as world:
        machine = world.machine("one")
        writers = [world.process(f"writer-{number}", write, on=machine) for number in range(3)]
        world.run(until_steps=100_000)
        assert ["written"] * 3 == [writer.result for writer in writers]


def _run_sockets(seed: int, folder: Path) -> None:
    content = bytes(range(256)) * 400

    async def send(process: Process) -> bytes:
        reader, writer = await asyncio.open_connection(server.machine.address, 7)
        with closing(writer):
            writer.write(content)
            return await reader.readexactly(len(content))

    async def keep(process: Process) -> str:
        reader, writer = await asyncio.open_connection(server.machine.address, 7)
        with closing(writer):
            writer.write(b"first")
            await reader.readexactly(5)
            process.state["is_open"] = True
            try:
                await reader.readexactly(5)
            except ConnectionResetError:
                return "reset"
            return "not reset"

    with World(seed, folder) as world:
        server = world.process("server", _echo, on=world.machine("one"))
        desk = world.machine("two")
        world.run(until_steps=_STEPS, until=lambda: "listens" in server.state)
        sender = world.process("sender", send, on=desk)
        world.run(until_steps=world.steps + 40, until=lambda: not sender.is_running)
        world.network.partition(server.machine, desk)
        before = world.now
        world.scheduler.at(world.now + 50, lambda: world.network.heal(server.machine, desk))
        world.run(until_steps=_STEPS, until=lambda: not sender.is_running)
        assert content == sender.result
        assert world.now > before + 50
        keeper = world.process("keeper", keep, on=desk)
        world.run(until_steps=2 * _STEPS, until=lambda: "is_open" in keeper.state)
        world.network.cut(server, keeper)
        world.run(until_steps=3 * _STEPS, until=lambda: not keeper.is_running)
        assert "reset" == keeper.result


def test_sockets_carry_bytes_and_are_cut(folder: Path) -> None:
    """Bytes arrive in order whatever the buffers are. A cut is an error at both ends, and a partition is silence."""
    for seed in range(5):
        _run_sockets(seed, folder / str(seed))


def test_nobody_listens(folder: Path) -> None:
    """A connect to a port where nobody listens is refused."""

    async def connect(process: Process) -> str:
        try:
            await asyncio.open_connection(process.machine.address, 9)
        except ConnectionRefusedError:
            return "refused"
        return "connected"

    with World(1, folder) as world:
        process = world.process("client", connect, on=world.machine("one"))
        world.run(until_steps=_STEPS)
        assert "refused" == process.result


def test_a_deadlock_is_reported(folder: Path) -> None:
    """Two threads that wait for each other end the simulation, with what they wait for and how to see it again."""

    async def wait(process: Process) -> None:
        first, second = threading.Lock(), threading.Lock()

        def take(one: threading.Lock, other: threading.Lock) -> None:
            with one:
                time.sleep(1)
                with other:
                    pass

        await asyncio.gather(in_disk_thread(take, first, second), in_disk_thread(take, second, first))

    with World(5, folder) as world:
        world.process("waiter", wait, on=world.machine("one"))
        with pytest.raises(SimulationFailure) as failure:
            world.run(until_steps=_STEPS)
    assert "deadlock" in str(failure.value)
    assert 2 == str(failure.value).count("lock that another thread holds")
    assert "python -m tests.simulation --seed 5" in str(failure.value)


def test_calls_fail_when_asked(folder: Path) -> None:
    """A disk gives the errors that are asked for, and ENOSPC when it is full."""

    async def write(process: Process) -> list[int | None]:
        found = []
        for size in (10, 10, 10 << 20):
            try:
                write_atomic(process.folder / "file", bytes(size))
            except OSError as error:
                found.append(error.errno)
            else:
                found.append(None)
        return found

    with World(1, folder) as world:
        process = world.process("writer", write, on=world.machine("one"))
        process.machine.disk.size = 1 << 20
        process.machine.disk.fail_next(errno.EIO, calls={"fsync"})
        world.run(until_steps=_STEPS)
        assert [errno.EIO, None, errno.ENOSPC] == process.result


def test_an_error_of_a_process_is_a_failure(folder: Path) -> None:
    """An exception that a process does not handle ends the simulation."""

    async def fail(process: Process) -> None:
        raise ValueError("an error")

    with World(1, folder) as world:
        world.process("one", fail, on=world.machine("one"))
        with pytest.raises(SimulationFailure, match="ValueError: an error"):
            world.run(until_steps=_STEPS)


def test_everything_is_put_back(folder: Path) -> None:
    """After a simulation, files, clocks and threads are the real ones."""
    before = (os.open, time.time, threading.Lock, sqlite3.connect, asyncio.get_event_loop_policy())
    _digest(1, folder / "1")
    assert before == (os.open, time.time, threading.Lock, sqlite3.connect, asyncio.get_event_loop_policy())
    (folder / "real").write_bytes(b"real")
    assert b"real" == (folder / "real").read_bytes()
