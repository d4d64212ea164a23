"""Parse the documents of a server. What it says is checked (I4): a malformed document is a ServerError."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from filestore.core.commits import Commit, Label, commit_from_json, label_from_json
from filestore.core.digest import Digest, parse_digests
from filestore.core.links import Link, link_from_json
from filestore.core.names import checked_name, checked_namespace
from filestore.core.paths import parse_run_path
from filestore.core.records import Record, parse_json, record_from_json, value_count
from filestore.core.signing import is_signed_path, unsigned_path
from filestore.core.tickets import PeerTicket, ticket_from_json
from filestore.errors import FilestoreError, InvalidBatch, InvalidName, InvalidReference, ServerError, UnexpectedRecord
from filestore.http import wire
from filestore.http.client.foreign import EARLIER_SERVER
from filestore.repository.format_file import check_versions, checked_identity
from filestore.repository.protocol import FreedContent, Identity, Usage, VersionPage, usage_from_json

_VALUES_LIMIT = 600_000
"""The most values in a document. A page of 1000 records has ten thousand, and names full of commas count as many as fit."""
_FOREIGN = "this is not an answer of a filestore server"


def parse_document(location: str, answer: bytes) -> dict[str, Any]:
    """Parse a JSON object. `location` is the name of the server in errors, here and below."""
    if value_count(answer) > _VALUES_LIMIT:
        raise _malformed(location, "its answer holds too many values")
    try:
        values = parse_json(answer)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise _malformed(location, _FOREIGN)
    return values


def parse_late_document(location: str, answer: bytes) -> dict[str, Any]:
    """Parse a document that may have come after blanks. Raises the error that it describes, if it is a problem."""
    document = parse_document(location, answer)
    # The work may fail after the server has sent the status of a success.
    if "type" in document:
        status = document.get("status")
        raise wire.decode_problem(location, status if type(status) is int else 500, document)
    return document


def parse_identity(location: str, document: dict[str, Any]) -> Identity:
    """Parse the identity of a repository. Also raises UnknownFormat."""
    if "format" in document and "cutting" in document:  # the name before the first release
        raise _malformed(location, EARLIER_SERVER)
    try:
        version, chunking_version = document["format"], document["chunking_version"]
        if type(version) is not int or type(chunking_version) is not int:
            raise TypeError("its versions are not numbers")
        checked_namespace(str(document["namespace"]))
    except (KeyError, TypeError, ValueError, FilestoreError):
        raise _malformed(location, _FOREIGN) from None
    # This comes first, because another version may write the other values in another way.
    check_versions(location, version=version, chunking_version=chunking_version)
    try:
        return checked_identity(
            document["id"], document["namespace"], chunking_version, upload_limit=document.get("upload_limit")
        )
    except (KeyError, ValueError, FilestoreError):
        raise _malformed(location, _FOREIGN) from None


def parse_record(location: str, values: object) -> Record:
    """Parse a record."""
    try:
        if isinstance(values, dict):
            return record_from_json(values)
    except (KeyError, TypeError, ValueError, FilestoreError):
        pass
    raise _malformed(location, "its record of a file is malformed")


def parse_records(location: str, document: dict[str, Any], *, limit: int, before: int | None) -> list[Record]:
    """Parse the records of a page, which was asked for with `limit` and `before`."""
    return _parse_page(location, document, "files", limit=limit, before=before)


def _parse_page(location: str, document: dict[str, Any], what: str, *, limit: int, before: int | None) -> list[Record]:
    files = document.get("files")
    if not isinstance(files, list) or len(files) > limit:
        raise _malformed(location, f"its list of {what} is malformed")
    found = [parse_record(location, values) for values in files]
    # Paging ends only if each page goes on. The times may be in any order, because a clock can be set back.
    if len({record.id for record in found}) < len(found) or (before is not None and before in {r.updated_at for r in found}):
        raise _malformed(location, f"its list of {what} is not in order")
    if len({record.namespace for record in found}) > 1:
        raise _malformed(location, f"its list of {what} is of several namespaces")
    return found


def parse_versions(location: str, document: dict[str, Any], *, limit: int, before: int | None) -> VersionPage:
    """Parse a page of versions, which was asked for with `limit` and `before`."""
    records = _parse_page(location, document, "versions", limit=limit, before=before)
    files, total = document["files"], document.get("total")
    if type(total) is not int or not len(files) <= total < 1 << 63:
        raise _malformed(location, "its list of versions is malformed")
    users = {record.id: values["pipelines"] for record, values in zip(records, files, strict=True) if "pipelines" in values}
    if not all(isinstance(names, str) for names in users.values()):
        raise _malformed(location, "its list of versions is malformed")
    return VersionPage(records, total, users)


def parse_commits(location: str, document: dict[str, Any], *, limit: int, before: int | None) -> list[Commit]:
    """Parse a page of commits, which was asked for with `limit` and `before`."""
    values = document.get("commits")
    try:
        if isinstance(values, list) and len(values) <= limit:
            found = [commit_from_json(value) for value in values]
            numbers = [1 << 63 if before is None else before, *(commit.number for commit in found)]
            # Paging ends only if each page goes on.
            if all(after < number for number, after in pairwise(numbers)) and (found or before is not None):
                return found
    except (KeyError, TypeError, ValueError, FilestoreError):
        pass
    raise _malformed(location, "its list of commits is malformed")


def parse_label(location: str, document: dict[str, Any], *, name: str) -> Label:
    """Parse the label that was asked for."""
    try:
        label = label_from_json(document)
    except (KeyError, TypeError, ValueError, FilestoreError):
        raise _malformed(location, "its label is malformed") from None
    if label.name != name:
        raise UnexpectedRecord(location, f"the label {label.name!r}", f"{name!r}")
    return label


def parse_labels(location: str, document: dict[str, Any]) -> list[Label]:
    """Parse the labels of a name."""
    values = document.get("labels")
    try:
        if isinstance(values, list):
            return [label_from_json(value) for value in values]
    except (KeyError, TypeError, ValueError, FilestoreError):
        pass
    raise _malformed(location, "its list of labels is malformed")


def parse_freed(location: str, document: dict[str, Any]) -> FreedContent:
    """Parse what a removal would free."""
    # An earlier version of the server does not say whether there is a hold.
    count, size, is_held = document.get("chunk_count"), document.get("stored_size"), document.get("is_held", False)
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (count, size)) or type(is_held) is not bool:
        raise _malformed(location, "what it says about freed content is malformed")
    return FreedContent(count, size, is_held)  # type: ignore[arg-type]  # checked above


def parse_usage(location: str, document: dict[str, Any]) -> Usage:
    """Parse a report on disk usage."""
    try:
        return usage_from_json(document)
    except (KeyError, TypeError, ValueError, FilestoreError):
        raise _malformed(location, "its report on disk usage is malformed") from None


def parse_signed_path(location: str, document: dict[str, Any], *, file_id: str) -> str:
    """Parse a signed path. Raises UnexpectedRecord if it is not one of `file_id`."""
    path = document.get("path")
    if not isinstance(path, str) or not is_signed_path(f"/{path}"):
        raise _malformed(location, "its signed path is malformed")
    signed = unsigned_path(f"/{path}")
    try:
        found, name = parse_run_path(signed)
        checked_name(unquote(name))
    except (InvalidReference, InvalidName):
        found = signed
    if found != file_id:
        raise UnexpectedRecord(location, f"a path of {found!r}", f"one of {file_id!r}")
    return path


def parse_link(location: str, document: dict[str, Any]) -> Link:
    """Parse a link. Its path is not checked."""
    try:
        return link_from_json(document)
    except (KeyError, TypeError, ValueError, FilestoreError):
        raise _malformed(location, "its link is malformed") from None


def parse_links(location: str, document: dict[str, Any]) -> list[Link]:
    """Parse the links of a namespace."""
    values = document.get("links")
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        return [parse_link(location, value) for value in values]
    raise _malformed(location, "its list of links is malformed")


def parse_ticket(location: str, document: dict[str, Any]) -> PeerTicket:
    """Parse a ticket of peers."""
    try:
        return ticket_from_json(document)
    except (KeyError, TypeError, ValueError):
        raise _malformed(location, "its ticket is malformed") from None


def parse_digests_among(location: str, asked: Sequence[Digest], answer: bytes) -> list[Digest]:
    """Parse digests. Raises InvalidBatch if one of them was not asked about."""
    found = parse_digests(answer)
    if not set(found) <= set(asked):
        raise InvalidBatch(f"{location} answered with chunks that this client did not ask about; the server or a proxy is faulty")
    return found


def _malformed(location: str, reason: str) -> ServerError:
    return ServerError(location, HTTPStatus.OK, reason)
