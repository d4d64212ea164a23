"""The messages to and from the process of a pipeline, from the side of the server.

`worker` has their format. It imports nothing of filestore, so its errors become ours here.
"""

from __future__ import annotations

from collections.abc import Mapping

from filestore.errors import LimitExceeded
from filestore.runtime import worker
from filestore.runtime.worker import HEADER_SIZE, MESSAGE_LIMIT, UnsupportedValue, decode, decode_value, encode_value

__all__ = ["HEADER_SIZE", "MESSAGE_LIMIT", "UnsupportedValue", "body_size", "decode", "decode_value", "encode", "encode_value"]


def encode(message: Mapping[str, object]) -> bytes:
    """Return a message with its length.

    Raises LimitExceeded; ValueError or TypeError for values that are not JSON, such as NaN.
    """
    try:
        return worker.encode(message)
    except worker.MessageTooLarge as error:
        raise _limit_exceeded(error) from None


def body_size(header: bytes) -> int:
    """Return the number of bytes that follow a header. Raises LimitExceeded."""
    try:
        return worker.body_size(header)
    except worker.MessageTooLarge as error:
        raise _limit_exceeded(error) from None


def _limit_exceeded(error: worker.MessageTooLarge) -> LimitExceeded:
    return LimitExceeded("the size in bytes of a run's values", error.size, MESSAGE_LIMIT)
