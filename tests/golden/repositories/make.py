"""Make `COMMIT.tar.gz`: what the code of an earlier commit wrote. The index of each archive has another schema version.

    git worktree add --detach ../old COMMIT && python3 -m venv ../old/.venv && ../old/.venv/bin/pip install ../old
    python tests/golden/repositories/make.py ../old/.venv/bin ../old-runtime/bin tests/golden/repositories/COMMIT.tar.gz

The archives are of 1423cff (2026-11-24, version 2), 495f52f (2026-11-28, version 3), bcc56b1 (2026-11-28, version 4),
0a995fe (2026-11-29, version 5) and adfedc8 (2026-11-30, version 6).
The second environment has the old code with its extra `runtime`. Each archive was made once, and is not made again: it is a
witness of what users have on their disks. It contains `root` (a repository that `serve` and `runtime serve` served), `cache`,
`journal.sqlite` (a push cache), and `facts.json` (tokens, ids, and where the files lay that were pushed).

It needs the right to listen at port 1, where nothing else ever listens: a cache knows its repository by the URL.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

WORK = Path("/tmp/filestore-earlier")
HOST, PORT = "127.0.0.77", 1
RUNTIME_TOKEN = "a-token-for-a-runtime"
GRAPH = """
import sys
import cloudpickle
from pipeline import Pipeline, Variable, pipe

@pipe
def doubled(number: int) -> int:
    return 2 * number

with Pipeline() as builder:
    number = Variable(int, is_input=True)
    builder.output(doubled(number))
with open(sys.argv[1], "wb") as file:
    cloudpickle.dump(builder.get_pipeline(), file)
"""


def lines(count: int) -> bytes:
    """Text, which compresses well."""
    return b"".join(b"line %d of a file\n" % number for number in range(count))


def weights(count: int) -> bytes:
    """A safetensors file of 16-bit numbers, whose bytes are compressed by planes."""
    tensor = b"".join(struct.pack("<H", 0x3F00 + number * 7919 % 251) for number in range(count))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [count], "data_offsets": [0, len(tensor)]}}).encode()
    return struct.pack("<Q", len(header)) + header + tensor


FILES = {
    "lines.txt": lines(30_000),
    "lines-again.txt": lines(30_000),
    "noise.bin": random.Random(1).randbytes(10_000),
    "weights.safetensors": weights(50_000),
    "empty.bin": b"",
}
"""The files that were pushed. Two of them have the same content."""
TREE = {
    "config.json": b'{"layers": 2}\n',
    "inner/größe.txt": b"a name that is not ASCII\n",
    "inner/lines.txt": lines(30_000),
    "run.sh": b"#!/bin/sh\necho\n",
}
"""The files of the directory that was pushed."""
PARTS = [lines(1000), lines(2000)]
"""The parts of the uploads of the Pipeline SDK."""


def make(scripts: Path, runtime_scripts: Path, archive: Path) -> None:
    """Make the archive."""
    (WORK / "home").mkdir(parents=True)
    source = WORK / "source"
    for name, content in FILES.items():
        _write(source / name, content)
    for name, content in TREE.items():
        _write(source / "tree" / name, content)
    (source / "tree/run.sh").chmod(0o755)
    (source / "tree/empty").mkdir()
    # A push cache trusts a file only if it has not changed for two seconds.
    time.sleep(3)
    environ: dict[str, str] = {
        "HOME": str(WORK / "home"),
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "FILESTORE_CACHE": str(WORK / "cache"),
        "FILESTORE_JOURNAL": str(WORK / "journal.sqlite"),
        "FILESTORE_PUSH_CACHE": str(WORK / "journal.sqlite"),  # its name in later commits
    }
    filestore = scripts / "filestore"
    facts: dict[str, Any] = {"source": str(source), "records": {}}
    # Later commits make a repository only if they are asked to.
    makes = subprocess.run([filestore, "serve", "--help"], check=True, capture_output=True, text=True).stdout
    create = ["--create"] if "--create" in makes else []
    with _served([filestore, "serve", *create], environ) as said:
        facts |= {"url": said["url"], "token": said["token"]}
        environ |= {"FILESTORE_URL": said["url"], "FILESTORE_TOKEN": said["token"]}
        for name in FILES:
            facts["records"][name] = _result(environ, filestore, "push", source / name)
        facts["records"]["tree.zip"] = _result(environ, filestore, "push", source / "tree")
        removed = _result(environ, filestore, "push", source / "noise.bin", "--name", "removed.bin")
        _result(environ, filestore, "rm", removed["id"])
        facts["removed"] = removed["id"]
        _result(environ, filestore, "warm", *FILES, "tree.zip")
        other = _result(environ, filestore, "token", "new", "--root", WORK / "root", "--namespace", "other", "--label", "a label")
        facts["other"] = {"token": other["token"]}
        pushed = _result(environ | {"FILESTORE_TOKEN": other["token"]}, filestore, "push", source / "lines.txt")
        facts["other"]["record"] = pushed
        finished, tags = _uploaded(said["token"], "uploaded.txt", PARTS)
        facts["uploaded"] = _post(said["token"], "finalise-multipart-upload", finished | {"multipart_metadata": tags})
        facts["unfinished"], facts["unfinished_tags"] = _uploaded(said["token"], "unfinished.txt", PARTS[:1])
    graph = WORK / "graph"
    subprocess.run([runtime_scripts / "python", "-c", GRAPH, graph], check=True, env=environ)
    with _served([runtime_scripts / "filestore", "runtime", "serve"], environ | {"FILESTORE_TOKEN": RUNTIME_TOKEN}):
        body = b""
        for field, value in (("name", b"doubler"), ("environment_id_or_name", b"numpy")):
            body += b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (field.encode(), value)
        body += b'--x\r\nContent-Disposition: form-data; name="graph"; filename="upload"\r\n\r\n' + graph.read_bytes()
        form = "multipart/form-data; boundary=x"
        facts["pipeline"] = json.loads(_ask("POST", "/v3/pipelines", RUNTIME_TOKEN, body + b"\r\n--x--\r\n", form)[0])
        inputs = [{"type": "integer", "value": 21}]
        run = {"pipeline_id_or_pointer": "doubler", "async_run": False, "input_data": inputs}
        facts["run"] = json.loads(_ask("POST", "/v3/runs", RUNTIME_TOKEN, json.dumps(run).encode())[0])
    (WORK / "facts.json").write_text(json.dumps(facts, indent=1))
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as packed:
        for name in ("root", "cache", "journal.sqlite", "facts.json"):
            packed.add(WORK / name, name, filter=_without_owner)
    shutil.rmtree(WORK)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Keep the time of the last change to the nanosecond: a cache compares it."""
    found = (WORK / member.name).lstat()
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    seconds, fraction = divmod(found.st_mtime_ns, 10**9)
    member.pax_headers = {"mtime": f"{seconds}.{fraction:09}"}
    return member


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextmanager
def _served(command: list[str | Path], environ: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    arguments: list[str | Path] = ["--root", WORK / "root", "--host", HOST, "--port", str(PORT), "--json"]
    with subprocess.Popen([*command, *arguments], env=dict(environ), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)


def _result(environ: Mapping[str, str], *command: str | Path) -> Any:
    done = subprocess.run([*command, "--json"], env=dict(environ), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _ask(method: str, path: str, token: str | None, body: bytes, kind: str = "application/json") -> tuple[bytes, str]:
    connection = HTTPConnection(HOST, PORT)
    headers = {"Content-Type": kind} if token is None else {"Content-Type": kind, "Authorization": f"Bearer {token}"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status in {200, 201}, content
    return content, answer.headers.get("ETag", "")


def _post(token: str, route: str, question: object) -> Any:
    return json.loads(_ask("POST", f"/v3/pipeline_files/{route}", token, json.dumps(question).encode())[0])


def _uploaded(token: str, name: str, parts: list[bytes]) -> tuple[dict[str, str], list[dict[str, object]]]:
    """Begin an upload and send its parts; return its ids, and the list of its parts."""
    ids = _post(token, "initiate-multipart-upload", {"name": name})
    tags: list[dict[str, object]] = []
    for number, part in enumerate(parts, start=1):
        url = _post(token, "presigned-url", ids | {"part_num": number})["upload_url"]
        tags.append({"PartNumber": number, "ETag": _ask("PUT", "/" + url.split("/", 3)[3], None, part)[1]})
    return ids, tags


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:]))
