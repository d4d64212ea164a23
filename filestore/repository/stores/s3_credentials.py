"""The credentials of an object store in a file, which may be replaced at any time.

Without such a file, obstore finds credentials itself: those in the environment, those of a web identity or a container, and those
of the machine, which it renews. The names in the environment are those of the AWS tools.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import S3Credential

DEFAULT_PROFILE = "default"
_BEFORE_FILES = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
"""What obstore finds itself, and what comes before a file, as in the AWS tools."""
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


def find_file(environ: Mapping[str, str]) -> CredentialsFile | None:
    """Return the file that the environment names, or else the one of the AWS tools if it exists. None: obstore finds them."""
    if any(environ.get(name) for name in _BEFORE_FILES):
        return None
    profile = environ.get("AWS_PROFILE") or DEFAULT_PROFILE
    if named := environ.get("AWS_SHARED_CREDENTIALS_FILE"):
        return CredentialsFile(Path(named).expanduser(), profile)
    usual = Path(environ["HOME"]) / ".aws" / "credentials" if environ.get("HOME") else None
    return CredentialsFile(usual, profile) if usual is not None and usual.is_file() else None
