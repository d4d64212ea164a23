"""The access log and the audit log of a server: what a line of each says, and of which requests there is one.

Source: `docs/logs.md`, which describes the fields.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from filestore.core.signing import PREFIX as SIGNED_PREFIX
from filestore.core.timestamps import format_seconds
from filestore.errors import StorageError, TooManyGuesses, redact_secrets
from filestore.http.server.log_file import LogFile
from filestore.http.server.log_writer import LogWriter, Sink, StandardError
from filestore.http.server.request_record import Observer, RequestRecord
from filestore.http.wire import API

OFF, JSON, PLAIN = "off", "json", "plain"

STRANGERS_BURST = 1000
STRANGERS_RATE = 10.0
"""How many lines a second are about requests that no token permits, after the first ones. It holds for each process.

Anyone can send such requests, and as many as the machine takes. Without a limit, they fill the disk.
"""
_WORD = re.compile(r"[!#-~]+")

ACTIONS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("POST", f"{API}/chunks"): "put-chunks",
        ("POST", f"{API}/files"): "commit",
        ("DELETE", f"{API}/files/{{id}}"): "remove",
        ("POST", "/ui/remove"): "remove",
        ("PUT", f"{API}/labels"): "set-label",
        ("POST", "/ui/label"): "set-label",
        ("DELETE", f"{API}/labels"): "remove-label",
        ("POST", "/ui/unlabel"): "remove-label",
        ("POST", f"{API}/files/{{id}}/sign"): "sign",
        ("POST", f"{API}/links"): "make-link",
        ("POST", "/ui/link"): "make-link",
        ("DELETE", f"{API}/links/{{id}}"): "revoke-link",
        ("POST", "/ui/unlink"): "revoke-link",
        ("POST", f"{API}/peer-ticket"): "give-ticket",
        ("POST", f"{API}/chunks/get"): "read-chunks",
        ("GET", f"{API}/chunks/{{digest}}"): "read-chunks",
        ("GET", f"{API}/manifests/{{digest}}"): "read-manifest",
        ("GET", "/{path}"): "read",
        ("GET", "/ui/content"): "read",
        ("GET", "/storage/{path}"): "read",
        ("GET", "/v3/pipeline_files/download/{id}"): "read",
        ("GET", "/{repository}/resolve/{revision}/{path}"): "read",
        ("GET", "/{repository}/raw/{revision}/{path}"): "read",
        ("GET", "/v4/files/posts/{upload_id}/content/{name}"): "read",
        ("POST", "/v3/pipeline_files"): "upload",
        ("POST", "/v4/files"): "upload",
        ("POST", "/v4/files/posts/{upload_id}/form/{size_limit}"): "upload",
        ("POST", "/v3/pipeline_files/initiate-multipart-upload"): "begin-upload",
        ("POST", "/v3/pipeline_files/presigned-url"): "sign-part",
        ("PUT", "/v3/pipeline_files/uploads/{upload_id}/parts/{number}"): "put-part",
        ("POST", "/v3/pipeline_files/uploads/{upload_id}/parts/{number}/copy"): "copy-part",
        ("DELETE", "/v3/pipeline_files/uploads/{upload_id}"): "cancel-upload",
        ("POST", "/v3/pipeline_files/finalise-multipart-upload"): "finish-upload",
        ("POST", "/v4/files/presigned-post"): "sign-form",
        ("GET", "/v4/files/posts/{upload_id}"): "sign",
        ("POST", "/api/repos/create"): "commit",
        ("POST", "/api/{type}/{repository}/commit/{revision}"): "commit",
        ("DELETE", "/api/repos/delete"): "remove",
        ("POST", "/api/{type}/{repository}/branch/{revision}"): "set-label",
        ("DELETE", "/api/{type}/{repository}/branch/{revision}"): "remove-label",
        ("POST", "/api/{type}/{repository}/tag/{revision}"): "set-label",
        ("DELETE", "/api/{type}/{repository}/tag/{revision}"): "remove-label",
        ("POST", "/{repository}.git/info/lfs/objects/batch"): "begin-upload",
        ("PUT", "/api/lfs/objects/{oid}/{size}"): "upload",
        ("PUT", "/api/lfs/uploads/{upload_id}/{oid}/{size}/parts/{number}"): "put-part",
        ("POST", "/api/lfs/uploads/{upload_id}/{oid}/{size}"): "finish-upload",
    }
)
"""What the audit log calls the requests that read or change something. Others that are not GET or HEAD, such as those of a
runtime, are called by their method and route."""
QUESTIONS = frozenset(
    {
        ("POST", f"{API}/chunks/missing"),
        ("POST", f"{API}/chunks/verify"),
        ("POST", f"{API}/files/freed"),
        ("POST", "/api/{type}/{repository}/paths-info/{revision}"),
        ("POST", "/api/{type}/{repository}/preupload/{revision}"),
        ("POST", "/api/lfs/verify"),
        ("POST", "/api/validate-yaml"),
        ("POST", "/api/repos/move"),
        ("PUT", "/api/{type}/{repository}/settings"),
    },
)
"""Requests by POST or PUT that read no content and change no file. The audit log leaves them out, unless they are denied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Which logs of its requests a server writes, and where."""

    access_log: str = OFF
    access_log_file: Path | None = None
    """None means standard error."""
    audit_log: Path | None = None
    audit_log_size: int | None = None
    """From so many bytes on, another file is begun."""

    def check(self) -> None:
        """Make the files, as far as they are absent. Raises StorageError if a file cannot be written to."""
        for path in (self.access_log_file if self.access_log != OFF else None, self.audit_log):
            if path is not None:
                try:
                    LogFile(path).check()
                except OSError as error:
                    raise StorageError(str(path), f"this log cannot be written: {error.strerror or error}") from error


NO_LOGS = LogOptions()


@contextmanager
def request_logs(options: LogOptions) -> Iterator[Sequence[Observer]]:
    """Write the logs during the block. Yield functions that take the record of each request."""
    with ExitStack() as stack:
        observers: list[Observer] = []
        if options.access_log != OFF:
            line = json_line if options.access_log == JSON else plain_line
            sink: Sink = StandardError() if options.access_log_file is None else LogFile(options.access_log_file)
            left_out = json_left_out if options.access_log == JSON else plain_left_out
            writer = LogWriter(sink, name="access", line=line, left_out_line=left_out)
            observers.append(_limited(stack.enter_context(writer.running()), lambda _: True))
        if options.audit_log is not None:
            file = LogFile(options.audit_log, size_limit=options.audit_log_size)
            writer = LogWriter(file, name="audit", line=audit_line, left_out_line=json_left_out)
            observers.append(_limited(stack.enter_context(writer.running()), is_audited))
        yield observers


class Allowance:
    """Allow something a number of times at once, and from then on at a rate."""

    def __init__(
        self, burst: int = STRANGERS_BURST, rate: float = STRANGERS_RATE, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._clock = clock
        self._left = self._burst
        self._at = clock()

    def take(self) -> bool:
        """Return whether it is allowed now, and count it if so."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _limited(writer: LogWriter, is_wanted: Callable[[RequestRecord], bool]) -> Observer:
    return partial(_observe, writer, Allowance(), is_wanted)


def _observe(writer: LogWriter, strangers: Allowance, is_wanted: Callable[[RequestRecord], bool], record: RequestRecord) -> None:
    if not is_wanted(record):
        return
    if record.access is None and not strangers.take():
        writer.leave_out()
    else:
        writer.add(record)


def is_audited(record: RequestRecord) -> bool:
    """Return whether the audit log has a line about a request: it was denied, or reads content, or changes something."""
    return is_denied(record) or action_of(record) != ""


def is_cut(record: RequestRecord) -> bool:
    """Return whether the client did not get a whole answer."""
    return record.cut or not record.status


def is_denied(record: RequestRecord) -> bool:
    """Return whether the token or the signature of a request did not permit it."""
    return record.status in {401, 403} or record.error == TooManyGuesses.slug


def action_of(record: RequestRecord) -> str:
    """Return what the audit log calls a request. It is empty for one that only asks about something."""
    method = "GET" if record.method == "HEAD" else record.method
    route = _unsigned(record.route)
    if (method, route) in QUESTIONS or not route:
        return ""
    return ACTIONS.get((method, route)) or ("" if method == "GET" else f"{method} {route}")


def audit_line(record: RequestRecord) -> str:
    """Return the line of the audit log about a request."""
    said = {
        "time": format_seconds(record.time),
        "request": record.id,
        "action": action_of(record) or "ask",
        "result": _result(record),
    }
    # All other facts are made here.
    facts = record.facts | {key: redact_secrets(str(record.facts[key])) for key in ("name", "alias") if key in record.facts}
    access = record.access
    who = {
        "scope": None if access is None else str(access.scope),
        "prefix": None if access is None else access.prefix,
        "is_signed": access is not None and access.is_signed,
    }
    return json.dumps(said | _who(record) | who | facts | _what(record))


def json_line(record: RequestRecord) -> str:
    """Return the line of the access log about a request, as JSON."""
    return json.dumps({"time": format_seconds(record.time), "request": record.id, **_who(record), **_what(record)})


def plain_line(record: RequestRecord) -> str:
    """Return the line of the access log about a request, as words. A word with other characters is a JSON text."""
    who, what = _who(record), _what(record)
    what["seconds"] = f"{record.seconds:.6f}"
    what["cut"] = "cut" if what["cut"] else "whole"
    words = [format_seconds(record.time), record.id, *who.values(), *what.values()]
    return " ".join(_word("-" if word in {None, ""} else str(word)) for word in words)


def json_left_out(count: int) -> str:
    """Return the line about lines that were left out, as JSON."""
    return json.dumps({"time": format_seconds(time.time()), "left_out": count, "process": os.getpid()})


def plain_left_out(count: int) -> str:
    """Return the line about lines that were left out, as words."""
    return f"{format_seconds(time.time())} left-out {count} {os.getpid()}"


def _who(record: RequestRecord) -> dict[str, object]:
    access = record.access
    return {
        "token": None if access is None else access.token_id,
        "label": None if access is None else access.label,
        "namespace": None if access is None else access.namespace,
        "address": record.address,
    }


def _what(record: RequestRecord) -> dict[str, object]:
    return {
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "bytes_received": record.bytes_received,
        "bytes_sent": record.bytes_sent,
        "seconds": round(record.seconds, 6),
        "error": record.error,
        "cut": is_cut(record),
    }


def _result(record: RequestRecord) -> str:
    if is_cut(record):
        return "cut"
    if record.status < 400:
        return "done"
    return "denied" if is_denied(record) else "refused" if record.status < 500 else "failed"


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else json.dumps(text)


def _unsigned(route: str) -> str:
    return route.removeprefix(SIGNED_PREFIX)
