"""Print the figures of the main job as a table, measured with real processes on this machine.

python bench/figures.py                 # all of it; needs about 20 GB of free space for --size 4GiB
python bench/figures.py --size 256MiB   # a quick look
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import TENSOR_SIZE, bf16, write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.run import FILESTORE, TOKEN, Done, Server, parse_size, run, serving, unwind_when_told_to_end  # noqa: E402
from filestore.backends import connect  # noqa: E402
from filestore.cache import Cache  # noqa: E402
from filestore.core.references import File  # noqa: E402
from filestore.transfer.push import push  # noqa: E402
from tests.support.models import Tensor, torch_file  # noqa: E402

MIB = 1 << 20


def main() -> None:
    """Measure one job after another, each in a repository of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4GiB", help="of the file whose push and fetch are watched for memory")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: the temporary folder")
    arguments = parser.parse_args()
    unwind_when_told_to_end()
    size = parse_size(arguments.size)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="filestore-bench-") as name:
        folder = Path(name)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "xdg"), "XDG_STATE_HOME": str(folder / "xdg")}
        for measure in (imports, cache_hit):
            show(measure(folder))
        for workers in (1, 2):
            show(memory(folder, size, workers))
        for measure_change in (again, tuned, torch_saved):
            show(measure_change(folder, size // 2))


def show(rows: Iterator[tuple[str, str, str]]) -> None:
    """Print each row as soon as it is known."""
    for what, found, wanted in rows:
        print(f"{what:64} {found:>34}   {wanted}", flush=True)


def imports(_: Path) -> Iterator[tuple[str, str, str]]:
    """Measure `import filestore`, compared with a Python that imports nothing."""
    times: dict[str, list[float]] = {"pass": [], "import filestore": []}
    for _round in range(15):
        for code, seconds in times.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.perf_counter() - started)
    bare, whole = (statistics.median(seconds) for seconds in times.values())
    yield "import filestore (median of 15)", f"{(whole - bare) * 1e3:.0f} ms", "under 150 ms"


def cache_hit(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Measure resolves of a file that is in the cache."""
    source = folder / "hit.bin"
    source.write_bytes(os.urandom(4 * MIB))

    async def measure() -> list[float]:
        times = []
        async with connect(str(folder / "hit-repository"), create=True) as repository:
            record = (await push(repository, source)).record
            cache = Cache(folder / "hit-cache", repository)
            await cache.resolve(File(id=record.id))
            for _ in range(1000):
                started = time.perf_counter()
                await cache.resolve(File(id=record.id))
                times.append(time.perf_counter() - started)
        return times

    times = asyncio.run(measure())
    found = f"{statistics.median(times) * 1e3:.2f} ms, worst {max(times) * 1e3:.2f} ms"
    yield "cache hit (median of 1000)", found, "under 1 ms"


def memory(folder: Path, size: int, workers: int) -> Iterator[tuple[str, str, str]]:
    """Measure a push, a fetch, and fetches on many connections, with the peak memory of all processes."""
    source, target = folder / "big.safetensors", folder / "fetched.safetensors"
    if not source.exists():
        write_safetensors(source, size=size)
    total = source.stat().st_size
    with serving(folder / f"memory-{workers}", workers=workers) as server:
        pushed = run([*FILESTORE, "push", source, "--json"], environment=server.environment)
        yield (
            f"push {total / 1e9:.2f} GB, {workers} worker(s)",
            f"{total / pushed.seconds / 1e9:.2f} GB/s, sent {pushed.json['bytes_sent'] / total:.1%}",
            "",
        )
        yield "  peak memory: client, server", _peaks(pushed, server), "under 300 MiB each"
        fetched = run([*FILESTORE, "fetch", pushed.json["id"], "-o", target, "--json"], environment=server.environment)
        run(["cmp", source, target])
        yield f"fetch {total / 1e9:.2f} GB, verified", f"{total / fetched.seconds / 1e9:.2f} GB/s", ""
        yield "  peak memory: client, server", _peaks(fetched, server), "under 300 MiB each"
        target.unlink()
        curl = ["curl", "-sf", "-H", f"Authorization: Bearer {TOKEN}", "-o", "/dev/null", f"{server.url}/{pushed.json['path']}"]
        count = 16
        plain = [subprocess.Popen(curl) for _ in range(count)]
        if any(process.wait() for process in plain):
            raise SystemExit("curl failed")
        yield f"  {count} plain GETs by curl at once: server", f"{server.peak_memory() // MIB} MiB", "under 300 MiB each"


def _peaks(command: Done, server: Server) -> str:
    return f"{command.peak_memory // MIB}, {server.peak_memory() // MIB} MiB"


def again(folder: Path, size: int) -> Iterator[tuple[str, str, str]]:
    """Push the same file twice: with the push cache, then with every byte hashed again."""
    source = folder / "again.safetensors"
    write_safetensors(source, size=size)
    total = source.stat().st_size
    time.sleep(2.1)  # a file that changed within 2 s of being recorded is not trusted
    with serving(folder / "again") as server:
        run([*FILESTORE, "push", source, "--json"], environment=server.environment)
        for option in ([], ["--rehash"]):
            done = run([*FILESTORE, "push", source, "--json", *option], environment=server.environment)
            wanted = "" if option else "under 5 % read, under 0.1 % sent"
            read, sent = (done.json[key] / total for key in ("bytes_read", "bytes_sent"))
            found = f"{read:.2%} read, {sent:.3%} sent, {done.seconds:.2f} s"
            yield f"push {total / 1e9:.2f} GB again {' '.join(option)}", found, wanted
    source.unlink()


def tuned(folder: Path, size: int) -> Iterator[tuple[str, str, str]]:
    """Push a fine-tune: a quarter of the tensors is new, and a longer header shifts everything."""
    base, source = folder / "base.safetensors", folder / "tuned.safetensors"
    write_safetensors(base, size=size)
    fresh = write_safetensors(source, size=size, changed=0.25, header_padding=480)
    total = source.stat().st_size
    with serving(folder / "tuned") as server:
        first = run([*FILESTORE, "push", base, "--json"], environment=server.environment).json
        second = run([*FILESTORE, "push", source, "--json"], environment=server.environment).json
    encoded = fresh * first["bytes_sent"] / base.stat().st_size
    found = f"{second['bytes_sent'] / encoded:.4f} x the changed tensors, {second['bytes_sent'] / total:.1%}"
    yield f"push of a fine-tune, {fresh / total:.0%} of {total / 1e9:.2f} GB new", found, "at most 1.03 x"
    for path in (base, source):
        path.unlink()


def torch_saved(folder: Path, size: int) -> Iterator[tuple[str, str, str]]:
    """Push a checkpoint as `torch.save` writes it, with one tensor changed."""
    count = max(4, size // TENSOR_SIZE // 8)
    path = folder / "model.pt"
    tensors = [Tensor(f"layers.{place}", "BF16", (TENSOR_SIZE // 2,), bf16(place, TENSOR_SIZE)) for place in range(count)]
    with serving(folder / "torch") as server:
        path.write_bytes(torch_file(tensors))
        first = run([*FILESTORE, "push", path, "--json"], environment=server.environment).json
        tensors[count // 2] = tensors[count // 2]._replace(data=bf16(count, TENSOR_SIZE))
        path.write_bytes(torch_file(tensors))
        second = run([*FILESTORE, "push", path, "--json"], environment=server.environment).json
    encoded = first["bytes_sent"] / count
    found = f"{second['bytes_sent'] / encoded:.4f} x that tensor"
    yield f"push of a torch.save file, 1 of {count} tensors changed", found, "that tensor only"


if __name__ == "__main__":
    main()
