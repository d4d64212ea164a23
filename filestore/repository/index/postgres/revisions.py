"""The revisions of the tables of an index in PostgreSQL. Each is a module of `migrations.versions`."""

from __future__ import annotations

REVISION = "0001"
"""The newest one, which this version of filestore uses."""
KNOWN_REVISIONS = (REVISION,)
"""All of them, the oldest first. In their text, a newer one is larger."""
REVISION_CHECK_STATE = "FS001"
"""The SQLSTATE of the error of the function `check_revision`, if the tables have a newer revision."""
