"""Remember on disk which tokens the upstream has accepted, so that their callers are served while it is away.

    key               32 secret bytes of this folder
    allowed/DIGEST    when the upstream said last that a token may read a repository

DIGEST is keyed by the secret, and stands for the repository and the token: neither can be found from it, and no token is kept.
All functions block.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from filestore.errors import StorageError
from filestore.system.files import storage_errors, write_atomic, write_durably
from filestore.system.owners import make_private
from filestore.system.small_files import read_json, read_small

ALLOWED_SECONDS = 7 * 86400.0
"""How long a token counts as accepted after the upstream has accepted it, if that cannot be asked."""
_RENEW_SECONDS = 600.0
"""What is younger is not written again."""
_KEY_SIZE = 32


class Admissions:
    """Which tokens the upstream has accepted. All processes of a server use the same folder."""

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since 1970."""
        self._key_path = folder / "key"
        self.folder = folder / "allowed"
        self._clock = clock
        self._key = b""

    def allow(self, kind: str, name: str, token: str) -> None:
        """Note that the upstream lets a token read a repository. Raises StorageError."""
        age = self._age(self._path(kind, name, token))
        if age is None or not 0 <= age < _RENEW_SECONDS:
            write_durably(self._path(kind, name, token), {"allowed_at": self._clock()})

    def forget(self, kind: str, name: str, token: str) -> None:
        """Note that the upstream does not let a token read a repository. Raises StorageError."""
        path = self._path(kind, name, token)
        with storage_errors(path):
            path.unlink(missing_ok=True)

    def is_allowed(self, kind: str, name: str, token: str) -> bool:
        """Return whether the upstream has let a token read a repository, not too long ago. Raises StorageError."""
        age = self._age(self._path(kind, name, token))
        return age is not None and 0 <= age < ALLOWED_SECONDS

    def _age(self, path: Path) -> float | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return self._clock() - float(read_json(path)["allowed_at"])
        return None

    def _path(self, kind: str, name: str, token: str) -> Path:
        if not self._key:
            self._key = self._read_key()
        text = f"{kind}\0{name}\0{token}"
        return self.folder / blake3(text.encode("utf-8", "surrogatepass"), key=self._key).hexdigest()

    def _read_key(self) -> bytes:
        """Return the secret. Make it if there is none; of several processes that do so, all get the same one."""
        with storage_errors(self._key_path):
            if not self._key_path.exists():
                make_private(self._key_path.parent)
                made = self._key_path.with_name(f".{secrets.token_hex(16)}")
                write_atomic(made, secrets.token_bytes(_KEY_SIZE))
                with suppress(FileExistsError):
                    os.link(made, self._key_path)
                made.unlink()
            key = read_small(self._key_path, limit=_KEY_SIZE)
        if len(key) != _KEY_SIZE:
            raise StorageError(str(self._key_path), f"it has {len(key)} bytes, and not {_KEY_SIZE}; remove it")
        return key
