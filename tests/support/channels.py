"""Read the bodies of answers from a channel."""

from __future__ import annotations

from filestore.http.client.channel import Channel


def read(channel: Channel, size: int) -> bytes:
    """Read the next `size` bytes of an answer's body, or all that is left of it. Raises Interrupted, Stalled."""
    body = memoryview(bytearray(size))
    received = 0
    while count := channel.receive_into(body[received:]):
        received += count
    return bytes(body[:received])
