"""Who asks: the token of a request, or the token with which its signed URL was asked for, or nobody."""

from __future__ import annotations

from dataclasses import dataclass

from filestore.core.scopes import Scope
from filestore.core.signing import NO_ISSUER
from filestore.errors import OutsidePrefix, ScopeMissing


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may use, and why."""

    namespace: str
    issuer: str = NO_ISSUER
    """Stands for the token (`filestore.core.signing`). URLs that the request asks for are bound to it."""
    is_signed: bool = False
    """Whether a signed URL was used instead of a token. It permits one kind of request, if its token permits it now."""
    scope: Scope = Scope.ADMIN
    prefix: str = ""
    """The beginning of all names that the token sees. An empty text means all names."""
    token_id: str = ""
    """The beginning of the digest of the token, which logs and lists show. Empty without a token."""
    label: str = ""
    """What the token is for, in the words of the person who made it."""
    expires_at: int | None = None
    """When the requests and signed URLs of the token end, in seconds since 1970, if the token itself says so."""

    def check_scope(self, needed: Scope) -> None:
        """Raise ScopeMissing if the token does not permit what needs the scope `needed`."""
        if not self.scope.permits(needed):
            raise ScopeMissing("the server", str(needed), str(self.scope))

    def check_whole(self) -> None:
        """Raise OutsidePrefix if the token does not see all names."""
        if self.prefix:
            raise OutsidePrefix("requests that concern all names", self.prefix)
