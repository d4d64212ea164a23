"""A real server shows its metrics, which Prometheus' own tools read. The page, the dashboard and the alerts agree with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from filestore.http.server.metric_families import FAMILIES, LOOKED_AT, Family, Kind
from tests.support.daemons import lasting_port
from tests.support.frames import encoded, manifest
from tests.support.generator import octets
from tests.support.prometheus import metric_names, program, promtool
from tests.support.server import OTHER_TOKEN, TOKEN, RunningServer, batch, eventually, running_server
from tests.support.uploads import PartsUpload

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `(filestore_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", re.MULTILINE)
CONTENTS = [octets(seed, 300_000) for seed in range(3)]
FRAMES = [encoded(content) for content in CONTENTS]
OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of two processes, which has done some work."""
    root = tmp_path_factory.mktemp("served") / "root"
    with running_server(root, workers=2, check=False) as server:
        server.missing([frame.digest for frame in FRAMES])
        assert 200 == server.put(FRAMES).status
        assert [] == server.missing([frame.digest for frame in FRAMES])
        stored = server.commit(manifest(CONTENTS).encoded, name="model.bin").json
        for _ in range(2):
            assert b"".join(CONTENTS) == server.ask("GET", f"/{stored['path']}").body
        assert 401 == server.ask("GET", "/native/v1/repository", token="wrong").status
        assert 404 == server.ask("GET", "/native/v1/files/file_00000000000000000000000000000000").status
        upload = PartsUpload(server, "parts.bin")
        upload.put(1, b"y" * 300_000)
        # A process may count a request after its client has the answer.
        eventually(lambda: own_request_count(server) == 11)
        yield server


def values_of(text: bytes) -> Values:
    """All samples of a text, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def metrics(server: RunningServer) -> Values:
    """The samples that a server shows now."""
    answer = server.ask("GET", "/metrics")
    assert 200 == answer.status
    return values_of(answer.body)


def own_request_count(server: RunningServer) -> float:
    """How many requests a server has counted that did not ask for its metrics."""
    values = metrics(server)
    return total(values, "http_requests_total") - total(values, "http_requests_total", route="/metrics")


def value(values: Values, name: str, **labels: str) -> float:
    """The value of one sample."""
    return values[f"filestore_{name}", frozenset(labels.items())]


def total(values: Values, name: str, **labels: str) -> float:
    """The sum of all samples of a metric that have these labels."""
    return sum(found for (each, kept), found in values.items() if each == f"filestore_{name}" and labels.items() <= kept)


def test_the_metrics_say_what_was_done(server: RunningServer) -> None:
    """The numbers are exact, whichever process answers."""
    for _ in range(4):
        values = metrics(server)
        route = {"route": "/native/v1/chunks", "method": "POST"}
        assert 1 == value(values, "http_requests_total", **route, status="2xx")
        assert 1 == value(values, "http_request_duration_seconds_count", route="/native/v1/chunks")
        assert 1 == total(values, "http_requests_total", route="/native/v1/repository", status="4xx")
        assert (3, 900_000) == (value(values, "chunks_stored_total"), value(values, "chunks_stored_content_bytes_total"))
        assert sum(len(frame.data) for frame in FRAMES) == value(values, "chunks_stored_frame_bytes_total")
        assert (3, 900_000) == (value(values, "chunks_shared_total"), value(values, "chunks_shared_content_bytes_total"))
        assert (1, 900_000) == (value(values, "files_stored_total"), value(values, "files_stored_bytes_total"))
        assert (1, 1) == (value(values, "errors_total", error="unauthorized"), value(values, "errors_total", error="not-found"))
        assert 1 == value(values, "wrong_credentials_total")
        # Each of the two processes reads the manifest once, if both are asked.
        assert 2 == total(values, "cache_lookups_total", cache="manifests")
        assert 1 <= value(values, "cache_lookups_total", cache="manifests", result="miss")
        assert len(batch(FRAMES)) == value(values, "http_received_bytes_total", route="/native/v1/chunks")
        assert 2 * 900_000 == value(values, "http_sent_bytes_total", route="/{path}")
        assert 900_000 <= value(values, "stage_bytes_total", stage="verify")
        assert (2, 2) == (value(values, "processes"), total(values, "process_starts_total"))
        for name, expected in {"files": 1, "names": 1, "content_bytes": 900_000, "chunks": 3}.items():
            assert expected == value(values, f"namespace_{name}", namespace="default")
        assert 1 == value(values, "uploads_open")
        assert 300_000 <= value(values, "uploads_open_bytes")
        assert value(values, "disk_min_free_bytes") < value(values, "disk_size_bytes")
        assert (server.root / "index.sqlite").stat().st_size <= value(values, "index_size_bytes")
        assert 0 == value(values, "numbers_left_out_total")
        assert all(value(values, "process_resident_memory_bytes", process=place) > 1 << 20 for place in "01")


def test_the_page_has_every_metric(server: RunningServer) -> None:
    """With its kind, its labels and its meaning. A server shows no other one."""
    page = (DOCS / "metrics.md").read_text()
    described = {name: (kind, re.findall(r"`(\w+)`", labels), meaning) for name, kind, labels, meaning in ROW.findall(page)}
    assert {family.shown_name: (family.kind.value, list(family.labels), family.meaning) for family in FAMILIES} == described
    shown = {}
    for family in text_string_to_metric_families(server.ask("GET", "/metrics").body.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        shown[name] = (family.type, family.documentation)
    assert shown == {name: (described[name][0], described[name][2]) for name in shown}
    # What has labels may have no sample yet.
    assert [] == [family.shown_name for family in FAMILIES if not family.labels and family.shown_name not in shown]
    # No collection and no scrub has ended here, no line of a log was left out, and the server has no certificate.
    idle = {family.shown_name for family in LOOKED_AT if family.labels}
    idle |= {"filestore_collections_total", "filestore_log_lines_left_out_total"}
    idle |= {"filestore_tls_certificate_expiry_timestamp_seconds"}
    assert set(described) - set(shown) <= idle


def test_samples_have_the_labels_of_the_page(server: RunningServer) -> None:
    """All of them, and no other ones, apart from those of buckets."""
    families: Mapping[str, Family] = {family.shown_name: family for family in FAMILIES}
    for name, labels in metrics(server):
        family = families.get(name) or families[name.rsplit("_", 1)[0]]
        expected = {*family.labels, "le"} if name.endswith("_bucket") else set(family.labels)
        assert expected == {label for label, _ in labels}


def test_promtool_has_no_complaint(server: RunningServer) -> None:
    """About names, kinds, units and help."""
    promtool("check", "metrics", text=server.ask("GET", "/metrics").body)


def test_the_format_is_the_one_that_is_asked_for(server: RunningServer) -> None:
    """Prometheus' text by default. HEAD has no body."""
    plain = server.ask("GET", "/metrics")
    assert "text/plain; version=0.0.4; charset=utf-8" == plain.headers["Content-Type"]
    other = server.ask("GET", "/metrics", headers={"Accept": OPEN_METRICS})
    assert other.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert other.body.endswith(b"# EOF\n")
    assert b"" == server.ask("HEAD", "/metrics").body


def test_only_an_operator_reads_them(server: RunningServer) -> None:
    """The numbers are those of all namespaces: neither a tenant nor a stranger reads them."""
    refused = server.ask("GET", "/metrics", token=OTHER_TOKEN)
    assert (403, "forbidden") == (refused.status, refused.slug)
    assert 401 == server.ask("GET", "/metrics", token=None).status


@pytest.mark.slow
def test_a_worker_that_dies_takes_no_counter_with_it(tmp_path: Path) -> None:
    """The one that takes its place goes on. Its gauges begin with nothing, and both are the same server."""
    with running_server(tmp_path / "root", workers=2, check=False) as server:
        for seed in range(6):
            assert 200 == server.put([encoded(octets(seed, 1000))]).status
        eventually(lambda: own_request_count(server) == 6)
        before = metrics(server)
        (worker, *_) = sorted(workers_of(server.pid))
        with server.connection():
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: total(metrics_or_none(server), "process_starts_total") == 3)
        values = metrics(server)
        for name in ("http_requests_total", "chunks_stored_total", "chunks_stored_content_bytes_total"):
            assert total(values, name, route="/native/v1/chunks") == total(before, name, route="/native/v1/chunks")
        assert 6 == value(values, "chunks_stored_total")
        shrunk = {key for key, amount in before.items() if is_counter(key[0]) and values.get(key, 0) < amount}
        assert set() == shrunk
        eventually(lambda: 1 == value(metrics_or_none(server), "http_connections"))


def metrics_or_none(server: RunningServer) -> Values:
    """The samples of a server, or none while the process that was asked has just died."""
    try:
        return metrics(server)
    except ConnectionError:
        return {("filestore_http_connections", frozenset()): -1.0}


def is_counter(name: str) -> bool:
    """Whether a sample only grows."""
    return name.endswith(("_total", "_bucket", "_count", "_sum"))


def workers_of(parent: int) -> list[int]:
    """The worker processes of a server."""
    return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))


# The dashboard and the alerts.


def expressions(panel: Any) -> Iterator[str]:
    """All expressions in the JSON of a dashboard."""
    if isinstance(panel, dict):
        if isinstance(panel.get("expr"), str):
            yield panel["expr"]
        for inner in panel.values():
            yield from expressions(inner)
    elif isinstance(panel, list):
        for inner in panel:
            yield from expressions(inner)


def exported_names() -> set[str]:
    """The names that expressions may use. A histogram has three."""
    names = {family.shown_name for family in FAMILIES if family.kind is not Kind.HISTOGRAM}
    histograms = [family.shown_name for family in FAMILIES if family.kind is Kind.HISTOGRAM]
    return names | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


def test_the_dashboard_uses_metrics_that_exist(tmp_path: Path) -> None:
    """Each expression is one of PromQL, by promtool, and each panel has a title, a unit and a place of its own."""
    board = json.loads((DOCS / "deploy" / "grafana-dashboard.json").read_text())
    found = list(expressions(board))
    assert len(found) > 30
    assert set() == set().union(*map(metric_names, found)) - exported_names()
    assert {"filestore_build_info"} == metric_names(board["templating"]["list"][1]["query"])
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["title"] for panel in board["panels"])
    # Grafana puts these in before Prometheus sees an expression.
    written = [found.replace("$__rate_interval", "5m").replace("$instance", ".*") for found in found]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(written)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_alerts_use_metrics_that_exist() -> None:
    """Each has a severity, a summary and a description."""
    rules = yaml.safe_load((DOCS / "deploy" / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert set() == set().union(*(metric_names(rule["expr"]) for rule in rules)) - exported_names()
    for rule in rules:
        assert {"summary", "description"} == set(rule["annotations"])
        assert rule["labels"]["severity"] in {"critical", "warning"}
    promtool("check", "rules", DOCS / "deploy" / "alerts.yaml")


@pytest.mark.slow
def test_the_alerts_pass_their_own_tests() -> None:
    """Promtool computes them over series that are made up."""
    promtool("test", "rules", DOCS / "deploy" / "alerts-test.yaml")


@pytest.mark.slow
def test_prometheus_reads_a_server(server: RunningServer, tmp_path: Path) -> None:
    """With the configuration of the page, the real program stores the series, and knows all our alerts."""
    page = (DOCS / "metrics.md").read_text()
    shown = re.search(r"```yaml\n(scrape_configs:.*?)```", page, re.DOTALL)
    assert shown is not None
    (tmp_path / "token").write_text(TOKEN)
    written = (
        shown[1].replace("/etc/prometheus/filestore-token", str(tmp_path / "token")).replace("scheme: https", "scheme: http")
    )
    written = written.replace("models.example:443", f"127.0.0.1:{server.port}")
    written = written.replace("/etc/prometheus/filestore/alerts.yaml", str(DOCS / "deploy" / "alerts.yaml"))
    (tmp_path / "prometheus.yml").write_text(f"global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n{written}")
    promtool("check", "config", tmp_path / "prometheus.yml")
    port = lasting_port()
    options = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [program("prometheus"), *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        ) as prometheus,
    ):
        try:

            def ask(path: str) -> Any:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
                    return json.load(answer)["data"]

            seen: list[object] = []

            def has_read() -> bool:
                try:
                    found = ask("query?query=filestore_files_stored_total")["result"]
                    states = [(target["health"], target["lastError"]) for target in ask("targets?state=active")["activeTargets"]]
                    alerts = {alert["labels"]["alertname"] for alert in ask("alerts")["alerts"]}
                except OSError:
                    return False
                # How full the disk of this machine is, others decide.
                alerts -= {"FilestoreDiskFull", "FilestoreDiskFillsSoon"}
                seen[:] = [each["value"][1] for each in found], states, alerts
                return seen == [["1"], [("up", "")], set()]

            # On a busy machine, a scrape may take longer than its second, until the next one.
            eventually(has_read, lambda: seen)
            assert 11 == len(ask("rules")["groups"][0]["rules"])
        finally:
            prometheus.terminate()
