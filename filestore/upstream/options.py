"""What a server is told about its upstream."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from filestore.core.references import FileURL
from filestore.download.download import DEFAULT_DOWNLOAD_LIMITS, DownloadLimits
from filestore.errors import InvalidReference, InvalidSetting

MAX_AGE_SECONDS = 300.0
"""How long the answer of the upstream about a revision counts by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """What a server is told about its upstream.

    url: The URL of the upstream, such as `https://huggingface.co`.
    max_age_seconds: For this time after the last answer about a revision, the upstream is not asked for it again.
    size_limit: How many bytes of contents are kept. None means no limit.
    is_offline: Whether the upstream is never asked, so that only what is kept is served.
    limits: The limits for downloads from it.
    """

    url: str
    max_age_seconds: float = MAX_AGE_SECONDS
    size_limit: int | None = None
    is_offline: bool = False
    limits: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS

    def __post_init__(self) -> None:
        """Raise InvalidSetting if `url` cannot be the URL of a Hub."""
        try:
            parts = urlsplit(FileURL(self.url).url)
        except (InvalidReference, ValueError) as error:
            raise InvalidSetting("upstream", str(error)) from None
        if parts.query or parts.fragment:
            raise InvalidSetting("upstream", "the URL of a Hub has no query and no fragment")

    @property
    def base_url(self) -> str:
        """The URL without a slash at its end."""
        return self.url.rstrip("/")
