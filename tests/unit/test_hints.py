"""What the command line advises about an error."""

from __future__ import annotations

import pytest

from filestore.errors import DamagedRecord, FilestoreError, StorageFull
from filestore_cli.hints import explained


@pytest.mark.parametrize(
    ("file_id", "command"),
    [
        ("file_317e304de816403686b27ad82b208b70", "`filestore rm file_317e304de816403686b27ad82b208b70`"),
        ("x; rm -rf ~", "`filestore rm 'x; rm -rf ~'`"),
    ],
)
def test_a_server_cannot_add_to_a_command(file_id: str, command: str) -> None:
    """A fact in a command is quoted for the shell, since a user copies the command and a server chose the fact."""
    assert explained(DamagedRecord(file_id, "model.bin", "why")).endswith(f"; {command} removes the record")


def test_the_id_of_a_failed_request_is_printed() -> None:
    """With it, the person who runs the server finds the cause. It is printed once."""
    error = StorageFull("the server's disk", "no space is left")
    plain = explained(error)
    error.request_id = "1f2e"
    assert f"{plain} (request 1f2e; the server's log has more)" == explained(error)
    failed = FilestoreError("the server failed; its log says why, under the request 1f2e")
    failed.request_id = "1f2e"
    assert str(failed) == explained(failed)
