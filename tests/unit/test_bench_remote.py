"""How the measurement of a server of the user is told, with figures that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from filestore.system.metrics import Stage, StageTotals, Usage
from filestore_cli.bench.command import bench
from filestore_cli.bench.link import Address, PlainConnection
from filestore_cli.bench.remote import SIZE_MAX, SIZE_MIN, LinkRates, RemoteResult, _size_for
from filestore_cli.bench.remote_report import as_json, lines, report_line
from filestore_cli.bench.run import Link, Measurement, Plan, Side

LINK: Link = {
    "connections": 4,
    "processes": None,
    "transfer_memory": None,
    "stall_seconds": 30.0,
    "retry_seconds": 300.0,
    "tls_client_cert": None,
    "tls_client_key": None,
}
PLAN = Plan("upload", "bf16", None, [1 << 30], [1], None, 1, Path("/tmp"), "auto", LINK)
GB = 10**9


def result(*, push_seconds: float) -> RemoteResult:
    """A gigabyte over a link of 1 Gbit/s, to a server that does not tell its numbers."""
    client = Side([Usage(1.0, 1 << 26, 0.5)], 1 << 26, {Stage.WAIT: StageTotals(1, 0, 3.0, 0.1)})

    def moved(seconds: float) -> Measurement:
        return Measurement(GB, 1, seconds, 670_000_000, 0, client, None, None)

    return RemoteResult(
        size=GB,
        round_trip_seconds=0.0123,
        send=LinkRates(110e6, 119e6),
        receive=LinkRates(118e6, 117e6),
        push=moved(push_seconds),
        fetch=moved(12.0),
        upload_rate=95e6,
        download_rate=116e6,
        removed=2,
        ceilings={"memory_copy": 1e10, "blake3": 4e9, "loopback": 2e9, "disk_write_sync": 1e9},
        url="https://models.example.com",
    )


def remote_plan() -> Plan:
    """A plan for a server of the user."""
    from filestore_cli.bench.processes import Server

    return PLAN._replace(server=Server("https://models.example.com", "a-token"))


def test_the_line_for_a_report_names_what_limits() -> None:
    """And no server and no token."""
    line = report_line(remote_plan(), result(push_seconds=5.8))
    assert "round trip 12.3 ms, link 119 MB/s up and 118 MB/s down, push 172 MB/s (limit: link), fetch 83.3 MB/s" in line
    assert "(limit: waiting), plain upload 95.0 MB/s, plain download 116 MB/s" in line
    assert "example.com" not in line
    assert "\n" not in line


def test_a_person_reads_rates_as_parts_of_the_link() -> None:
    """In 80 columns, but for reasons."""
    told = list(lines(remote_plan(), result(push_seconds=5.8)))
    assert "push                172 MB/s        1.45x" in told
    assert "plain download      116 MB/s        0.98x" in told
    assert "link up     110 MB/s by one connection, 119 MB/s by 4" in told
    assert "push is limited by link: 97% of what it carries alone" in told
    assert all(len(line) <= 80 for line in told[:-1] if " limited by " not in line)


def test_the_object_has_rates_in_bytes_a_second() -> None:
    """And the same line."""
    found = result(push_seconds=20.0)
    told = as_json(remote_plan(), found)
    assert {"send": {"alone": 110e6, "together": 119e6}, "receive": {"alone": 118e6, "together": 117e6}} == told["link"]
    assert report_line(remote_plan(), found) == told["line"]


@pytest.mark.parametrize(("rate", "size"), [(1e3, SIZE_MIN), (12_500_000, 119 << 20), (1e12, SIZE_MAX)])
def test_the_size_is_what_the_link_carries_in_ten_seconds(rate: float, size: int) -> None:
    """Within bounds."""
    assert size == _size_for(rate)


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["--server", "http://127.0.0.1:1"], "remote"),
        (["upload", "--server", "http://127.0.0.1:1"], "upload"),
        (["fetch"], "fetch"),
    ],
)
def test_options_without_a_command_are_those_of_remote(given: list[str], command: str) -> None:
    """The help of the group stays its own."""
    context = bench.make_context("bench", list(given))
    assert command == (context._protected_args or context.args)[0]


def test_a_plain_request_for_http_goes_to_the_proxy_with_the_whole_url() -> None:
    """A request for https:// asks it for a tunnel."""
    plain = Address("http://models.example.com/below", "a-token", "http://user:word@127.0.0.1:8", (None, None), 30.0)
    with PlainConnection(plain) as connection:
        assert ("127.0.0.1", 8) == (connection._connection.host, connection._connection.port)
        assert "http://models.example.com/below" == connection._prefix
        assert "Basic dXNlcjp3b3Jk" == connection._headers["Proxy-Authorization"]
    with PlainConnection(plain._replace(url="https://models.example.com")) as connection:
        held = vars(connection._connection)
        assert ("models.example.com", 443) == (held["_tunnel_host"], held["_tunnel_port"])
        assert "Proxy-Authorization" not in connection._headers
