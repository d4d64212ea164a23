"""Measure memory of server and client while one file is uploaded in each dialect of the Pipeline SDK.

python bench/dialects.py --size 2GiB
python bench/dialects.py --size 2GiB --only 'SDK 2, parts' --workers 2

The clients are the SDK, curl and filestore. Each upload uses its own server and folder. `bash tests/run.sh` makes the
SDK's environments. *end* is the time of the last request of an upload in parts. Over loopback, parts arrive faster than
they are stored. With `--pause`, the last request waits until all parts can be stored, as over a slower link, and only
the tail is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.run import FILESTORE, TOKEN, Done, Server, parse_size, run, serving, unwind_when_told_to_end  # noqa: E402

MIB = 1 << 20
SDK1, SDK2 = ROOT / ".venv-sdk1-last/bin", ROOT / ".venv-sdk2-last/bin"

FORM_V4 = """
import sys
from pathlib import Path
from pipeline.cloud.files import upload_file
print(upload_file(Path(sys.argv[1])).id)
"""
PARTS = """
import sys, time
from pathlib import Path
from pipeline.cloud import files
finalise = files._finalise_multipart_upload
def timed(**arguments):
    time.sleep(float(sys.argv[2]))
    started = time.perf_counter()
    stored = finalise(**arguments)
    print(time.perf_counter() - started)
    return stored
files._finalise_multipart_upload = timed
files.upload_multipart_file(Path(sys.argv[1]))
"""


class Row(NamedTuple):
    """The cost of one way."""

    way: str
    done: Done
    server_growth: int
    """Bytes by which the largest process of the server grew at its peak."""
    server_cpu: float
    end_seconds: float | None = None


def main() -> None:
    """Measure each way, and print it as soon as it is known."""
    unwind_when_told_to_end()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("2GiB"), help="of the file (default 2GiB)")
    parser.add_argument("--workers", type=int, default=1, help="server processes (default %(default)s)")
    parser.add_argument(
        "--pause", type=float, default=0, help="seconds before the last request of an upload in parts (default 0)"
    )
    parser.add_argument("--only", action="append", help="a way to measure; may be given again (default: all)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-dialects-") as name:
        folder = Path(name)
        source = folder / "model.safetensors"
        write_safetensors(source, size=options.size)
        print("| way | seconds | peak MiB: client | server grew by | CPU s: client | server | end, s |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for way in options.only or WAYS:
            _show(_measured(folder, source, way, workers=options.workers, pause=options.pause))


WAYS = ("filestore push", "curl, form v3", "curl, form v4", "SDK 1, form v3", "SDK 2, form v4", "SDK 1, parts", "SDK 2, parts")


def _command(way: str, server: Server, source: Path, *, pause: float) -> list[str | Path]:
    form = ["curl", "-sSf", "-o", "/dev/null", "-H", f"Authorization: Bearer {TOKEN}", "-F", f"pfile=@{source}"]
    commands: dict[str, list[str | Path]] = {
        "filestore push": [*FILESTORE, "push", source, "--push-cache", source.with_suffix(".push_cache")],
        "curl, form v3": [*form, f"{server.url}/v3/pipeline_files"],
        "curl, form v4": [*form, f"{server.url}/v4/files"],
        "SDK 1, form v3": [SDK1 / "pipeline", "create", "file", source],
        "SDK 2, form v4": [SDK2 / "python", "-c", FORM_V4, source],
        "SDK 1, parts": [SDK1 / "python", "-c", PARTS, source, str(pause)],
        "SDK 2, parts": [SDK2 / "python", "-c", PARTS, source, str(pause)],
    }
    return commands[way]


def _measured(folder: Path, source: Path, way: str, *, workers: int, pause: float) -> Row:
    user = {"HOME": str(folder), "PIPELINE_DIR": str(folder / "sdk"), "PIPELINE_API_TOKEN": TOKEN}
    with tempfile.TemporaryDirectory(dir=folder) as name, serving(Path(name) / "root", workers=workers) as server:
        before, cpu = server.peak_memory(), server.cpu_seconds()
        environment = {**user, **server.environment, "PIPELINE_API_URL": server.url}
        done = run(_command(way, server, source, pause=pause), environment=environment)
        end = float(done.output.split()[-1]) if "parts" in way else None
        return Row(way, done, server.peak_memory() - before, server.cpu_seconds() - cpu, end)


def _show(row: Row) -> None:
    end = "" if row.end_seconds is None else f"{row.end_seconds:.2f}"
    figures = f"{row.done.seconds:.1f} | {row.done.peak_memory // MIB} | {row.server_growth // MIB} | {row.done.cpu_seconds:.1f}"
    print(f"| {row.way} | {figures} | {row.server_cpu:.1f} | {end} |", flush=True)


if __name__ == "__main__":
    main()
