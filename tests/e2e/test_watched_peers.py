"""What a person sees of a peer: its metrics and its access log."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from filestore.backends import connect
from filestore.peers import addresses
from filestore.peers import repository as repository_module
from filestore.peers.metrics import FAMILIES
from filestore.peers.repository import PeerRepository
from tests.support.daemons import lasting_port
from tests.support.frames import buffer_for, encoded
from tests.support.generator import octets
from tests.support.peers import GET, running_peer
from tests.support.server import TOKEN, RunningServer, eventually, running_server
from tests.support.tls import CERTIFICATE

FRAMES = [encoded(octets(seed, 100_000)) for seed in range(5)]
DIGESTS = [frame.digest for frame in FRAMES]
SIZE = sum(len(frame.data) for frame in FRAMES)
ROW = re.compile(r"^\| `(filestore_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", re.MULTILINE)
PAGE = Path(__file__).parents[2] / "docs" / "peers.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has the frames."""
    with running_server(tmp_path_factory.mktemp("server") / "root") as server:
        assert 200 == server.put(FRAMES).status
        yield server


def shown(url: str) -> str:
    """The metrics of a peer."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def test_a_peer_shows_its_metrics(server: RunningServer, tmp_path: Path) -> None:
    """At an address that is named for them alone, and not where readers ask. They have no ticket and no address."""
    url = f"http://127.0.0.1:{lasting_port()}"
    with running_peer(server, tmp_path / "cache", "--metrics-listen", url.removeprefix("http://")) as peer:
        for _ in range(2):
            assert [bytes(frame.data) for frame in FRAMES] == peer.frames(DIGESTS)
        assert 401 == peer.get(DIGESTS, ticket="wrong").status
        assert 404 == peer.ask("GET", "/metrics").status
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}{GET}", data=b"", timeout=60)
        text = shown(url)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    # The labels are in the order of their names.
    values = {(sample.name, *sample.labels.values()): sample.value for each in families.values() for sample in each.samples}
    found = {
        name: values[f"filestore_{name}", *labels]
        for name, *labels in (
            ("peer_frames_given_total",),
            ("peer_frames_given_bytes_total",),
            ("peer_frames_fetched_total",),
            ("peer_frames_fetched_bytes_total",),
            ("wrong_credentials_total",),
            ("errors_total", "unauthorized"),
        )
    }
    assert [10, 2 * SIZE, 5, SIZE, 1, 1] == list(found.values())
    looks = {result: values["filestore_cache_lookups_total", "peer", result] for result in ("hit", "miss")}
    assert {"hit": 5, "miss": 5} == looks
    assert 2 == values["filestore_http_requests_total", "POST", GET, "2xx"]
    assert SIZE * 2 < values["filestore_http_sent_bytes_total", GET]
    assert 1 == values["filestore_http_requests_total", "POST", GET, "4xx"]
    assert peer.token not in text
    assert "127.0.0.1" not in text
    page = PAGE.read_text()
    described = {name: (kind, re.findall(r"`(\w+)`", labels), meaning) for name, kind, labels, meaning in ROW.findall(page)}
    own = [family for family in FAMILIES if family.name.startswith("peer_")]
    assert {family.shown_name: (family.kind.value, list(family.labels), family.meaning) for family in own} == described
    assert [] == [family.shown_name for family in FAMILIES if f"`{family.shown_name}`" not in page]
    names = {f"{name}_total" if each.type == "counter" else name for name, each in families.items()}
    assert names <= {family.shown_name for family in FAMILIES}


async def test_all_addresses_of_a_name_speak_tls(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate has the name, and not the address. One for another name is refused, and the server gives all."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    # On a busy machine, the peer is given up no earlier than the server.
    monkeypatch.setattr(repository_module, "CONNECT_SECONDS", 60)
    monkeypatch.setattr(addresses, "LOOK_UP_LIMIT_SECONDS", 60)
    with running_peer(server, tmp_path / "cache", "--tls-cert", str(CERTIFICATE), check=False) as peer:
        for name, size in (("localhost", SIZE), ("127.0.0.1", 0)):
            async with connect(server.url, token=TOKEN, peers=f"dns+https:///{name}:{peer.port}", stall_seconds=60) as repository:
                assert isinstance(repository, PeerRepository)
                found = await repository.get(DIGESTS, buffer_for(len(DIGESTS)))
                assert [frame.data for frame in FRAMES] == found
                assert size == repository.peers_size


@pytest.mark.parametrize("form", ["json", "plain"])
def test_a_peer_writes_an_access_log(server: RunningServer, tmp_path: Path, form: str) -> None:
    """In the form of the server's. No line has a ticket."""
    log = tmp_path / "access.log"
    options = ("--access-log", form, "--access-log-file", str(log))
    with running_peer(server, tmp_path / "cache", *options) as peer:
        assert 200 == peer.get(DIGESTS).status
        assert 401 == peer.get(DIGESTS, ticket="wrong-ticket").status
        answer = peer.ask("GET", "/healthz", token=None)
        eventually(lambda: log.read_text().count("\n") == 3)
        text = log.read_text()
    assert answer.headers["X-Request-Id"] in text
    for secret in (peer.token, "wrong-ticket", TOKEN):
        assert secret not in text
    if form == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        # A line is written when its answer has ended, which a client does not wait for.
        lines.sort(key=lambda line: (line["route"] != GET, line["status"]))
        got = [tuple(line[name] for name in ("method", "route", "status", "error", "namespace", "address")) for line in lines]
        assert [
            ("POST", GET, 200, "", "default", "127.0.0.1"),
            ("POST", GET, 401, "unauthorized", None, "127.0.0.1"),
            ("GET", "/healthz", 200, "", None, "127.0.0.1"),
        ] == got
        assert lines[0]["bytes_sent"] > SIZE
        assert lines[0]["bytes_received"] == 32 * len(DIGESTS)
    else:
        assert f" default 127.0.0.1 POST {GET} 200 " in text
