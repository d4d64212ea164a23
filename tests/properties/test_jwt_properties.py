"""Whatever a provider, a file of rules or a token says, it is taken or refused, and nothing fails in another way."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestore.core.scopes import Scope
from filestore.errors import InvalidContent
from filestore.http.server.jwt_grants import ClaimNames, parse_rules
from filestore.http.server.jwt_keys import find_key, parse_keys
from tests.support.jwts import jwks, signer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=10,
)
MEMBERS = ("kty", "kid", "alg", "use", "key_ops", "crv", "x", "y", "n", "e", "x5c")
ONE_OF_SOME = st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "sig", "ES256", "AQAB", "", "first"])
KEYS = st.lists(st.dictionaries(st.sampled_from(MEMBERS), JSON | ONE_OF_SOME, max_size=len(MEMBERS)), max_size=3)
CLAIMS = st.dictionaries(st.sampled_from(["namespace", "scope", "prefix", "groups"]), JSON, max_size=4)
RULES = parse_rules(b"[{when: {groups: [a, 1, true]}, namespace: team, scope: read}]")


@pytest.mark.slow
@given(KEYS | JSON, KEYS)
def test_keys(document: Any, changes: list[dict[str, Any]]) -> None:
    """Keys that cannot be used are left out. A key that can be used stays."""
    with suppress(InvalidContent):
        parse_keys(json.dumps(document).encode())
    with suppress(InvalidContent):
        parse_keys(json.dumps({"keys": document}).encode())
    good = [signer().jwk, signer("other", "EdDSA").jwk]
    mixed = [*changes, *good, *(each | change for each in good for change in changes)]
    found = parse_keys(json.dumps({"keys": mixed}).encode())
    assert set(parse_keys(jwks(signer(), signer("other", "EdDSA")))) <= set(found)


@given(JSON, JSON)
def test_heads(key_id: Any, algorithm: Any) -> None:
    """Only the name and the algorithm of a key find it."""
    (key,) = parse_keys(jwks(signer()))
    found = find_key((key, key), key_id, algorithm)
    assert found is None or ("first", "ES256") == (key_id, algorithm)


@given(CLAIMS)
def test_claims(claims: dict[str, Any]) -> None:
    """What claims permit is always a namespace and a scope that exist."""
    for grants in (ClaimNames("namespace", "scope", "prefix"), RULES):
        with suppress(InvalidContent):
            grant = grants.find(claims)
            assert isinstance(grant.scope, Scope)
            assert isinstance(grant.prefix, str)


@given(JSON, st.binary(max_size=200))
def test_rules(document: Any, content: bytes) -> None:
    """A file that is not a list of rules is refused."""
    for text in (content, json.dumps(document).encode(), json.dumps([{"when": document, "namespace": document}]).encode()):
        with suppress(InvalidContent):
            parse_rules(text)
