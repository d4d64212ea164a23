"""Requests in the S3 API, signed as AWS signs them, for what tests do beside the code under test.

Source: "Signature Version 4" of the AWS documentation, with a payload that is not signed.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from http.client import HTTPConnection
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

REGION = "us-east-1"
_PAYLOAD = "UNSIGNED-PAYLOAD"


class Credentials(NamedTuple):
    """The keys of a user of a gateway."""

    access_key: str
    secret_key: str


class S3Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes


def request(
    endpoint: str,
    credentials: Credentials,
    method: str,
    path: str,
    *,
    query: dict[str, str] | None = None,
    body: bytes = b"",
) -> S3Answer:
    """Send a request to `path`, which begins with a slash and is not yet quoted."""
    host = urlsplit(endpoint).netloc
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": _PAYLOAD, "x-amz-date": now}
    target = quote(path)
    asked = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted((query or {}).items()))
    signed = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"{method}\n{target}\n{asked}\n{lines}\n{signed}\n{_PAYLOAD}"
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"Credential={credentials.access_key}/{scope}"
    headers["Authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={signed}, Signature={signature}"
    connection = HTTPConnection(host, timeout=60)
    try:
        connection.request(method, f"{target}?{asked}" if asked else target, body=body, headers=headers)
        answer = connection.getresponse()
        return S3Answer(answer.status, answer.read())
    finally:
        connection.close()


def texts(document: bytes, tag: str) -> list[str]:
    """Return the texts of the elements of an answer that have a name."""
    return [element.text or "" for element in ET.fromstring(document).iter() if element.tag.rpartition("}")[2] == tag]
