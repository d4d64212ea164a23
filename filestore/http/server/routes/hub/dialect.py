"""Tell errors as the clients of the Hub understand them: by headers, beside the problem document of all routes.

Source: `hf_raise_for_status` of the Python client.
"""

from __future__ import annotations

import json

from aiohttp import web
from aiohttp.typedefs import Handler

from filestore.errors import NotFound
from filestore.http.server.auth import gives_token
from filestore.http.server.errors import answer_or_problem
from filestore.http.server.request_record import ProblemAnswer

COMMIT_HEADER = "X-Repo-Commit"
CODE_HEADER = "X-Error-Code"
MESSAGE_HEADER = "X-Error-Message"
WRONG_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105  # no token
"""The words by which clients tell a wrong token from a repository that nobody without a token sees."""

_MESSAGE_LIMIT = 1000
_CODES = {
    NotFound.slug: "RepoNotFound",
    "revision-not-found": "RevisionNotFound",
    "entry-not-found": "EntryNotFound",
    "upstream-gated": "GatedRepo",
    # As the Hub answers for what it shows to nobody without a token, whether it exists or not.
    "upstream-unauthorized": "RepoNotFound",
}
_COMMIT = "filestore.hub-commit"


def note_commit(request: web.Request, commit_id: str) -> None:
    """Note the commit that a request is about. An error has it in its head, so that clients remember that an entry is absent."""
    request[_COMMIT] = commit_id


def in_dialect(handler: Handler) -> Handler:
    """Return a handler whose errors have the headers that clients of the Hub read."""

    async def answered(request: web.Request) -> web.StreamResponse:
        response = await answer_or_problem(handler, request)
        if isinstance(response, ProblemAnswer) and not response.prepared:
            _translate(request, response)
        return response

    return answered


def _translate(request: web.Request, answer: ProblemAnswer) -> None:
    document = json.loads(answer.body) if isinstance(answer.body, bytes) else {}
    message = str(document.get("detail", answer.reason))
    answer.body = json.dumps(document | {"error": message}).encode()
    if answer.slug in _CODES:
        answer.headers[CODE_HEADER] = _CODES[answer.slug]
    elif answer.status == 401:
        if gives_token(request.headers.get("Authorization")):
            message = WRONG_TOKEN
        elif "repository" in request.match_info:
            answer.headers[CODE_HEADER] = "RepoNotFound"
    commit_id: str | None = request.get(_COMMIT)
    if commit_id is not None:
        answer.headers[COMMIT_HEADER] = commit_id
    answer.headers[MESSAGE_HEADER] = header_text(message)


def header_text(text: str) -> str:
    """Return a text in one line of ASCII without control characters, cut if it is long."""
    line = " ".join(text.split()).encode("ascii", "replace").decode()[:_MESSAGE_LIMIT]
    return "".join(letter if letter.isprintable() else "?" for letter in line)
