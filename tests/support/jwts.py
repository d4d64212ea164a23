"""Sign JSON Web Tokens as a provider of identities does, with real keys."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://login.example.org/realms/models"
AUDIENCE = "filestore"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Signer(NamedTuple):
    """A key pair of a provider."""

    key_id: str
    key: PrivateKey
    algorithm: str

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key, as a JWKS has it."""
        public = self.key.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            found = RSAAlgorithm.to_jwk(public)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            found = ECAlgorithm.to_jwk(public)
        else:
            found = OKPAlgorithm.to_jwk(public)
        described: dict[str, Any] = json.loads(found)
        return described | {"kid": self.key_id, "use": "sig"}

    @property
    def pem(self) -> bytes:
        """The public key as text."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, *, headers: dict[str, Any] | None = None, without: tuple[str, ...] = (), **claims: Any) -> str:
        """Return a token that is valid for an hour, with other claims as they are given."""
        now = int(time.time())
        given = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "exp": now + 3600,
            "filestore_namespace": "team",
            "scope": "openid filestore:write",
        } | claims
        payload = {name: value for name, value in given.items() if name not in without}
        # By the class below `jwt.encode`, which refuses some of the claims that an attack needs.
        content = json.dumps(payload).encode()
        return PyJWS().encode(content, self.key, algorithm=self.algorithm, headers={"kid": self.key_id} | (headers or {}))


@cache
def signer(key_id: str = "first", algorithm: str = "ES256") -> Signer:
    """Return a key pair. The same arguments mean the same one."""
    if algorithm.startswith(("RS", "PS")):
        return Signer(key_id, _rsa_key(), algorithm)
    if algorithm == "EdDSA":
        return Signer(key_id, ed25519.Ed25519PrivateKey.generate(), algorithm)
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    return Signer(key_id, ec.generate_private_key(curves[algorithm]), algorithm)


@cache
def _rsa_key() -> rsa.RSAPrivateKey:
    # One for all: to make it takes half a second.
    return rsa.generate_private_key(65537, 2048)


def jwks(*signers: Signer) -> bytes:
    """Return a JWKS."""
    return json.dumps({"keys": [each.jwk for each in signers]}).encode()


def save(path: Path, content: bytes) -> Path:
    """Write a file as careful programs do: a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    return beside.replace(path)


def part(value: object) -> str:
    """Return a part of a token: base64 without padding."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(content).rstrip(b"=").decode()
