"""Translate what obstore raises. No message has the text of an answer: a stranger may have written it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from filestore.errors import Busy, FilestoreError, StorageError, StorageFull, StoreRefused

_STATUS = re.compile(r"status code: ([0-9]{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_RETRIED_CODES = frozenset({"ConditionalRequestConflict", "InternalError", "OperationAborted", "RequestTimeout", "SlowDown"})
_FULL_CODES = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"})
_FULL_STATUS = 507
_REFUSED_STATUSES = (401, 403)
_OTHER_REGION = "the bucket is in another region; name its region in the URL"
_FAULTS: Mapping[str, str] = {
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "NoSuchBucket": "the bucket does not exist; make it, or check its name",
    "PermanentRedirect": _OTHER_REGION,
}
STALE_CODES = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"})
"""Refusals that other credentials may end, if they were replaced."""
_REFUSALS: Mapping[str, str] = {
    "AccessDenied": "its credentials do not permit this in the bucket",
    "ExpiredToken": "the credentials have expired",
    "InvalidAccessKeyId": "it does not know the access key",
    "RequestTimeTooSkewed": "the clock of this machine differs from its own",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
}
_OWN_PROVIDER = "External AWS credential provider: ValueError: "
_HALF_A_KEY = ("Missing SecretAccessKey", "Missing AccessKeyId")
_METADATA_HOST = "http://169.254.169.254"
_LASTING: Mapping[str, str] = {
    "ertificate": "its certificate cannot be trusted",
    "BadScheme": "its endpoint cannot be used",
}
"""What is in the text of an error that stays. The order counts, here and below."""
_PASSING: Mapping[str, str] = {
    "dns error": "the name of its host is not known at the moment",
    "TimedOut": "it did not answer in time",
    "kind: Timeout": "it did not answer in time",
    "kind: Connect": "it cannot be reached",
    "HTTP error": "the connection to it broke",
    "HttpError": "the connection to it broke",
}


class Answer(NamedTuple):
    """What an error of obstore says about the answer of the store."""

    status: int | None
    """None if there was no answer."""
    code: str
    """The store's name of the error, or an empty text."""
    text: str


def answer_of(error: Exception) -> Answer:
    """Return what an error of obstore says."""
    # The rest of the text has the same again, in the notation of Rust.
    text = str(error).partition("\n\nDebug source")[0]
    status, code = _STATUS.search(text), _CODE.search(text)
    return Answer(None if status is None else int(status[1]), "" if code is None else code[1], text)


def is_absent(error: Exception) -> bool:
    """Return whether an error says that an object does not exist, in a bucket that does."""
    return isinstance(error, FileNotFoundError) and answer_of(error).code == "NoSuchKey"


def is_empty(error: Exception) -> bool:
    """Return whether an error says that no byte was found in the range that was asked for."""
    return answer_of(error).status == 416


def translated(error: Exception, where: str) -> FilestoreError:
    """Return our error for one of obstore. It is retryable if another try may succeed. `where` is the location of the store."""
    answer = answer_of(error)
    if answer.status is None or _METADATA_HOST in answer.text:
        return _without_answer(answer.text, str(error), where)
    return _of_answer(answer.status, answer.code, where)


def _of_answer(status: int, code: str, where: str) -> FilestoreError:
    found = f"it answered {status} {code}".rstrip()
    if code in _FULL_CODES or status == _FULL_STATUS:
        return StorageFull(where, found)
    if status in _RETRIED_STATUSES or code in _RETRIED_CODES:
        return Busy(where, found)
    if code in _FAULTS:
        return StorageError(where, _FAULTS[code])
    if status in _REFUSED_STATUSES or code in STALE_CODES:
        return StoreRefused(where, _REFUSALS.get(code, found))
    return StorageError(where, found)


def _without_answer(text: str, whole: str, where: str) -> FilestoreError:
    if _OWN_PROVIDER in text:
        return StoreRefused(where, text.partition(_OWN_PROVIDER)[2])
    if any(mark in text for mark in _HALF_A_KEY):
        return StoreRefused(where, "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set")
    if _METADATA_HOST in text:
        return StoreRefused(where, "no credentials are given, and this machine has none of its own")
    for mark, reason in _LASTING.items():
        if mark in whole:
            return StorageError(where, reason)
    for mark, reason in _PASSING.items():
        if mark in whole:
            return Busy(where, reason)
    return StorageError(where, "its answer cannot be understood")
