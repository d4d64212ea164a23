"""The keys that sign URLs, as an index keeps them: beside the secret, which never changes, in a value of their own."""

from __future__ import annotations

import json

from filestore.core.signing import SigningKey, SigningKeys
from filestore.errors import IndexDamaged

_KEYS = b"signing keys 1\n"
"""The beginning of the value."""


def pack_keys(keys: SigningKeys) -> bytes:
    """Return the value that keeps the keys."""
    kept = [None if key is None else [key.secret.hex(), key.made_at] for key in (keys.current, keys.previous)]
    return _KEYS + json.dumps({"keys": kept, "previous_until": keys.previous_until}).encode()


def parse_keys(rows: list[bytes], *, path: str) -> SigningKeys:
    """Return the keys from the secret and, if there is one, the value that keeps the keys. Raises IndexDamaged."""
    secret, *others = rows
    if not others:
        return SigningKeys.first(secret)
    try:
        kept = json.loads(others[0].removeprefix(_KEYS))
        current, previous = (None if key is None else SigningKey(bytes.fromhex(key[0]), int(key[1])) for key in kept["keys"])
        until = int(kept["previous_until"])
    except (ValueError, TypeError, KeyError, IndexError):
        raise IndexDamaged(path, "the keys that sign URLs cannot be read") from None
    if current is None:
        raise IndexDamaged(path, "it has lost the key that signs URLs")
    return SigningKeys(secret, current, previous, until)
