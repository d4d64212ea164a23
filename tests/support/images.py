"""The image of docs/deploy/Containerfile: built by buildah, and run as a container is.

No base image can be fetched here, so Debian's own installer makes one, with what Debian's image has. Both stay in
`.venv-images`, and the image is built again when a file has changed that goes into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.commands import REPOSITORY
from tests.support.deploy import DEPLOY, debian_program

BASE = "docker.io/library/debian:bookworm-slim"
_STORE = REPOSITORY / ".venv-images"
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_IN_IMAGE = REPOSITORY / "tests/support/in_image.sh"
_AS_MACHINE = REPOSITORY / "tests/support/as_machine.sh"


class Image(NamedTuple):
    """A root folder that was made from the image, and what the image says about its containers."""

    root: Path
    config: Mapping[str, Any]

    @property
    def volume(self) -> str:
        """Where the volume of a container is."""
        (path,) = self.config["Volumes"]
        return str(path)

    def start(
        self, volume: Path, command: Sequence[str] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a container with arguments for the program of the image, by default those of the image itself."""
        whole = [*self.config["Entrypoint"], *(self.config["Cmd"] if command is None else command)]
        return self._begin(volume, whole, environ)

    def run(
        self, volume: Path, command: Sequence[str], *, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run another program in a container, to its end."""
        process = self._begin(volume, command, environ)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def _begin(self, volume: Path, command: Sequence[str], environ: Mapping[str, str] | None) -> subprocess.Popen[str]:
        given = dict(entry.split("=", 1) for entry in self.config["Env"]) | dict(environ or {})
        variables = ["env", "-i", *(f"{name}={value}" for name, value in given.items())]
        begun: list[str | Path] = ["unshare", "--mount", "bash", _IN_IMAGE, self.root, self.config["User"], volume, self.volume]
        return subprocess.Popen(
            [*begun, *variables, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )


class Machine(NamedTuple):
    """A machine that has booted."""

    pid: int
    """Its first process, as this machine knows it."""
    root: Path

    def run(self, *command: str, stdin: str = "", checks: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as root of that machine, which must succeed if `checks`."""
        entered = ["nsenter", "--target", str(self.pid), "--all", "--wdns=/", *command]
        done = subprocess.run(entered, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert not checks or done.returncode == 0, done.stdout + done.stderr
        return done


@contextmanager
def image() -> Iterator[Image]:
    """Build the image, unless it is there and nothing has changed, and give a root folder made from it."""
    _needs_root()
    name = _built()
    with _root(name) as root:
        yield Image(root, json.loads(_buildah("inspect", "--type", "image", name))["Docker"]["config"])


@contextmanager
def machine() -> Iterator[Machine]:
    """Boot systemd on a root folder that has filestore in /opt/filestore, and nothing else of the image."""
    _needs_root()
    name = _with_systemd(_built())
    with _root(name) as root:
        for file in ("passwd", "group", "shadow", "gshadow"):
            path = root / "etc" / file
            path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "filestore" not in line))
        for folder in ("var/lib/filestore", "var/log/filestore"):
            (root / folder).rmdir()
        booted = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net", "--cgroup"]
        process = subprocess.Popen([*booted, "bash", _AS_MACHINE, root], stdin=subprocess.DEVNULL)
        try:
            yield Machine(_booted(process), root)
        finally:
            process.kill()
            process.wait()


def _booted(process: subprocess.Popen[bytes]) -> int:
    """Return the first process of a machine, once its manager answers."""
    from tests.support.server import eventually

    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    eventually(lambda: bool(children.read_text().split()))
    pid = int(children.read_text())
    asked = ["nsenter", "--target", str(pid), "--all", "--wdns=/", "systemctl", "is-system-running", "--wait"]

    def is_up() -> bool:
        assert process.poll() is None, "the machine did not boot"
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        return done.stdout.strip() in {"running", "degraded"}

    eventually(is_up)
    return pid


def _needs_root() -> None:
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("only root can enter the root folder of an image")
    for program in ("buildah", "mmdebstrap", "unshare", "nsenter", "ip"):
        debian_program(program)


def _buildah(*arguments: str | Path) -> str:
    storage: list[str | Path] = ["--root", _STORE / "store", "--runroot", _STORE / "run", "--storage-driver", "overlay"]
    done = subprocess.run(
        [debian_program("buildah"), *storage, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


@contextmanager
def _alone() -> Iterator[None]:
    """Be the only test process that builds."""
    _STORE.mkdir(exist_ok=True)
    with (_STORE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _built() -> str:
    name = f"localhost/filestore:{_fingerprint()}"
    with _alone(), tempfile.TemporaryDirectory() as folder:
        if _is_kept(name):
            return name
        if not _is_kept(BASE):
            _make_base(Path(folder))
        # A network with an authority of its own is not the business of the image: pip reads it from the outside.
        configuration = Path(folder, "pip.conf")
        configuration.write_text("[global]\ncert = /run/authorities.pem\n")
        mounts: list[str | Path] = ["--volume", f"{configuration}:/etc/pip.conf:ro"]
        mounts += ["--volume", f"{_AUTHORITIES}:/run/authorities.pem:ro"]
        way = ["--isolation", "chroot", "--network", "host", "--pull=never", "--format", "docker"]
        _forget("localhost/*")
        _buildah("build", *way, *mounts, "--file", DEPLOY / "Containerfile", "--tag", name, ".")
    return name


def _is_kept(name: str) -> bool:
    return bool(_buildah("images", "--quiet", "--filter", f"reference={name}"))


def _forget(reference: str) -> None:
    """Remove the images of earlier states of the files, which take some hundred megabytes each."""
    for name in _buildah("images", "--quiet", "--filter", f"reference={reference}").split():
        _buildah("rmi", "--force", name)


def _fingerprint() -> str:
    """Return what tells two states of the files apart from which the image is built."""
    names = re.findall(r"^!(.+)$", (DEPLOY / "Containerfile.dockerignore").read_text(), re.MULTILINE)
    paths = [path for name in names for path in (REPOSITORY / name, *(REPOSITORY / name).rglob("*"))]
    digest = hashlib.sha256()
    for path in [DEPLOY / "Containerfile", *sorted(paths)]:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path} {path.stat().st_mode}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _make_base(folder: Path) -> None:
    tar = folder / "base.tar"
    subprocess.run(
        [debian_program("mmdebstrap"), "--quiet", "--mode=root", "--variant=minbase", "bookworm", tar],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    container = _buildah("from", "scratch")
    _buildah("add", "--quiet", container, tar, "/")
    _buildah("commit", "--quiet", "--rm", container, BASE)


def _with_systemd(name: str) -> str:
    wanted = name.replace("/filestore:", "/machine:")
    with _alone(), tempfile.TemporaryDirectory() as folder:
        if _is_kept(wanted):
            return wanted
        step = "apt-get update -qq && apt-get install -qq --yes --no-install-recommends systemd dbus"
        Path(folder, "Containerfile").write_text(f"FROM {name}\nUSER root\nRUN {step}\n")
        way = ["--isolation", "chroot", "--network", "host", "--pull=never"]
        _buildah("build", *way, "--file", Path(folder, "Containerfile"), "--tag", wanted, folder)
    return wanted


@contextmanager
def _root(name: str) -> Iterator[Path]:
    container = _buildah("from", "--pull=never", name)
    try:
        yield Path(_buildah("mount", container))
    finally:
        _buildah("umount", container)
        _buildah("rm", container)


def ended(process: subprocess.Popen[str], stop_signal: str) -> tuple[int, str, str]:
    """Stop a container by the signal of its image. Return its exit status, and both outputs."""
    process.send_signal(signal.Signals[stop_signal])
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors
