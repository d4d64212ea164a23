"""Somebody without a token sends so many requests that their lines fill the disk."""

from __future__ import annotations

import json
from pathlib import Path

from filestore.http.server.access import Access
from filestore.http.server.request_logs import STRANGERS_BURST, STRANGERS_RATE, LogOptions, request_logs
from filestore.http.server.request_record import RequestRecord

COUNT = 5 * STRANGERS_BURST


def test_a_flood_of_refused_requests(tmp_path: Path) -> None:
    """The first lines are written, then a few in each second. The others are counted. Requests with a token keep theirs."""
    options = LogOptions(access_log="json", access_log_file=tmp_path / "access", audit_log=tmp_path / "audit")
    with request_logs(options) as observers:
        for number in range(COUNT):
            refused = RequestRecord(
                f"stranger-{number}", "POST", "/v3/pipeline_files", "192.0.2.1", status=401, error="unauthorized"
            )
            for observe in observers:
                observe(refused)
        known = RequestRecord("known", "POST", "/v3/pipeline_files", "192.0.2.2", Access("team"), status=201)
        for observe in observers:
            observe(known)
    for name in ("access", "audit"):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        written = sum(line.get("request", "").startswith("stranger") for line in lines)
        assert STRANGERS_BURST <= written < STRANGERS_BURST + 60 * STRANGERS_RATE
        assert COUNT == written + sum(line.get("left_out", 0) for line in lines)
        assert 1 == sum(line.get("request") == "known" for line in lines)
