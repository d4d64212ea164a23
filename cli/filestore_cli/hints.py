"""Advice for a user of the command line: a sentence for each hint that an error of the library may have."""

from __future__ import annotations

import re
from shlex import quote

from filestore.errors import FilestoreError, Forbidden, ScopeMissing, TokenMissing, TooManyGuesses, Unauthorized

_SETTING = re.compile(r"[a-z_]{1,40}")
_ABOUT_TOKEN = (Forbidden, ScopeMissing, TooManyGuesses, Unauthorized)
_SHOW_USED = "`filestore cache ls` shows what is in use"
HINTS = {
    "cache-min-free": f"FILESTORE_CACHE_MIN_FREE sets the limit, and {_SHOW_USED}",
    "cache-size-limit": f"FILESTORE_CACHE_SIZE_LIMIT sets the limit, and {_SHOW_USED}",
    "cache-size-limit-too-small": "FILESTORE_CACHE_SIZE_LIMIT sets the limit",
    "check-token": "it may be mistyped, removed, or of another server; on the machine of that server, `filestore token ls` lists "
    "its tokens, and `filestore token new` makes one",
    "choose-address": "--host and --port set it, and --listen for `filestore cache serve`",
    "choose-name": "--name sets it",
    "choose-port": "--port sets it, and --listen for `filestore cache serve`",
    "choose-target": "-o and --force do that",
    "copy-repository": "`filestore backup --full` and `filestore restore` make a copy that shares no file",
    "create-repository": "on the command line, `filestore serve --create` or `filestore push --create` makes it",
    "end-hold": "`filestore gc --end-hold` ends it",
    "exclude": "--exclude does that",
    "finish-migration": "`filestore migrate` from the same folder does it, or `filestore restore` of the same backup",
    "finish-repository": "`filestore serve --create` and `filestore push --create` finish it",
    "free-quota": "`filestore du` shows what takes space and the limits of its namespace, and `filestore rm` removes files",
    "free-repository": "`filestore rm` removes files, and on the machine of the repository `filestore gc` with --grace 0s frees "
    "their space at once",
    "give-index": "FILESTORE_INDEX or --index does that",
    "give-password": "FILESTORE_INDEX, PGPASSWORD or a passfile gives the password of a database",
    "give-scope": "on the machine of the server, `filestore token new --scope {needed}` makes one, and --token-file or "
    "FILESTORE_TOKEN gives it",
    "give-token": "--token-file or FILESTORE_TOKEN gives it, and PIPELINE_API_TOKEN to `pipeline create file`; "
    "the first start of `filestore serve` prints one, and `filestore token new` makes another",
    "list-entries": "`filestore ls {reference}:` shows its entries",
    "list-files": "`filestore ls` shows what is",
    "list-versions": "`filestore log {reference}` shows its versions, and `filestore tag {reference}` its tags and branches",
    "move-label": "`filestore tag --force` moves it",
    "raise-setting": "{variable} sets it",
    "remove-anyway": "`pipeline delete pipelines NAME:vN` deletes a pipeline; --force removes the file, "
    "and the pipeline then works only where the file is in a cache",
    "remove-labelled": "`filestore tag --delete` removes one, and `filestore rm --force` removes the version and its tags",
    "remove-record": "`filestore rm {file_id}` removes the record",
    "repair-index": "`filestore restore` does it from a backup; without one, move the file away if it is damaged, and "
    "`filestore check --repair` finds the content again, but no names and tokens",
    "renew-token": "on the machine of that server, `filestore token rotate` makes a new one like it",
    "replace": "--force does that",
    "show-owners": "on the machine of the repository, `filestore owner ls` shows which namespace has it",
    "start-server": "`filestore serve` starts one",
    "store-folder": "`pipeline create file -r` and `filestore push` store a folder with its folders",
    "symlinks-follow": "`--symlinks follow` and --exclude do that",
    "symlinks-keep": "`--symlinks keep` and --exclude do that",
    "url-proxy": "FILESTORE_URL_PROXY sets it",
    "verify-cache": "`filestore cache verify` finds and removes what is damaged",
}
"""The sentence for each hint. It is added to the message of the error. A name in braces is replaced by that fact of the
error, or, for `variable`, by the environment variable of its setting.
"""


def explained(error: FilestoreError, *, token_source: str | None = None) -> str:
    """Return the message of an error, with advice for a user of the command line.

    `token_source` is where the token of the command is from. It is named if the error is about that token.
    """
    message = _advised(error, token_source)
    if not error.request_id or error.request_id in message:
        return message
    return f"{message} (request {error.request_id}; the server's log has more)"


def _advised(error: FilestoreError, token_source: str | None) -> str:
    sentence = HINTS.get(error.hint)
    is_about_token = isinstance(error, _ABOUT_TOKEN) and not isinstance(error, TokenMissing)
    message = f"{error} (this one is from {token_source})" if is_about_token and token_source else str(error)
    if sentence is None:
        return message
    # A server may have chosen the facts, and a user copies the command.
    facts = {name: quote(fact) if isinstance(fact, str) else fact for name, fact in error.named_facts().items()}
    setting = str(facts.get("setting", ""))
    variable = f"FILESTORE_{setting}".upper() if _SETTING.fullmatch(setting) else "its environment variable"
    return f"{message}; {sentence.format(**facts, variable=variable)}"
