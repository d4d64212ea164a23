"""The public keys of the provider that signs JSON Web Tokens: a JWKS, which is read from a file or fetched from a URL.

A key is used only to check signatures, and only with the algorithms of its kind. So a token cannot choose how it is checked.
Source: RFC 7517 (JWK, JWKS); RFC 8725, section 3.1 (a key and its algorithms).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from filestore.errors import InvalidContent

KEYS_LIMIT = 100
"""The most keys of a JWKS."""
RSA_BITS = range(2048, 8193)
"""The sizes of the RSA keys that are used: a smaller one can be broken, and a larger one makes each check slow."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",), "Ed448": ("EdDSA",)}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks signatures."""

    id: str
    """The `kid` by which a token names it. Empty if the JWKS gives none."""
    thumbprint: str
    """Names the key itself, whatever its id is."""
    algorithms: tuple[str, ...]
    key: Any = field(repr=False, compare=False)


def parse_keys(content: bytes) -> tuple[PublicKey, ...]:
    """Return the keys of a JWKS that can be used. Others are left out, such as those that encrypt. Raises InvalidContent."""
    try:
        document = json.loads(content)
        keys = document["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InvalidContent('it is not a JWKS, a JSON object with a list "keys"') from None
    if not isinstance(keys, list) or len(keys) > KEYS_LIMIT or not all(isinstance(key, dict) for key in keys):
        raise InvalidContent(f'"keys" is not a list of at most {KEYS_LIMIT} objects')
    if any("d" in key or key.get("kty") == "oct" for key in keys):
        raise InvalidContent("it has a private or secret key, which must not be here; give the public keys only")
    found = (_public_key(key) for key in keys)
    return tuple(key for key in found if key is not None)


def find_key(keys: tuple[PublicKey, ...], key_id: object, algorithm: object) -> PublicKey | None:
    """Return the key that a token names, if the algorithm fits it. A token without an id means the only key of the set."""
    if key_id is None:
        return keys[0] if len(keys) == 1 and algorithm in keys[0].algorithms else None
    return next((key for key in keys if key.id and key.id == key_id and algorithm in key.algorithms), None)


def _public_key(found: Mapping[str, Any]) -> PublicKey | None:
    """Return the key that a JWK describes, or None if it does not check signatures of a kind that is used."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # an extra
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415  # the same
    from jwt import PyJWTError  # noqa: PLC0415  # the same
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm  # noqa: PLC0415  # the same

    kind, key_id, stated = str(found.get("kty")), found.get("kid", ""), found.get("alg")
    parsers: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
    curve = found.get("crv")
    fitting = _RSA if kind == "RSA" else _CURVES.get(curve, ()) if isinstance(curve, str) else ()
    algorithms = tuple(each for each in fitting if stated in {None, each}) if isinstance(stated, str | None) else ()
    operations = found.get("key_ops")
    checks = found.get("use", "sig") == "sig" and (not isinstance(operations, list) or "verify" in operations)
    if not algorithms or not checks or not isinstance(key_id, str) or kind not in parsers:
        return None
    try:
        key = parsers[kind].from_jwk(dict(found))
        encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    if kind == "RSA" and key.key_size not in RSA_BITS:
        return None
    return PublicKey(key_id, hashlib.sha256(encoded).hexdigest(), algorithms, key)
