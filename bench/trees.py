"""Measure directories: pushes after a few changes, large weights in a folder compared with one file, many entries.

python bench/trees.py                          # a tree of 20,000 small files and 4 of 100 MiB, 200,000 entries
python bench/trees.py --files 500 --big 8MiB --entries 5000

To compare the speed of trees with `zip` and `curl`, `tar` and `curl`, and `rclone copy`:
`peers.py --workloads push-tree,fetch-tree`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import bf16, write_tree  # noqa: E402  # a script finds its neighbours only now
from bench.run import FILESTORE, Done, Server, parse_size, run, serving, unwind_when_told_to_end  # noqa: E402

MIB = 1 << 20
BIG_COUNT = 4
TOUCHED = 10
SETTLED_SECONDS = 2.1
"""A file that changed within 2 s of being recorded is not trusted."""


def main() -> None:
    """Measure one job after another, each in a repository of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="small files, of 1 to 64 KiB (default %(default)s)")
    parser.add_argument(
        "--big", type=parse_size, default="100MiB", help=f"of each of {BIG_COUNT} big files (default %(default)s)"
    )
    parser.add_argument("--entries", type=int, default=200_000, help="of the tree watched for memory (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of fetches that are compared (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    options = parser.parse_args()
    unwind_when_told_to_end()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-trees-") as name:
        folder = Path(name)
        os.environ |= {"XDG_CACHE_HOME": f"{name}/xdg", "XDG_STATE_HOME": f"{name}/xdg"}
        for rows in (
            again(folder, options.files, options.big),
            apart(folder, options.big, options.rounds),
            many(folder, options.entries),
        ):
            for what, found, wanted in rows:
                print(f"{what:64} {found:>44}   {wanted}", flush=True)


def again(folder: Path, file_count: int, big_size: int) -> Iterator[tuple[str, str, str]]:
    """Push and fetch a tree; then push it again unchanged, and after each of a few changes."""
    tree = folder / "tree"
    total = write_tree(tree, file_count=file_count, big_count=BIG_COUNT, big_size=big_size)
    time.sleep(SETTLED_SECONDS)
    with serving(folder / "again") as server:
        pushed = _push(server, tree)
        yield f"push a tree of {file_count:,} files and {BIG_COUNT} big ones, {total / 1e9:.2f} GB", *_moved(pushed, total), ""
        target = folder / "fetched"
        fetched = _fetch(server, pushed, target)
        run(["diff", "-r", tree, target])
        shutil.rmtree(target)
        yield "fetch it", f"{total / fetched.seconds / 1e9:.2f} GB/s", ""
        yield "push it again", *_moved(_push(server, tree), total), ""
        paths = sorted(path for path in tree.rglob("*") if path.stat().st_size <= 64 << 10 and path.is_file())
        touched = paths[:: max(1, len(paths) // TOUCHED)][:TOUCHED]
        for path in touched:
            path.write_bytes(path.read_bytes()[::-1])
        time.sleep(SETTLED_SECONDS)
        changed = f"push it with {TOUCHED} small files in {len({path.parent for path in touched})} folders changed"
        yield changed, *_moved(_push(server, tree), total), "at most 10 % read, under 2 % sent"
        added = paths[len(paths) // 2].with_suffix(".added")
        added.write_bytes(paths[0].read_bytes())
        time.sleep(SETTLED_SECONDS)
        yield "push it with one small file added", *_moved(_push(server, tree), total), ""
        added.unlink()
        yield "push it with that file removed", *_moved(_push(server, tree), total), ""
        (tree / "weights-1.bin").write_bytes(bf16(BIG_COUNT, big_size))
        time.sleep(SETTLED_SECONDS)
        yield "push it with one big file changed", *_moved(_push(server, tree), total), f"{big_size / total:.2%} changed"
    shutil.rmtree(tree)


def apart(folder: Path, big_size: int, rounds: int) -> Iterator[tuple[str, str, str]]:
    """Fetch large files in a folder, and the same bytes as one file, in turn."""
    tree, file = folder / "weights", folder / "weights.bin"
    tree.mkdir()
    with file.open("wb") as whole:
        for place in range(BIG_COUNT):
            content = bf16(place, big_size)
            (tree / f"{place}.bin").write_bytes(content)
            whole.write(content)
    with serving(folder / "apart") as server:
        pushed = {path: _push(server, path) for path in (tree, file)}
        ratios = []
        for place in range(rounds):
            # The two take turns in being first.
            paths = (tree, file) if place % 2 else (file, tree)
            seconds = {path: _timed_fetch(server, pushed[path], folder / "target", path) for path in paths}
            ratios.append(seconds[tree] / seconds[file])
    size = file.stat().st_size
    found = f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    yield f"fetch {size / 1e9:.2f} GB in {BIG_COUNT} files of a folder, to one file", found, "at most 1.15 x"
    shutil.rmtree(tree)
    file.unlink()


def many(folder: Path, count: int) -> Iterator[tuple[str, str, str]]:
    """Measure the peak memory with that many files of 1 KiB."""
    tree, target = folder / "many", folder / "many-fetched"
    write_tree(tree, file_count=count, largest=1 << 10)
    with serving(folder / "entries") as server:
        pushed = _push(server, tree)
        yield f"push {count:,} files of 1 KiB", f"{pushed.seconds:.1f} s, {count / pushed.seconds:,.0f} files/s", ""
        yield "  peak memory: client, server", _peaks(pushed, server), "under 300 MiB each"
        fetched = _fetch(server, pushed, target)
        yield "fetch them", f"{fetched.seconds:.1f} s, {count / fetched.seconds:,.0f} files/s", ""
        yield "  peak memory: client, server", _peaks(fetched, server), "under 300 MiB each"
    run(["diff", "-r", tree, target])


def _push(server: Server, path: Path) -> Done:
    return run([*FILESTORE, "push", path, "--json"], environment=server.environment)


def _fetch(server: Server, pushed: Done, target: Path) -> Done:
    return run([*FILESTORE, "fetch", pushed.json["id"], "-o", target, "--json"], environment=server.environment)


def _timed_fetch(server: Server, pushed: Done, target: Path, source: Path) -> float:
    seconds = _fetch(server, pushed, target).seconds
    run(["diff", "-r", source, target])
    run(["rm", "-r", target])
    return seconds


def _moved(pushed: Done, total: int) -> tuple[str]:
    read, sent = (pushed.json[key] / total for key in ("bytes_read", "bytes_sent"))
    return (f"{total / pushed.seconds / 1e9:.2f} GB/s, {read:.2%} read, {sent:.3%} sent",)


def _peaks(command: Done, server: Server) -> str:
    return f"{command.peak_memory // MIB}, {server.peak_memory() // MIB} MiB"


if __name__ == "__main__":
    main()
