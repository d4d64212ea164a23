"""The unit of docs/deploy, run by a real systemd in a root folder of its own, with the commands of docs/operating.md."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.authority import Authority, Pair
from tests.support.commands import REPOSITORY
from tests.support.deploy import DEPLOY
from tests.support.images import Machine, machine
from tests.support.server import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (REPOSITORY / "docs/operating.md").read_text()
PUSH = "FILESTORE_TOKEN=$(cat /etc/filestore/token) filestore push /etc/os-release --url {url}"


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    """A machine with the unit, and without a repository."""
    with machine() as made:
        shutil.copy(DEPLOY / "filestore.service", made.root / "etc/systemd/system/filestore.service")
        yield made


def state(booted: Machine, name: str) -> str:
    """Return a property of the unit."""
    return booted.run("systemctl", "show", "--property", name, "--value", "filestore").stdout.strip()


def log(booted: Machine) -> str:
    """Return what the server wrote to the journal."""
    return booted.run("journalctl", "--unit", "filestore", "--output", "cat", "--no-pager").stdout


def typed(booted: Machine, beginning: str) -> str:
    """Type the block of the page that begins with some words, and return what it prints."""
    found = re.search(rf"^```sh systemd\n({re.escape(beginning)}.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return shell(booted, found[1])


def shell(booted: Machine, text: str) -> str:
    """Type lines as root, and return what they print."""
    path = "PATH=/opt/filestore/bin:/usr/local/sbin:$PATH\nexport HOME=/root\ncd /root\n"
    return booted.run("bash", "-euo", "pipefail", "-c", path + text).stdout


def test_the_unit_from_its_set_up_to_its_stop(booted: Machine, tmp_path: Path) -> None:
    """Without a repository the server does not start and makes none; the lines of the page make it, once; then it serves."""
    (booted.root / "etc/filestore").mkdir(mode=0o700)
    (booted.root / "etc/filestore/token").write_text("a-token-of-an-operator\n")
    booted.run("systemctl", "start", "filestore", checks=False)
    eventually(lambda: "the folder is empty; mount the disk that belongs there" in log(booted))
    booted.run("systemctl", "stop", "filestore")
    assert [] == list((booted.root / "var/lib/private/filestore").iterdir())
    shutil.rmtree(booted.root / "etc/filestore")

    token = typed(booted, "systemd-run").splitlines()[0]
    assert len(token) >= 40
    eventually(lambda: "listening on http://127.0.0.1:8080" in log(booted))
    assert "made by" not in (listed := typed(booted, "cat >/usr/local/sbin/as-filestore"))
    assert "first" in listed
    shell(booted, PUSH.format(url="http://127.0.0.1:8080"))
    assert 1 == shell(booted, f"FILESTORE_TOKEN={token} filestore ls --url http://127.0.0.1:8080").count(" os-release\n")
    process = state(booted, "MainPID")
    status = dict(re.findall(r"^(\w+):\s+(.*)$", booted.run("cat", f"/proc/{process}/status").stdout, re.MULTILINE))
    assert ("0000000000000000", "1", "2") == (status["CapBnd"], status["NoNewPrivs"], status["Seccomp"])
    assert "0" not in status["Uid"].split()
    assert "can read the token" not in log(booted)

    booted.run("systemctl", "stop", "filestore")
    assert ["success", "0", "inactive"] == [state(booted, name) for name in ("Result", "ExecMainStatus", "ActiveState")]
    eventually(lambda: "stopping" in log(booted))
    shell(booted, "as-filestore token new --label second")
    audited = (booted.root / "var/log/private/filestore/audit.log").read_text()
    # What commands do is in the log of the service too.
    assert 2 == audited.count('"action": "token-new"')
    assert '"action": "commit"' in audited
    eventually(lambda: '"route": "/native/v1/files"' in log(booted))
    owners = {path.stat().st_uid for path in (booted.root / "var/lib/private/filestore").rglob("*")}
    assert 1 == len(owners)
    assert 0 not in owners

    # With TLS of its own, and a reload that reads a new certificate. The key is read by a group that the service has.
    authority = Authority(tmp_path / "authority")
    give(booted, authority.pair("first"), authority.path)
    typed(booted, "groupadd")
    eventually(lambda: "listening on https://0.0.0.0:8080" in log(booted))
    trusting = "SSL_CERT_FILE=/root/authority.pem "
    assert "sent        0 bytes" in shell(booted, trusting + PUSH.format(url="https://127.0.0.1:8080"))
    give(booted, authority.pair("second"), authority.path)
    shell(booted, "install --mode=0640 --group=filestore-tls cert.pem key.pem /etc/filestore-tls; systemctl reload filestore")
    eventually(lambda: "certificate" in log(booted).partition("listening on https")[2])
    assert "active" == state(booted, "ActiveState")
    assert "sent        0 bytes" in shell(booted, trusting + PUSH.format(url="https://127.0.0.1:8080"))


def give(booted: Machine, pair: Pair, authority: Path) -> None:
    """Put a certificate, and what clients need to trust it, into root's home folder there."""
    for path, name in ((pair.cert, "cert.pem"), (pair.key, "key.pem"), (authority, "authority.pem")):
        shutil.copy(path, booted.root / "root" / name)
    shutil.copy(DEPLOY / "filestore-tls.conf", booted.root / "root")
