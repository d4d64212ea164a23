"""Where the token of a command comes from, if a file has it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from filestore.errors import InvalidSetting
from filestore_cli.settings import option_of, parse_setting, setting_definitions
from filestore_cli.start import say
from filestore_cli.text import for_display

SIZE_LIMIT = 4096
SHORT_LENGTH = 16
"""A token with fewer characters can be guessed."""

_TOKEN, _FILE = "token", "token_file"


class _Place(NamedTuple):
    """A place that may name a token, or a file that has it."""

    given: Mapping[str, object]
    words: Mapping[str, str]
    """How the user knows the two settings there."""


def with_token_of_file(
    options: Mapping[str, object], environ: Mapping[str, str], file: Mapping[str, object], *, file_path: str
) -> Mapping[str, object]:
    """Return the options with the token of a token file, if the first place that names a token names such a file.

    The places are the options, the environment and the configuration file, in this order. Raises InvalidSetting.
    """
    place = _first_place(options, environ, file, file_path=file_path)
    if place is None or place.given.get(_FILE) is None:
        return options
    words = place.words
    if place.given.get(_TOKEN) is not None:
        raise InvalidSetting(words[_FILE], f"{words[_TOKEN]} gives a token too; give one of them")
    path: Path = parse_setting(_FILE, place.given[_FILE], source=words[_FILE])
    return {**options, _TOKEN: read_token(path, source=words[_FILE])}


def token_source(
    options: Mapping[str, object], environ: Mapping[str, str], file: Mapping[str, object], *, file_path: str
) -> str | None:
    """Return where the token of a command is from, in the words of its user. None if there is none."""
    place = _first_place(options, environ, file, file_path=file_path)
    return None if place is None else place.words[_TOKEN if place.given.get(_FILE) is None else _FILE]


def _first_place(
    options: Mapping[str, object], environ: Mapping[str, str], file: Mapping[str, object], *, file_path: str
) -> _Place | None:
    variables = {name: setting_definitions()[name].environment or "" for name in (_TOKEN, _FILE)}
    places = (
        _Place(options, {name: option_of(name) for name in variables}),
        _Place({name: environ.get(variable) or None for name, variable in variables.items()}, variables),
        _Place(file, {name: f"{name} in {file_path}" for name in variables}),
    )
    return next((place for place in places if any(place.given.get(name) is not None for name in variables)), None)


def read_token(path: Path, *, source: str) -> str:
    """Return the token in a file. Warn if other users can read it. Raises InvalidSetting, which names `source`."""
    try:
        with path.open("rb") as opened:
            status = os.fstat(opened.fileno())
            content = opened.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise InvalidSetting(source, f"{path} cannot be read: {error.strerror or error}") from None
    # A file of another user was given to a group on purpose, as systemd and Kubernetes do, and its reader cannot change it.
    exposed = stat.S_IRGRP | stat.S_IROTH if status.st_uid == os.geteuid() else stat.S_IROTH
    if stat.S_ISREG(status.st_mode) and status.st_mode & exposed:
        say(f"Warning: other users of this machine can read the token in {for_display(path)}; run `chmod 600` on it.")
    lines = content.decode(errors="replace").splitlines()
    if len(content) > SIZE_LIMIT or len(lines) != 1:
        raise InvalidSetting(source, f"{path} is not a file of one line, the token")
    token: str = parse_setting(_TOKEN, lines[0].strip(), source=f"the token in {path}")
    return token


def warn_of_option() -> None:
    """Print the warning about a token that is an argument of a process."""
    say(
        "Warning: other users of this machine can see the token of --token in the list of processes; "
        "give it by FILESTORE_TOKEN or --token-file."
    )


def warn_of_password() -> None:
    """Print the warning about a password that is in an argument of a process."""
    say(
        "Warning: other users of this machine can see the password in --index in the list of processes; "
        "give the URL by FILESTORE_INDEX, or the password by PGPASSWORD or a passfile."
    )


def warn_if_short(token: str | None) -> None:
    """Print a warning if the token that a server accepts can be guessed."""
    if token is not None and len(token) < SHORT_LENGTH:
        say(
            f"Warning: the token of this server has {len(token)} characters and can be guessed; "
            "`openssl rand -hex 32` makes one that cannot."
        )
