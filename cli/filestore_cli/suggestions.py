"""What a user may have meant by a word that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

import click

_OTHER_WORDS = {
    "add": "push",
    "clone": "fetch",
    "delete": "rm",
    "download": "fetch",
    "get": "fetch",
    "history": "log",
    "list": "ls",
    "pull": "fetch",
    "put": "push",
    "remove": "rm",
    "show": "info",
    "upload": "push",
    "verify": "check",
}
"""What other programs call some of the commands."""
_NO_COMMAND = re.compile(r"No such command '(.*)'\.\Z", re.DOTALL)
_NO_CHOICE = re.compile(r"'(.*)' is not one of ", re.DOTALL)


def suggestion(error: click.ClickException) -> str:
    """Return a question to add to the message of wrong usage, for a mistyped command or value. It is empty if nothing is near."""
    if not isinstance(error, click.UsageError) or error.ctx is None or "Did you mean" in error.format_message():
        return ""
    meant = None
    if (found := _NO_COMMAND.match(error.message)) and isinstance(error.ctx.command, click.Group):
        commands = error.ctx.command.list_commands(error.ctx)
        other = _OTHER_WORDS.get(found[1])
        meant = other if other in commands else nearest(found[1], commands)
    elif (found := _NO_CHOICE.match(error.message)) and isinstance(error, click.BadParameter) and error.param is not None:
        meant = nearest(found[1], getattr(error.param.type, "choices", ()))
    return "" if meant is None else f"{' ' if error.message.endswith('.') else '. '}Did you mean '{meant}'?"


def nearest(word: str, possible: Iterable[str]) -> str | None:
    """Return the one of the words that is most like `word`, or None if none is."""
    return next(iter(get_close_matches(word.lower(), list(possible), n=1)), None)
