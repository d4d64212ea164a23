"""The image of docs/deploy/Containerfile: its steps are executed, and its containers run."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.authority import Authority
from tests.support.commands import Home
from tests.support.daemons import lasting_port
from tests.support.generator import octets
from tests.support.images import Image, ended, image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZE_LIMIT = 250_000_000
"""Bytes that the image may have beyond its base."""


@pytest.fixture(scope="module")
def built() -> Iterator[Image]:
    """The image, built by the steps of the file."""
    with image() as made:
        yield made


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An empty volume, as an engine makes it: with the owner of the folder in the image."""
    folder = tmp_path / "volume"
    subprocess.run(["install", "--directory", "--owner=10001", "--group=10001", "--mode=0700", folder], check=True)
    for parent in folder.parents:
        if parent.stat().st_uid == 0 and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


def line(process: subprocess.Popen[str], beginning: str) -> str:
    """Read what a container says up to a line, and return the rest of that line."""
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith(beginning):
            return said.removeprefix(beginning).strip()
    raise AssertionError(process.communicate())


def test_a_container_takes_and_gives_files_and_stops_at_its_signal(
    built: Image, volume: Path, home: Home, tmp_path: Path
) -> None:
    """The set-up makes the repository; then the server runs without rights on a file system that cannot be written."""
    made = built.run(volume, [*built.config["Entrypoint"], "token", "new", "--create", "--label", "first"])
    assert 0 == made.returncode, made.stderr
    port = {"FILESTORE_PORT": str(lasting_port())}
    check = built.config["Healthcheck"]["Test"]
    assert "CMD" == check[0]
    source, target = tmp_path / "weights.bin", tmp_path / "back.bin"
    source.write_bytes(octets(3, 3_000_000))

    server = built.start(volume, ["serve"], environ=port)
    line(server, "listening on ")
    environ = {"FILESTORE_URL": f"http://127.0.0.1:{port['FILESTORE_PORT']}", "FILESTORE_TOKEN": made.stdout.strip()}
    assert 3_000_000 == home.result("push", source, environ=environ)["size"]
    home.result("fetch", "weights.bin", "-o", target, environ=environ)
    healthy = built.run(volume, check[1:], environ=port)
    ready = built.run(volume, [*check[1:], "/readyz"], environ=port)
    status = dict(re.findall(r"^(\w+):\s+(.*)$", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE))
    code, _, errors = ended(server, built.config["StopSignal"])
    stopped = built.run(volume, check[1:], environ=port)

    assert source.read_bytes() == target.read_bytes()
    assert [0, 0, 1] == [check.returncode for check in (healthy, ready, stopped)], healthy.stderr + ready.stderr
    assert ("10001\t10001\t10001\t10001", "0000000000000000", "1") == (status["Uid"], status["CapBnd"], status["NoNewPrivs"])
    assert 0 == code, errors


def test_a_container_says_how_to_let_other_machines_in_and_its_check_knows_each_way(
    built: Image, volume: Path, tmp_path: Path
) -> None:
    """As the image starts it, the server is refused until one of the three ways is chosen; the check of the image follows."""
    built.run(volume, [*built.config["Entrypoint"], "token", "new", "--create"])
    authority = Authority(tmp_path / "authority")
    pair = authority.pair("server")
    # The only folder that the container shares with this machine is its volume, and these files do not disturb a repository.
    names = {"FILESTORE_TLS_CERT": pair.cert, "FILESTORE_TLS_KEY": pair.key, "FILESTORE_TLS_CLIENT_CA": authority.path}
    for path in names.values():
        subprocess.run(["install", "--owner=10001", "--group=10001", "--mode=0400", path, volume / path.name], check=True)
    mounted = {name: f"{built.volume}/{path.name}" for name, path in names.items()}
    tls = {name: path for name, path in mounted.items() if name != "FILESTORE_TLS_CLIENT_CA"}
    port = {"FILESTORE_PORT": str(lasting_port())}

    refused = built.start(volume, environ=port)
    _, errors = refused.communicate(timeout=60)
    assert 1 == refused.returncode
    assert [] == [option for option in ("--tls-cert", "--tls-by-proxy", "--insecure") if option not in errors], errors
    for way in ({"FILESTORE_INSECURE": "1"}, {"FILESTORE_TLS_BY_PROXY": "192.0.2.1,127.0.0.1"}, tls, mounted):
        server = built.start(volume, environ=port | way)
        line(server, "listening on ")
        checked = built.run(volume, built.config["Healthcheck"]["Test"][1:], environ=port)
        ended(server, built.config["StopSignal"])
        assert 0 == checked.returncode, (way, checked.stderr)


def test_an_empty_volume_is_refused_and_stays_empty(built: Image, volume: Path) -> None:
    """A volume that was not mounted must not become a new repository without its files."""
    server = built.start(volume, ["serve"])
    _, errors = server.communicate(timeout=60)

    assert 1 == server.returncode
    assert "the folder is empty; mount the disk that belongs there" in errors, errors
    assert [] == list(volume.iterdir())


def test_the_image_says_who_runs_where(built: Image) -> None:
    """What an engine reads from it."""
    config = built.config
    assert ("10001:10001", "SIGTERM", ["filestore"]) == (config["User"], config["StopSignal"], config["Entrypoint"])
    assert ({"8080/tcp": {}}, {"/var/lib/filestore": {}}) == (config["ExposedPorts"], config["Volumes"])


def test_the_image_has_nothing_that_only_its_build_needs(built: Image) -> None:
    """Neither lists of packages, nor pip, nor caches, nor tests; and what it adds to its base is small."""
    root = built.root
    site = root / "opt/filestore/lib/python3.11/site-packages"
    leftovers = [
        *root.glob("var/lib/apt/lists/*"),
        *root.glob("var/cache/*"),
        *root.glob("var/log/*.log"),
        *root.glob("root/.cache"),
        *root.glob("tmp/*"),
        *root.glob("source"),
        *site.glob("pip"),
        *site.glob("numpy/**/tests"),
        *root.glob("usr/share/doc/*"),
    ]
    added = subprocess.run(
        ["du", "--bytes", "--summarize", root / "opt", root / "usr/lib/python3.11"], capture_output=True, text=True, check=True
    )

    assert [] == leftovers
    assert SIZE_LIMIT > sum(int(line.split()[0]) for line in added.stdout.splitlines())


def test_every_file_of_the_program_can_be_read_by_its_user(built: Image) -> None:
    """Whatever the umask of whoever builds the image; and its user can change none of them."""
    found = subprocess.run(
        ["find", built.root / "opt/filestore", "-not", "-type", "l", "(", "-not", "-perm", "-o+r", "-o", "-perm", "/o+w", ")"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "" == found.stdout
