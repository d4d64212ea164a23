"""Measure `hf download` of a folder from our server and from nginx with the same files, in turns: rates, ratio, memory.

python bench/hub.py                                            # 4 files of 500 MB, three rounds, then eight clients at once
python bench/hub.py --size 100MB --rounds 5 --folder /dev/shm
python bench/hub.py --client .venv-hub-0.36 --clients 1

The client is the unmodified one of an environment that `tests/hub/environments.sh` makes. nginx answers its questions by files
that are made before. Each download goes into a new cache, and is compared with its source outside the measured time. The goal is
a median of 0.8.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.peer.nginx import HEAD  # noqa: E402
from bench.run import (  # noqa: E402
    FILESTORE,
    TOKEN,
    Command,
    Done,
    Service,
    free_port,
    parse_size,
    run,
    run_all,
    serving,
    unwind_when_told_to_end,
)

_NAME = "team/model"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_GOAL = 0.8
_TENSOR = 4 << 20
_CONFIGURATION = (
    HEAD
    + """\
        server {{
            listen 127.0.0.1:{port};
            default_type application/json;
            location ~ ^/api/models/{name}/revision/ {{ alias {folder}/info.json; }}
            location ~ ^/api/models/{name}/tree/ {{ alias {folder}/tree.json; }}
            location ~ ^/{name}/resolve/[^/]+/(.+)$ {{
                default_type application/octet-stream;
                add_header X-Repo-Commit {commit} always;
                alias {source}/$1;
            }}
        }}
    }}
"""
)


class Peer(NamedTuple):
    """A server of the folder."""

    name: str
    url: str
    service: Service


class Measured(NamedTuple):
    """One download, or several at once."""

    rate: float
    """Bytes of all clients in a second."""
    client_cpu: float
    server_cpu: float
    server_memory: int
    """Bytes of resident memory of the server's process at the peak of this download."""


def main() -> None:
    """Measure in turns, and print medians."""
    options = _arguments()
    unwind_when_told_to_end()
    hf = (ROOT / options.client / "bin/hf").absolute()
    if not hf.exists():
        sys.exit(f"{hf} is not there: bash tests/hub/environments.sh makes it")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-hub-") as name:
        folder = Path(name)
        source = _source(folder / "model", options.files, options.size)
        size = sum(path.stat().st_size for path in source.iterdir())
        with _nginx(folder / "nginx", source) as nginx, serving(folder / "store") as server:
            run([*FILESTORE, "push", source, "--name", _NAME, "--quiet"], environment=server.environment)
            peers = [Peer("filestore", server.url, server.service), nginx]
            bench = _Bench(folder / "clients", hf, source)
            print(f"{hf.parent.parent.name}, {size / 1e9:.2f} GB in {options.files} files, {options.rounds} rounds, MB/s")
            _compare(bench, peers, rounds=options.rounds, clients=1)
            if options.clients > 1:
                _compare(bench, peers, rounds=1, clients=options.clients)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default="500MB", help="of each file (default %(default)s)")
    parser.add_argument("--files", type=int, default=4, help="in the folder (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are shown (default %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="that download at once at the end (default %(default)s)")
    parser.add_argument("--client", default=".venv-hub-newest", help="the environment (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    return parser.parse_args()


def _source(folder: Path, files: int, size: int) -> Path:
    folder.mkdir()
    for number in range(files):
        path = folder / f"model-{number + 1:05}-of-{files:05}.safetensors"
        write_safetensors(path, size=size, seed=number, tensor_size=_TENSOR)
        # The tag of nginx is made of time and size, and clients take files with one tag for one file.
        os.utime(path, (number, number))
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return folder


@contextmanager
def _nginx(folder: Path, source: Path) -> Iterator[Peer]:
    """Serve the folder and what the client asks about it."""
    folder.mkdir()
    files = sorted(path for path in source.iterdir())
    info = {"id": _NAME, "sha": _COMMIT, "siblings": [{"rfilename": path.name} for path in files], "private": False, "tags": []}
    tree = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _COMMIT} for path in files]
    (folder / "info.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "tree.json").write_text(json.dumps(tree), encoding="utf-8")
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    values = {"folder": folder, "port": port, "user": user, "name": _NAME, "commit": _COMMIT, "source": source}
    path = folder / "nginx.conf"
    path.write_text(textwrap.dedent(_CONFIGURATION).format(**values), encoding="utf-8")
    command = Command(["nginx", "-p", folder, "-c", path, "-e", folder / "error.log"])
    service = Service(command, log=folder / "nginx.log", port=port)
    try:
        yield Peer("nginx", f"http://127.0.0.1:{port}", service)
    finally:
        service.stop()


class _Bench:
    """Runs the client."""

    def __init__(self, folder: Path, hf: Path, source: Path) -> None:
        self._folder = folder
        self._hf = hf
        self._source = source
        self._size = sum(path.stat().st_size for path in source.iterdir())

    def download(self, peer: Peer, *, clients: int) -> Measured:
        """Download the folder by each client at once, into a cache of its own, and compare it with the source."""
        homes = [self._folder / str(number) for number in range(clients)]
        for home in homes:
            home.mkdir(parents=True)
            # As if the client had looked for a newer version of itself today.
            (home / ".check_for_update_done").touch()
        peer.service.forget_peak_memory()
        used = peer.service.cpu_seconds()
        done = run_all([self._command(peer, home) for home in homes])
        server_cpu = peer.service.cpu_seconds() - used
        server_memory = peer.service.peak_memory()
        for home in homes:
            (snapshot,) = home.glob("hub/models--*/snapshots/*")
            # It is a folder of links, which are followed.
            run(["diff", "-rq", self._source, snapshot])
        shutil.rmtree(self._folder)
        return _measured(done, size=self._size * clients, server_cpu=server_cpu, server_memory=server_memory)

    def _command(self, peer: Peer, home: Path) -> Command:
        environ = {"HF_ENDPOINT": peer.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return Command([self._hf, "download", _NAME], environ)


def _measured(done: list[Done], *, size: int, server_cpu: float, server_memory: int) -> Measured:
    slowest = max(one.seconds for one in done)
    return Measured(size / slowest, sum(one.cpu_seconds for one in done), server_cpu, server_memory)


def _compare(bench: _Bench, peers: list[Peer], *, rounds: int, clients: int) -> None:
    """Let the peers take turns. Each round begins with the other one, and a ratio compares two rates of one round."""
    found: dict[str, list[Measured]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        for peer in peers[number % 2 :] + peers[: number % 2]:
            found[peer.name].append(bench.download(peer, clients=clients))
    many = "client" if clients == 1 else "clients at once"
    print(f"{clients} {many:24} {'MB/s':>8} {'CPU s, client':>14} {'server':>8} {'peak MiB, server':>17}")
    for peer in peers:
        columns = zip(*found[peer.name], strict=True)
        rate, client_cpu, server_cpu, memory = (statistics.median(column) for column in columns)
        print(f"  {peer.name:24} {rate / 1e6:8.0f} {client_cpu:14.2f} {server_cpu:8.2f} {memory / (1 << 20):17.0f}")
    ratios = [ours.rate / theirs.rate for ours, theirs in zip(found["filestore"], found["nginx"], strict=True)]
    goal = f"goal {_GOAL}: {'reached' if statistics.median(ratios) >= _GOAL else 'missed'}" if clients == 1 else ""
    print(f"  of nginx: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) {goal}".rstrip())


if __name__ == "__main__":
    main()
