"""The measurement of a user's server, as lines for a person and as the object that --json prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from filestore.http.client.repository import default_connections
from filestore_cli.bench.limits import Limit, limit_of
from filestore_cli.bench.remote import LinkRates, RemoteResult
from filestore_cli.bench.report import facts_of, machine, run_json
from filestore_cli.bench.run import Plan, connection_count
from filestore_cli.text import for_display, in_units, table


class _Row(NamedTuple):
    what: str
    rate: float
    link: LinkRates
    limit: Limit | None


def as_json(plan: Plan, found: RemoteResult) -> dict[str, object]:
    """Return the whole result as a JSON object. Rates are bytes a second."""
    result = found.as_bench_result()
    here = machine()
    return {
        "server": found.url,
        "kind": plan.kind,
        "size": found.size,
        "codec": plan.codec,
        "connections": (plan.link["connections"] or default_connections()),
        "machine": here._asdict(),
        "ceilings": dict(found.ceilings),
        "round_trip_seconds": found.round_trip_seconds,
        "link": {"send": found.send._asdict(), "receive": found.receive._asdict()},
        "push": run_json(plan._replace(verb="upload"), result, found.push),
        "fetch": run_json(plan._replace(verb="fetch"), result, found.fetch),
        "plain_upload_rate": found.upload_rate,
        "plain_download_rate": found.download_rate,
        "records_removed": found.removed,
        "line": report_line(plan, found),
    }


def lines(plan: Plan, found: RemoteResult) -> Iterator[str]:
    """Yield the whole result as lines for a person."""
    here = machine()
    connections = connection_count(plan.link)
    yield f"{here.cores} cores, {here.system}, Python {here.python}, filestore {here.filestore}"
    yield from table(
        server=for_display(found.url),
        content=f"{in_units(found.size)} of {plan.kind}",
        round_trip=f"{found.round_trip_seconds * 1000:.1f} ms",
        link_up=_link_text(found.send, connections),
        link_down=_link_text(found.receive, connections),
    )
    yield ""
    yield f"{'':<16}{'content':>12}{'of the link':>13}"
    for row in _rows(plan, found):
        yield f"{row.what:<16}{_rate(row.rate):>12}{row.rate / row.link.best:>12.2f}x"
    yield ""
    for row in _rows(plan, found):
        if row.limit is not None:
            yield f"{row.what} is limited by {row.limit.what}: {row.limit.reason}"
    yield f"Removed again: {found.removed} records, and the chunks that no other record needs."
    yield ""
    yield "For a report:"
    yield report_line(plan, found)


def report_line(plan: Plan, found: RemoteResult) -> str:
    """Return the result in one line, without the URL of the server."""
    here = machine()
    push, fetch, *_ = _rows(plan, found)
    limits = [f"{row.what} {_rate(row.rate)} (limit: {row.limit.what})" for row in (push, fetch) if row.limit is not None]
    return ", ".join(
        [
            f"filestore {here.filestore}",
            f"{in_units(found.size)} of {plan.kind}",
            f"round trip {found.round_trip_seconds * 1000:.1f} ms",
            f"link {_rate(found.send.best)} up and {_rate(found.receive.best)} down",
            *limits,
            f"plain upload {_rate(found.upload_rate)}",
            f"plain download {_rate(found.download_rate)}",
            f"{here.cores} cores at the client",
        ]
    )


def _rows(plan: Plan, found: RemoteResult) -> list[_Row]:
    result = found.as_bench_result()
    push = limit_of(facts_of(plan._replace(verb="upload"), result, found.push))
    fetch = limit_of(facts_of(plan._replace(verb="fetch"), result, found.fetch))
    return [
        _Row("push", found.push.rate, found.send, push),
        _Row("fetch", found.fetch.rate, found.receive, fetch),
        _Row("plain upload", found.upload_rate, found.send, None),
        _Row("plain download", found.download_rate, found.receive, None),
    ]


def _link_text(rates: LinkRates, connections: int) -> str:
    return f"{_rate(rates.alone)} by one connection, {_rate(rates.together)} by {connections}"


def _rate(rate: float) -> str:
    """Return a rate. Links are slower than this machine, so the unit follows the rate."""
    return f"{in_units(rate)}/s"
