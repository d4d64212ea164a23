"""Write into the audit log of a server what commands change in its folder without the server."""

from __future__ import annotations

import json
import os
import time
from pwd import getpwuid

from filestore.core.timestamps import format_seconds
from filestore_cli.settings import Settings
from filestore_cli.start import say
from filestore_cli.text import for_display


def audit(settings: Settings, action: str, facts: dict[str, object]) -> None:
    """Write a line, if the settings name an audit log. A log that cannot be written gives a warning, because the work is done."""
    if settings.audit_log is None:
        return
    from filestore.http.server.log_file import LogFile  # heavy

    said = {"time": format_seconds(time.time()), "action": action, "result": "done", "user": user_name(), **facts}
    path = settings.audit_log.absolute()
    try:
        log = LogFile(path, size_limit=settings.audit_log_size)
        try:
            written = log.append([f"{json.dumps(said)}\n".encode()])
        finally:
            log.close()
        reason = "" if written else "no space is left for a line"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        say(f"Warning: the audit log {for_display(str(path))} cannot be written: {for_display(reason)}.")


def user_name() -> str:
    """Return the name of the user who runs the command, or their number."""
    try:
        return getpwuid(os.getuid()).pw_name
    except KeyError:  # as in many containers
        return str(os.getuid())
