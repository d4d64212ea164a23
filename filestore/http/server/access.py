"""Who asks: the token of a request, or the token with which its signed URL was asked for, or nobody."""

from __future__ import annotations

from dataclasses import dataclass

from filestore.core.signing import NO_ISSUER


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may use, and why."""

    namespace: str
    issuer: str = NO_ISSUER
    """Stands for the token (`filestore.core.signing`). URLs that the request asks for are bound to it."""
    is_signed: bool = False
    """Whether a signed URL was used instead of a token."""
