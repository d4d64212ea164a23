from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import token_digest
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys
from filestore.errors import InvalidContent, InvalidSetting, Unauthorized
from filestore.http.server import jwt_tokens
from filestore.http.server.access import Access
from filestore.http.server.jwt_grants import PREFIX_LIMIT, RULES_LIMIT, parse_rules
from filestore.http.server.jwt_keys import KEYS_LIMIT, find_key, parse_keys
from filestore.http.server.jwt_tokens import JwtOptions, JwtTokens, check_options, has_form
from tests.support.clock import Clock
from tests.support.jwts import AUDIENCE, ISSUER, Signer, jwks, part, save, signer

SIGNING = SigningKeys.first(bytes(32))
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
RULES = b"""
- when: {repository: org/app, ref: [refs/heads/main, refs/heads/next]}
  namespace: team
  scope: write
  prefix: app-
- when: {realm_access: {roles: readers}}
  namespace: team
  scope: read
- when: {admin: true}
  namespace: other
  scope: admin
"""


def options(path: Path, **others: Any) -> JwtOptions:
    """Options for the keys in a file."""
    return JwtOptions(keys=path, issuer=ISSUER, audience=AUDIENCE, **others)


@pytest.fixture
def clock() -> Clock:
    """The time as the server sees it. It begins as that of the provider."""
    clock = Clock()
    clock.now = time.time()
    return clock


@pytest.fixture
async def tokens(tmp_path: Path, clock: Clock) -> AsyncIterator[JwtTokens]:
    """What accepts the tokens of one key."""
    tokens = JwtTokens(options(save(tmp_path / "keys.json", jwks(signer()))), now=clock)
    async with tokens.running():
        yield tokens


async def given(tokens: JwtTokens, token: str) -> Access:
    """Return what a token permits."""
    assert has_form(token)
    return await tokens.access(token, token_digest(token), SIGNING)


async def refused(tokens: JwtTokens, token: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return why a token is refused, as the log says it."""
    caplog.set_level(logging.INFO, logger="filestore.access")
    with pytest.raises(Unauthorized):
        await tokens.access(token, token_digest(token), SIGNING)
    (message,) = caplog.messages
    assert token not in message
    return message


async def test_what_claims_permit(tokens: JwtTokens, clock: Clock) -> None:
    """The highest scope of filestore counts; scopes of other services do not."""
    exp = int(clock.now) + 100
    token = signer().token(exp=exp, scope="openid filestore:read filestore:delete admin")
    access = await given(tokens, token)
    assert ("team", Scope.DELETE, "", exp, "ada") == (
        *(access.namespace, access.scope, access.prefix),
        *(access.expires_at, access.label),
    )
    assert Scope.READ == (await given(tokens, signer().token(scope=["filestore:read"], sub="x"))).scope


async def test_a_user_has_one_id(tokens: JwtTokens) -> None:
    """Two tokens of a subject have the same id, and those of two subjects do not. It does not tell the subject."""
    ids = [(await given(tokens, signer().token(sub=sub, jti=str(number)))).token_id for number, sub in enumerate("aab")]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("jwt:")
    assert 16 == len(ids[0])


async def test_a_label_is_printable(tokens: JwtTokens) -> None:
    """A subject cannot write lines of its own into a log, and is cut."""
    access = await given(tokens, signer().token(sub="a\n\x1b[2J" + "b" * 1000))
    assert access.label.isprintable()
    assert 100 == len(access.label)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_algorithms(tmp_path: Path, algorithm: str) -> None:
    """Each algorithm with a public key works."""
    by = signer("of " + algorithm, algorithm)
    tokens = JwtTokens(options(save(tmp_path / "keys.json", jwks(signer(), by))))
    async with tokens.running():
        assert "team" == (await given(tokens, by.token())).namespace


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "another"}, "another audience"),
        ({"aud": ["another", "third"]}, "another audience"),
        ({"aud": AUDIENCE.upper()}, "another audience"),
        ({"aud": None}, "'aud' is missing"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": ISSUER[:-1]}, "another issuer"),
        ({"iss": [ISSUER]}, "another issuer|malformed"),
        ({"exp": "soon"}, "'exp' is not a time"),
        ({"exp": True}, "'exp' is not a time"),
        ({"exp": 1e300}, "'exp' is not a time"),
        ({"exp": -1}, "'exp' is not a time"),
        ({"nbf": "later"}, "'nbf' is not a time"),
        ({"filestore_namespace": "../team"}, "claim of a namespace"),
        ({"filestore_namespace": ["team"]}, "claim of a namespace"),
        ({"scope": "read write admin"}, "claim of scopes"),
        ({"scope": "filestore:ADMIN filestore:admins xfilestore:read"}, "claim of scopes"),
        ({"scope": {"filestore:read": 1}}, "claim of scopes"),
        ({"scope": 4}, "claim of scopes"),
    ],
)
async def test_claims_that_are_refused(
    tokens: JwtTokens, claims: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each claim must have the right form. The log says which one has not."""
    assert re.search(reason, await refused(tokens, signer().token(**claims), caplog))


@pytest.mark.parametrize("name", ["exp", "iss", "aud", "filestore_namespace", "scope"])
async def test_claims_that_are_missing(tokens: JwtTokens, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """These claims must be there."""
    assert "missing" in (text := await refused(tokens, signer().token(without=(name,)), caplog)) or "scopes" in text


@pytest.mark.parametrize("prefix", ["app-", None, 4, "x" * (PREFIX_LIMIT + 1), "a\nb"])
async def test_a_prefix_claim_that_a_setting_names_must_be_there(tmp_path: Path, prefix: object) -> None:
    """A token without it does not see all names."""
    tokens = JwtTokens(options(save(tmp_path / "keys.json", jwks(signer())), prefix_claim="filestore_prefix"))
    async with tokens.running():
        token = signer().token(filestore_prefix=prefix)
        if prefix == "app-":
            assert "app-" == (await given(tokens, token)).prefix
        else:
            with pytest.raises(Unauthorized):
                await given(tokens, token)


async def test_times(tokens: JwtTokens, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The clock of the provider may be a minute ahead. A token ends at its expiry, and not later."""
    now = int(clock.now)
    token = signer().token(iat=now + 60, nbf=now + 60, exp=now + 100)
    access = await given(tokens, token)
    clock.now = now + 99.5
    assert access == await given(tokens, token)
    assert tokens.is_valid(access, SIGNING)
    clock.now = now + 100
    assert not tokens.is_valid(access, SIGNING)
    assert "expired" in await refused(tokens, token, caplog)


def by_name(claim: str, value: object) -> str:
    """Return a token with another claim."""
    claims: dict[str, Any] = {claim: value}
    return signer().token(**claims)


@pytest.mark.parametrize("name", ["nbf", "iat"])
async def test_a_token_of_the_future(tokens: JwtTokens, clock: Clock, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused until then."""
    assert "not valid yet" in await refused(tokens, by_name(name, int(clock.now) + 90), caplog)


async def test_a_reason_is_logged_once_a_minute(tokens: JwtTokens, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Who sends wrong tokens does not fill the log."""
    caplog.set_level(logging.INFO, logger="filestore.access")
    for wait in (0, 1, 58, 2, 1):
        clock.now += wait
        with pytest.raises(Unauthorized):
            await given(tokens, signer().token(aud="another"))
    assert 2 == len(caplog.messages)


async def test_a_signature_is_checked_once(tokens: JwtTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer of many requests does not check one token again and again."""
    checks = []
    checked = tokens._checked

    async def counted(token: str, signing: SigningKeys) -> Access:
        checks.append(token)
        return await checked(token, signing)

    monkeypatch.setattr(tokens, "_checked", counted)
    token = signer().token()
    assert 1 == len({await given(tokens, token) for _ in range(100)})
    assert [token] == checks


async def test_few_tokens_are_remembered(tokens: JwtTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were used longest ago are forgotten, and work when they come again."""
    monkeypatch.setattr(jwt_tokens, "REMEMBERED_LIMIT", 3)
    many = [signer().token(jti=str(number)) for number in range(5)]
    for token in many:
        await given(tokens, token)
    assert [token_digest(token) for token in many[2:]] == list(tokens._known)
    assert "team" == (await given(tokens, many[0])).namespace


async def test_a_key_that_is_removed_ends_what_it_permitted(tmp_path: Path) -> None:
    """The tokens of that key are refused, its accesses and URLs end, and those of other keys go on."""
    path = save(tmp_path / "keys.json", jwks(signer("first"), signer("second")))
    tokens = JwtTokens(options(path))
    async with tokens.running():
        first, second = signer("first").token(), signer("second").token()
        accesses = [await given(tokens, token) for token in (first, second)]
        signed = [Access("team", access.issuer, is_signed=True) for access in accesses]
        assert 2 == len({access.issuer for access in accesses})
        save(path, jwks(signer("second")))
        await tokens._look()
        assert [False, True] == [tokens.is_valid(access, SIGNING) for access in accesses]
        assert [False, True] == [tokens.is_valid(access, SIGNING) for access in signed]
        assert accesses[1] == await given(tokens, second)
        with pytest.raises(Unauthorized):
            await given(tokens, first)


async def test_an_issuer_is_of_one_namespace(tokens: JwtTokens) -> None:
    """A signed URL of one namespace says nothing about another."""
    access = await given(tokens, signer().token())
    assert tokens.is_valid(Access("team", access.issuer, is_signed=True), SIGNING)
    assert not tokens.is_valid(Access("other", access.issuer, is_signed=True), SIGNING)
    assert not tokens.is_valid(Access("team"), SIGNING)


async def test_a_file_that_is_broken_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The keys and rules that were read last stay valid. The log says so once, and again when the file is right."""
    caplog.set_level(logging.INFO, logger="filestore.access")
    path = save(tmp_path / "keys.json", jwks(signer()))
    tokens = JwtTokens(options(path))
    async with tokens.running():
        for content in (b"", b'{"keys": [', b"[]", b"[" * 10_000, b"x" * (2 << 20)):
            save(path, content)
            await tokens._look()
            assert "team" == (await given(tokens, signer().token())).namespace
        path.unlink()
        await tokens._look()
        assert "team" == (await given(tokens, signer().token())).namespace
        os.mkfifo(path)
        await tokens._look()
        assert "team" == (await given(tokens, signer().token())).namespace
        path.unlink()
        save(path, jwks(signer()))
        await tokens._look()
    assert ["cannot be used" in caplog.messages[0], "can be used again" in caplog.messages[1]] == [True, True]
    assert 2 == len(caplog.messages)


async def test_a_set_without_keys_ends_all_tokens(tmp_path: Path) -> None:
    """It is valid, and this is how one ends them."""
    path = save(tmp_path / "keys.json", jwks(signer()))
    tokens = JwtTokens(options(path))
    async with tokens.running():
        await given(tokens, signer().token())
        save(path, jwks())
        await tokens._look()
        with pytest.raises(Unauthorized):
            await given(tokens, signer().token())


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"repository": "org/app", "ref": "refs/heads/main"}, ("team", Scope.WRITE, "app-")),
        ({"repository": "org/app", "ref": "refs/heads/next"}, ("team", Scope.WRITE, "app-")),
        ({"repository": "org/app", "ref": "refs/heads/other"}, None),
        ({"repository": "org/app"}, None),
        ({"repository": "org/apps", "ref": "refs/heads/main"}, None),
        ({"repository": "ORG/app", "ref": "refs/heads/main"}, None),
        ({"realm_access": {"roles": ["writers", "readers"]}}, ("team", Scope.READ, "")),
        ({"realm_access": {"roles": ["reader"]}}, None),
        ({"realm_access": "readers"}, None),
        ({"admin": True}, ("other", Scope.ADMIN, "")),
        ({"admin": 1}, None),
        ({"admin": "true"}, None),
        ({"filestore_namespace": "team", "scope": "filestore:admin"}, None),
    ],
)
async def test_rules(tmp_path: Path, claims: dict[str, Any], expected: tuple[str, Scope, str] | None) -> None:
    """The first rule that fits counts. Without one a token is refused, also if it has claims for filestore."""
    keys = save(tmp_path / "keys.json", jwks(signer()))
    tokens = JwtTokens(options(keys, rules=save(tmp_path / "rules.yaml", RULES)))
    token = signer().token(**({"scope": "", "filestore_namespace": ""} | claims))
    async with tokens.running():
        if expected is None:
            with pytest.raises(Unauthorized):
                await given(tokens, token)
        else:
            access = await given(tokens, token)
            assert expected == (access.namespace, access.scope, access.prefix)


async def test_a_rule_that_is_changed_ends_what_it_permitted(tmp_path: Path) -> None:
    """What other rules permit goes on."""
    rules = save(tmp_path / "rules.yaml", RULES)
    tokens = JwtTokens(options(save(tmp_path / "keys.json", jwks(signer())), rules=rules))
    async with tokens.running():
        changed, kept = signer().token(realm_access={"roles": ["readers"]}), signer().token(admin=True)
        accesses = [await given(tokens, token) for token in (changed, kept)]
        save(rules, RULES.replace(b"roles: readers", b"roles: friends"))
        await tokens._look()
        assert [False, True] == [tokens.is_valid(access, SIGNING) for access in accesses]
        with pytest.raises(Unauthorized):
            await given(tokens, changed)
        assert [True, False] == [tokens.may_serve("team"), tokens.may_serve("third")]


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("{}", "must have the keys"),
        ("{when: {}, namespace: team, scope: read}", "needs conditions"),
        ("{when: {a: }, namespace: team, scope: read}", "needs conditions"),
        ("{when: {a: []}, namespace: team, scope: read}", "needs conditions"),
        ("{when: {a: {}}, namespace: team, scope: read}", "needs conditions"),
        ("{when: {1: a}, namespace: team, scope: read}", "needs conditions"),
        ("{when: {a: 1.5}, namespace: team, scope: read}", "needs conditions"),
        ("{when: {a: b}, namespace: Team, scope: read}", "namespace that is not valid"),
        ("{when: {a: b}, namespace: 4, scope: read}", "namespace that is not valid"),
        ("{when: {a: b}, namespace: team, scope: all}", "scope that does not exist"),
        ("{when: {a: b}, namespace: team, scope: 4}", "scope that does not exist"),
        ("{when: {a: b}, namespace: team, scope: read, prefix: }", "prefix that is not valid"),
        ("{when: {a: b}, namespace: team, scope: read, unless: {}}", "no other"),
        ("text", "must have the keys"),
    ],
)
def test_rules_that_are_refused(rule: str, fault: str) -> None:
    """The error names the rule and its fault."""
    with pytest.raises(InvalidContent, match=f"rule 2 .*{fault}"):
        parse_rules(f"- {{when: {{a: b}}, namespace: team, scope: read}}\n- {rule}\n".encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"when: {}", b"- [", b"- !!python/object/apply:os.system [id]", b"\xff", b"- {}\n" * (RULES_LIMIT + 1), b"[" * 500],
)
def test_files_that_are_not_rules(content: bytes) -> None:
    """They are refused, and nothing in them is executed."""
    with pytest.raises(InvalidContent):
        parse_rules(content)


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"alg": "HS256"},
        {"alg": "RSA-OAEP"},
        {"alg": 4},
        {"kty": "RSA"},
        {"kty": "none"},
        {"kty": ["EC"]},
        {"crv": "secp256k1"},
        {"crv": ["P-256"]},
        {"x": "AA"},
        {"x": None},
        {"kid": 4},
    ],
)
def test_keys_that_are_left_out(change: dict[str, Any]) -> None:
    """A key that does not check signatures, or is malformed, does not make the others useless."""
    keys = parse_keys(json.dumps({"keys": [signer().jwk | change, signer("second").jwk]}).encode())
    assert ["second"] == [key.id for key in keys]


def test_rsa_keys_of_other_sizes_are_left_out() -> None:
    """A short key can be broken, and a very long one makes each check slow."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    short = Signer("short", rsa.generate_private_key(65537, 1024), "RS256")
    assert () == parse_keys(jwks(short))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"4",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": [4]}',
        b'{"keys": [' + b"{}," * KEYS_LIMIT + b"{}]}",
        b'{"keys": [{"kty": "oct", "k": "AAAA", "alg": "HS256"}]}',
        b'{"keys": [{"kty": "EC", "d": "AAAA"}]}',
        b"[" * 100_000,
    ],
)
def test_files_that_are_not_public_keys(content: bytes) -> None:
    """A file with a secret or private key is refused as a whole."""
    with pytest.raises(InvalidContent):
        parse_keys(content)


def test_which_key_checks_a_token() -> None:
    """The id must be equal, and the algorithm must be one of the key. Without an id there must be one key only."""
    keys = parse_keys(jwks(signer("first", "RS256"), signer("second")))
    assert [True, False, False, False, False] == [
        find_key(keys, *asked) is not None
        for asked in (("first", "PS512"), ("first", "ES256"), ("third", "RS256"), (None, "RS256"), ("", "RS256"))
    ]
    assert find_key(keys[:1], None, "RS256") is keys[0]
    stated = parse_keys(json.dumps({"keys": [signer("first", "RS256").jwk | {"alg": "RS256"}]}).encode())
    assert find_key(stated, "first", "PS256") is None


@pytest.mark.parametrize(
    "text", ["hf_" + "a" * 40, "a.b", "a.b.c.d", "a.b.c.d.e", "..", "a..b", "a.b.c=", "a.b. c", "a.b.ä", "a.b.c\n"]
)
def test_what_has_not_the_form(text: str) -> None:
    """Other tokens are looked up in the index as before."""
    assert not has_form(text)


async def test_tokens_that_no_library_must_see(tokens: JwtTokens, caplog: pytest.LogCaptureFixture) -> None:
    """A huge or deeply nested token is refused before its signature is looked at."""
    caplog.set_level(logging.INFO, logger="filestore.access")
    header: dict[str, object] = {"alg": "ES256", "kid": "first"}
    long_number = b'{"alg": "ES256", "kid": ' + b"9" * 5000 + b"}"
    for token in (
        f"{part(b'[' * 5000)}.e30.AAAA",
        f"{part(header)}.{part(b'[' * 5000)}.AAAA",
        f"{part(header)}.{'A' * 20_000}.AAAA",
        f"{part(header | {'kid': 4})}.e30.AAAA",
        f"{part([])}.e30.AAAA",
        f"{part(header | {'crit': ['exp']})}.e30.AAAA",
        f"{part(header | {'b64': False, 'crit': ['b64']})}.e30.AAAA",
        f"{part(long_number)}.e30.AAAA",
    ):
        with pytest.raises(Unauthorized):
            await given(tokens, token)


def test_settings_are_checked_at_the_start(tmp_path: Path) -> None:
    """A file that is missing or wrong is an error with the name of its setting."""
    keys, rules = save(tmp_path / "keys.json", jwks(signer())), save(tmp_path / "rules.yaml", RULES)
    check_options(options(keys, rules=rules))
    with pytest.raises(InvalidSetting, match=r"jwt_keys.*No such file"):
        check_options(options(tmp_path / "absent"))
    with pytest.raises(InvalidSetting, match=r"jwt_keys.*not a JWKS"):
        check_options(options(rules))
    with pytest.raises(InvalidSetting, match=r"jwt_rules.*list"):
        check_options(options(keys, rules=keys))
