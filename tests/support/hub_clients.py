"""Run unmodified clients of the Hugging Face Hub in environments that `tests/hub/environments.sh` makes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.commands import REPOSITORY, Home, Server, scripts_of
from tests.support.relay import Asked, Relay
from tests.support.server import Reply, RunningServer, eventually

VERSIONS = [path.stem for path in sorted((REPOSITORY / "tests/hub/environments").glob("*.txt"))]
"""The environments, the oldest client first."""
SCRIPTS = REPOSITORY / "tests/hub/scripts"
_ID = r"(?:[\w.-]+/)?[\w.-]+"
_API = rf"/api/(?:models|datasets|spaces)/{_ID}"
_ROUTES = {
    "resolve": rf"/(?:datasets/|spaces/)?{_ID}/resolve/[^/]+/.+",
    "info": rf"{_API}(?:/revision/[^/]+)?",
    "tree": rf"{_API}/tree/[^/]+(?:/.*)?",
    "paths-info": rf"{_API}/paths-info/[^/]+",
    "refs": rf"{_API}/refs",
    "whoami": r"/api/whoami-v2",
    "create": r"/api/repos/create",
    "preupload": rf"{_API}/preupload/[^/]+",
    "lfs-batch": rf"/(?:datasets/|spaces/)?{_ID}\.git/info/lfs/objects/batch",
    "commit": rf"{_API}/commit/[^/]+",
    "validate-yaml": r"/api/validate-yaml",
}
"""Names of routes. Any other request is named by its path. `tree` comes before `info`, whose pattern has the same beginning."""
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_NOT_OF_A_REPOSITORY = re.compile(r"/api/(?:agent-harnesses|telemetry(?:/.*)?)")
"""What clients ask beside their work, for statistics. 404 is a right answer."""


class Hub(NamedTuple):
    """A server process, a relay before it, and a user of our own commands."""

    server: Server
    relay: Relay
    home: Home

    def ask(self, method: str, path: str, *, headers: Mapping[str, str] | None = None) -> Reply:
        """Return the answer of the server to one request with its token. The relay does not see it."""
        server = RunningServer(self.server.url, self.server.token, self.server.root, self.server.process)
        return server.ask(method, path, headers=headers, token=self.server.token)

    def filestore(self, *arguments: str | Path) -> str:
        """Return the output of our own command. It must succeed."""
        done = self.home.run(*arguments, environ=self.server.environ)
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    def push(self, folder: Path, name: str) -> None:
        """Store a folder under a name by our own command, and wait until the server has computed all its digests."""
        self.filestore("push", folder, "--name", name)
        eventually(lambda: self.knows_digests(name))

    def knows_digests(self, name: str) -> bool:
        """Whether each file of a repository has the digests that clients compare."""
        reply = self.ask("GET", f"/api/models/{name}/tree/main?recursive=true")
        assert 200 == reply.status, reply.body
        return all(_DIGEST.fullmatch(entry["oid"] or "") for entry in reply.json if entry["type"] == "file")


class Failed(NamedTuple):
    """A call that raised an exception: the names of its class and of the bases of that, and the message."""

    classes: list[str]
    message: str


class HubClient:
    """A user of one version, whose caches are empty."""

    def __init__(self, version: str, home: Home, url: str, token: str) -> None:
        self.version = version
        self.bin = scripts_of(f".venv-hub-{version}")
        self.home = home
        self.hub_home = home.folder / "hub"
        self.hub_home.mkdir(exist_ok=True)
        # As if the client had looked for a newer version of itself today, at an index of packages.
        (self.hub_home / ".check_for_update_done").touch()
        self.environ = {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HOME": str(self.hub_home)}
        if self.uploads_by_xet:
            self.environ["HF_HUB_DISABLE_XET"] = "1"

    @property
    def uploads_by_xet(self) -> bool:
        """Whether this client uploads by a protocol of its own unless it is told not to."""
        return self.version == "newest"

    def run(
        self, *arguments: str | Path, program: str = "hf", environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end."""
        return self.home.run(*arguments, program=self.bin / program, environ=self.environ | dict(environ or {}))

    def hf(self, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> str:
        """Return the output of a command. It must succeed."""
        done = self.run(*arguments, environ=environ)
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    def script(self, name: str, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> Any:
        """Return the JSON that a program of `tests/hub/scripts` prints last. It must succeed."""
        done = self.run(SCRIPTS / name, *arguments, program="python", environ=environ)
        assert 0 == done.returncode, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def calls(self, *calls: tuple[str, Mapping[str, object]], environ: Mapping[str, str] | None = None) -> list[Any]:
        """Call methods of `HfApi` one after another in one process. None of them may raise an exception."""
        results = self.attempts(*calls, environ=environ)
        assert not [one for one in results if isinstance(one, Failed)], results
        return results

    def attempts(self, *calls: tuple[str, Mapping[str, object]], environ: Mapping[str, str] | None = None) -> list[Any]:
        """Do the same with calls that may fail. The result of such a call is a `Failed`, and the next ones follow."""
        file = self.home.folder / "calls.json"
        file.write_text(json.dumps(calls))
        results: list[Any] = self.script("calls.py", file, environ=environ)
        return [Failed(one["raised"], one["message"]) if isinstance(one, dict) and "raised" in one else one for one in results]

    def call(self, method: str, /, **arguments: object) -> Any:
        """Return what one method of `HfApi` returns. It must not raise an exception."""
        (result,) = self.calls((method, arguments))
        return result

    def failure(self, method: str, /, **arguments: object) -> Failed:
        """Return how one method of `HfApi` fails."""
        (result,) = self.attempts((method, arguments))
        assert isinstance(result, Failed), result
        return result


def steps(asked: Iterable[Asked]) -> list[str]:
    """Return requests as "METHOD route", without those for statistics."""
    return [f"{one.method} {_route(one.path)}" for one in asked if not _NOT_OF_A_REPOSITORY.fullmatch(one.path)]


def _route(path: str) -> str:
    fitting = (name for name, pattern in _ROUTES.items() if re.fullmatch(pattern, path))
    return next(fitting, path)


def named_digests(content: bytes) -> set[str]:
    """Return the digests by which the Hub names content: SHA-256, and git's name of a blob."""
    return {sha256(content).hexdigest(), sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by their paths, without hidden ones that clients keep there."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    relative = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in sorted(relative.items()) if not name.startswith(".cache/")}
