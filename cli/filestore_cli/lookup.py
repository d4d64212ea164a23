"""Find the record that a user names. If there is none, say what the user may have meant."""

from __future__ import annotations

import re
from contextlib import suppress

import click

from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import FilestoreError, NotFound
from filestore.repository.protocol import Repository
from filestore_cli.hints import explained
from filestore_cli.listing import is_pattern
from filestore_cli.text import for_display

_DIGEST_IN_ANY_CASE = re.compile(r"[0-9a-fA-F]{64}\Z")


async def record_of(repository: Repository, reference: Reference) -> Record:
    """Return the newest record that `reference` names. Raises ClickException if nothing is stored under a name."""
    try:
        return await repository.record(reference)
    except NotFound as error:
        if reference.name is None or reference.digest is not None:
            raise
        raise click.ClickException(for_display(await not_found(repository, reference, error))) from error


async def not_found(repository: Repository, reference: Reference, error: NotFound) -> str:
    """Return the message of `error`, with what the user may have meant by `reference`."""
    if reference.name is None or reference.digest is not None:
        return explained(error)
    return f"{explained(error)}{await _advice(repository, reference)}"


async def _advice(repository: Repository, reference: Reference) -> str:
    name = reference.full_name or ""
    if reference.revision is not None:
        with suppress(FilestoreError):
            total = (await repository.versions(Reference.of_name(name), limit=1)).total
            return f"; {name!r} has {total} version{'' if total == 1 else 's'}"
        return ""
    if is_pattern(name):
        return "; a pattern is for `filestore ls` and `filestore push`, so give the names that `filestore ls` shows"
    if _DIGEST_IN_ANY_CASE.match(name):
        return "; digests have lower-case letters"
    # A directory is stored as a zip file.
    as_directory = f"{name}.zip"
    with suppress(FilestoreError):
        await repository.record(Reference.of_name(as_directory))
        return f"; did you mean {as_directory!r}?"
    return ""
