"""What a server allows, and what holds where nobody says anything."""

from __future__ import annotations

from dataclasses import dataclass

from filestore.repository.protocol import SIGNED_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server process allows."""

    stall_seconds: float = 30.0
    """How long a connection may move no byte."""
    memory_limit: int = 128 << 20
    """Bytes in flight (I6), pushes of uploads aside, which have 96 MiB."""
    upload_limit: int | None = None
    """Bytes of a file that is uploaded by form or in parts."""
    upload_idle_seconds: float = 86400.0
    """How long nothing may come of an upload in parts before it is dropped."""
    drain_seconds: float = 30.0
    """How long requests under way may go on after a stop."""
    signed_seconds: int = SIGNED_SECONDS
    """How long a signed URL of a file holds."""


DEFAULT_SERVER_LIMITS = ServerLimits()
