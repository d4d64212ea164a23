"""What the lines of the access log and of the audit log say, and which requests have one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from filestore.core.scopes import Scope
from filestore.http.server.access import Access
from filestore.http.server.app import ROUTES
from filestore.http.server.request_logs import (
    ACTIONS,
    QUESTIONS,
    Allowance,
    action_of,
    audit_line,
    is_audited,
    json_left_out,
    json_line,
    plain_left_out,
    plain_line,
)
from filestore.http.server.request_record import RequestRecord
from filestore.http.server.routes.page.routes import PAGE_ROUTES
from tests.support.clock import Clock

DOCUMENT = Path(__file__).parents[2] / "docs" / "logs.md"
LABEL = 'two\nlines "and" \x1b[31m \u202e'


def record(**changed: object) -> RequestRecord:
    """Return the record of a request."""
    access = Access("team", scope=Scope.WRITE, prefix="models/", token_id="0123456789abcdef", label=LABEL)
    made = RequestRecord("1f2e", "POST", "/native/v1/files", "192.0.2.1", access, status=201, bytes_received=7, time=1.5)
    for name, value in changed.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("line", [json_line, audit_line, plain_line])
def test_a_text_of_a_client_stays_in_its_place(line: object) -> None:
    """Nothing in a label, a name or an address ends a line, adds a field, or changes a terminal."""
    given = record(address='evil "\n', facts={"name": LABEL + "\x00 \ud800"})
    text = line(given)  # type: ignore[operator]
    assert text.isascii()
    assert text.isprintable()


def test_a_line_in_json() -> None:
    """It has all fields, also without a token."""
    said = json.loads(json_line(record()))
    assert ("1970-01-01T00:00:01.500000Z", "1f2e", LABEL, "team") == tuple(
        said[key] for key in ("time", "request", "label", "namespace")
    )
    assert said.keys() == json.loads(json_line(record(access=None))).keys()


def test_a_plain_line() -> None:
    """Its words are in a fixed order. A word with other characters is a JSON text, and a dash stands for none."""
    line = plain_line(record(access=None, error="busy", status=503, seconds=0.25))
    assert "1970-01-01T00:00:01.500000Z 1f2e - - - 192.0.2.1 POST /native/v1/files 503 7 0 0.250000 busy whole" == line
    assert json.dumps(LABEL) in plain_line(record())
    assert plain_line(record(status=0)).endswith(" cut")


@pytest.mark.parametrize(
    ("changed", "result"),
    [
        ({}, "done"),
        ({"cut": True}, "cut"),
        ({"status": 0}, "cut"),
        ({"status": 403}, "denied"),
        ({"status": 401, "access": None}, "denied"),
        ({"status": 429, "error": "too-many-guesses"}, "denied"),
        ({"status": 429, "error": "too-many-uploads"}, "refused"),
        ({"status": 409}, "refused"),
        ({"status": 507}, "failed"),
    ],
)
def test_a_line_says_the_result(changed: dict[str, object], result: str) -> None:
    """The audit log says it in a word, next to the status."""
    assert result == json.loads(audit_line(record(**changed)))["result"]


def test_a_line_of_the_audit_log() -> None:
    """It has who, what, and what came of it."""
    said = json.loads(audit_line(record(facts={"record": "file_1", "name": "x", "size": 3})))
    found = {key: said[key] for key in ("action", "scope", "prefix", "is_signed", "record", "name", "size", "bytes_received")}
    assert {
        "action": "commit",
        "scope": "write",
        "prefix": "models/",
        "is_signed": False,
        "record": "file_1",
        "name": "x",
        "size": 3,
        "bytes_received": 7,
    } == found


def test_each_route_that_changes_something_has_an_action() -> None:
    """The others are questions. So is every request of a route that is not known here, if it is a GET."""
    for route in (*ROUTES, *PAGE_ROUTES):
        canonical = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)
        made = record(method=route.method, route=canonical)
        if route.method != "GET" or route.can_be_signed:
            assert (route.method, canonical) in ACTIONS.keys() | QUESTIONS, route
        assert is_audited(made) == bool(action_of(made))
        assert action_of(made) == action_of(
            record(method=route.method, route="/signed/{namespace}/{expires_at}/{signature}" + canonical)
        )
    known = {(route.method, re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)) for route in (*ROUTES, *PAGE_ROUTES)}
    assert ACTIONS.keys() | QUESTIONS <= known | {("GET", "/storage/{path}")}
    assert "POST /v4/runs" == action_of(record(method="POST", route="/v4/runs"))
    assert "" == action_of(record(method="GET", route="/v4/runs"))
    assert "read" == action_of(record(method="HEAD", route="/{path}"))
    assert "" == action_of(record(method="POST", route=""))


def test_a_denied_request_is_audited() -> None:
    """Whatever it asked for."""
    denied = record(method="GET", route="/native/v1/files", status=401, access=None)
    assert is_audited(denied)
    assert "ask" == json.loads(audit_line(denied))["action"]
    assert not is_audited(record(method="GET", route="/native/v1/files", status=200))


def test_the_actions_are_documented() -> None:
    """Each has a row in the documentation, and nothing else has."""
    table = DOCUMENT.read_text().partition("| action | what it does |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", table, flags=re.MULTILINE))
    assert {*ACTIONS.values(), "ask"} == documented


def test_the_fields_are_documented() -> None:
    """Each field of a line has a row in the documentation."""
    text = DOCUMENT.read_text()
    fields = {*json.loads(audit_line(record())), *json.loads(json_line(record())), *json.loads(json_left_out(1))}
    facts = {"record", "name", "digest", "size", "chunk", "chunks", "upload", "part", "alias"}
    assert [] == sorted(field for field in fields | facts if f"`{field}`" not in text)


def test_left_out_lines_are_told() -> None:
    """In both forms."""
    assert 3 == json.loads(json_left_out(3))["left_out"]
    assert ["left-out", "3"] == plain_left_out(3).split()[1:3]


def test_an_allowance_refills() -> None:
    """A burst, and then so many in each second."""
    clock = Clock()
    allowance = Allowance(5, 2.0, clock=clock)
    assert 5 == sum(allowance.take() for _ in range(20))
    clock.now += 1
    assert 2 == sum(allowance.take() for _ in range(20))
    clock.now += 1000
    assert 5 == sum(allowance.take() for _ in range(20))
