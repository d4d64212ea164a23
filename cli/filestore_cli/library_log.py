"""Show what the library writes to its log during a command, as the command's own warnings look."""

from __future__ import annotations

import logging

from filestore.errors import redact_secrets
from filestore_cli.start import say


class CommandHandler(logging.Handler):
    """Prints each record as one line on standard error, such as `Warning: the folder ...`."""

    def __init__(self, *, is_quiet: bool) -> None:
        """With `is_quiet`, warnings are not printed."""
        super().__init__(logging.ERROR if is_quiet else logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(redact_secrets(record.getMessage()).split()).rstrip(".")
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f" ({type(error).__name__}: {' '.join(redact_secrets(str(error)).split())})"
        say(f"{record.levelname.capitalize()}: {text}{why}.")


def show_library_log(*, is_quiet: bool) -> None:
    """Show warnings and errors of the library, unless the command has a log of its own, as a server has."""
    logging.lastResort = CommandHandler(is_quiet=is_quiet)
