"""The credentials of an object store in a file, which may be replaced at any time.

Without such a file, obstore finds credentials itself: those in the environment, those of a web identity or a container, and those
of the machine, which it renews.
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import S3Credential

DEFAULT_PROFILE = "default"
_KEPT_FOR = timedelta(minutes=5, seconds=30)
"""The file is read again after 30 seconds: obstore renews credentials five minutes before they expire."""
_SIZE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    """A file as AWS_SHARED_CREDENTIALS_FILE names one, and the profile in it. obstore calls this object."""

    path: Path
    profile: str = DEFAULT_PROFILE

    def __call__(self) -> S3Credential:
        """Read the file. Blocks. Raises ValueError with a reason that has no secret."""
        section = self._section()
        names = ("aws_access_key_id", "aws_secret_access_key")
        if not all(section.get(name, "").strip() for name in names):
            raise ValueError(f"{self.path} has no {' and '.join(names)} in its profile {self.profile!r}")
        return {
            "access_key_id": section[names[0]].strip(),
            "secret_access_key": section[names[1]].strip(),
            "token": section.get("aws_session_token", "").strip() or None,
            "expires_at": datetime.now(UTC) + _KEPT_FOR,
        }

    def _section(self) -> dict[str, str]:
        parser = configparser.RawConfigParser()
        try:
            with self.path.open(encoding="utf-8") as file:
                parser.read_string(file.read(_SIZE_LIMIT))
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror or error}") from None
        except (configparser.Error, UnicodeDecodeError):
            # Their messages quote the line, which may be a key.
            raise ValueError(f"{self.path} is not a file of credentials") from None
        return dict(parser[self.profile]) if self.profile in parser else {}
