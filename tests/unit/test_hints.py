"""What the command line advises about an error."""

from __future__ import annotations

import pytest

from filestore.errors import DamagedRecord
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
