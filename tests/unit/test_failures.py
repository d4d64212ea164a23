"""What a command with several arguments notes of those that fail."""

from __future__ import annotations

from filestore.errors import TargetError, Unreachable
from filestore_cli.several import Failures


def _fail(error: Exception) -> None:
    raise error


def test_a_server_that_is_gone_stays_gone() -> None:
    """Another failure after it, such as that of a target, does not make the command wait for the server again."""
    lines: list[str] = []
    failures = Failures(lines.append)
    for given, error in (("a", Unreachable("http://example", "no route")), ("b", TargetError("b", "a folder is there"))):
        with failures.of(given):
            _fail(error)
    assert [] == list(failures.each(["c"], str))
    assert ["a", "b", "c"] == [failure.given for failure in failures.found]
    assert "Error: c: it was not tried" == lines[-1]
