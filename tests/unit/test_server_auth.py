from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import token_digest
from filestore.core.scopes import Scope
from filestore.core.signing import signed_path
from filestore.errors import TokenExpired, Unauthorized, UrlRefused
from filestore.http.server.auth import REMEMBER_SECONDS, Tokens
from filestore.repository.given_tokens import given_tokens, note_given, remove_given
from filestore.repository.index.protocol import Index, TokenRow
from filestore.repository.index.sqlite import open_index
from tests.support.clock import Clock

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
"""The time in microseconds at the start of a test."""


def microseconds(clock: Clock) -> int:
    """The time that the clock shows, since 1970."""
    return NOW + round((clock.now - Clock().now) * SECOND)


@pytest.fixture
def clock() -> Clock:
    """The time as the tokens of a test see it."""
    return Clock()


@pytest.fixture
async def index(tmp_path: Path, clock: Clock) -> AsyncIterator[Index]:
    """An index that knows one token."""
    index = await open_index(tmp_path / "index.sqlite", now=lambda: microseconds(clock))
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest("kept"), namespace="team", label="")
    yield index
    await index.close()


@pytest.fixture
def tokens(index: Index, clock: Clock) -> Tokens:
    """That index, and a token for this run."""
    return Tokens(index, {token_digest("given"): "default"}, clock=clock, now=lambda: microseconds(clock))


async def change(index: Index, **properties: Any) -> None:
    """Change the token of the index."""
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest("kept"), **{"namespace": "team", "label": "", **properties})


@pytest.mark.parametrize(
    ("authorization", "namespace"),
    [
        ("Bearer kept", "team"),
        ("Bearer given", "default"),
        ("bearer kept", "team"),
        ("BEARER kept", "team"),
        ("Bearer  kept ", "team"),
    ],
)
async def test_a_token_has_a_namespace(tokens: Tokens, authorization: str, namespace: str) -> None:
    """RFC 6750: the scheme's name is written as one likes."""
    assert namespace == (await tokens.access(authorization)).namespace


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer None",
        "Bearer stranger",
        "Bearer KEPT",
        "Bearer kept kept",
        "Basic kept",
        "kept",
        "Bearerkept",
        f"Bearer {token_digest('kept')}",
        "Bearer \udcff",
    ],
)
async def test_all_others_are_refused(tokens: Tokens, authorization: str | None) -> None:
    """No token, another token, the SDK's header without a token, and the stored digest are refused."""
    with pytest.raises(Unauthorized):
        await tokens.access(authorization)


async def test_the_word_none_is_never_a_token(index: Index, tokens: Tokens) -> None:
    """It is refused even if it was added: every client without a token would be accepted."""
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest("None"), namespace="team", label="")
    with pytest.raises(Unauthorized):
        await tokens.access("Bearer None")


async def test_a_removed_token_dies_soon(index: Index, tokens: Tokens, clock: Clock) -> None:
    """An accepted token is remembered for a moment, and requests do not make this longer."""
    assert "team" == (await tokens.access("Bearer kept")).namespace
    async with index.transaction() as transaction:
        await transaction.remove_token(token_digest("kept"))
    clock.now += REMEMBER_SECONDS / 2
    assert "team" == (await tokens.access("Bearer kept")).namespace
    clock.now += REMEMBER_SECONDS / 2
    with pytest.raises(Unauthorized):
        await tokens.access("Bearer kept")


async def test_a_new_token_works_at_once(index: Index, tokens: Tokens) -> None:
    """That it was a stranger's before is not remembered."""
    with pytest.raises(Unauthorized):
        await tokens.access("Bearer new")
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest("new"), namespace="team", label="")
    assert "team" == (await tokens.access("Bearer new")).namespace


async def test_what_a_removed_token_asked_for_dies(index: Index, tokens: Tokens) -> None:
    """Its accesses are valid until the next look at the index; a token of this run is removed in the same way."""
    kept, given = await tokens.access("Bearer kept"), await tokens.access("Bearer given")
    await tokens.refresh()
    assert tokens.is_valid(kept)
    assert tokens.is_valid(given)
    async with index.transaction() as transaction:
        await transaction.remove_token(token_digest("kept"))
    await tokens.refresh()
    assert [False, True] == [tokens.is_valid(kept), tokens.is_valid(given)]
    async with index.transaction() as transaction:
        await remove_given(index, transaction, token_digest("given"), namespace="default")
    await tokens.refresh()
    assert not tokens.is_valid(given)
    with pytest.raises(Unauthorized):
        await tokens.access("Bearer given")


async def test_a_token_of_another_namespace_does_not_keep_an_access(index: Index, tokens: Tokens) -> None:
    """A token that was moved to another namespace ends what it permitted in the one before."""
    kept = await tokens.access("Bearer kept")
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest("kept"), namespace="other", label="")
    await tokens.refresh()
    assert not tokens.is_valid(kept)


async def test_given_tokens_are_listed_and_removed_for_ever(index: Index) -> None:
    """A server notes what it was given. It learns at its next start that a token was removed."""
    first, second = token_digest("first"), token_digest("second")
    assert [] == await note_given(index, {first: "default", second: "team"})
    assert {(first, "default"), (second, "team")} == {(token.digest, token.namespace) for token in await given_tokens(index)}
    async with index.transaction() as transaction:
        await remove_given(index, transaction, first, namespace="default")
    assert [first] == await note_given(index, {first: "default", second: "team"})
    assert {first: True, second: False} == {token.digest: token.is_removed for token in await given_tokens(index)}


async def test_a_namespace_is_revoked_with_its_last_token(index: Index, tokens: Tokens) -> None:
    """Also if it had its tokens only for a moment, between two looks."""
    async with index.transaction() as transaction:
        for token in ("first", "second"):
            await transaction.add_token(token_digest(token), namespace="guest", label="")
    await tokens.access("Bearer first")
    for token, revoked in (("first", set()), ("second", {"guest"})):
        async with index.transaction() as transaction:
            await transaction.remove_token(token_digest(token))
        assert revoked == await tokens.revoked_namespaces()


async def test_a_namespace_that_has_a_token_at_another_server_is_not_revoked(index: Index) -> None:
    """A runtime accepts no token of the index. When its own is removed, others may still upload to the folder."""
    for namespace in ("team", "default"):
        runtime = Tokens(index, {token_digest(namespace): namespace}, knows_index=False)
        await note_given(index, {token_digest(namespace): namespace})
        await runtime.access(f"Bearer {namespace}")
        async with index.transaction() as transaction:
            await remove_given(index, transaction, token_digest(namespace), namespace=namespace)
        assert ({"default"} if namespace == "default" else set()) == await runtime.revoked_namespaces()
    await note_given(index, {token_digest("of a file server"): "default"})
    assert set() == await runtime.revoked_namespaces()


async def test_access_has_what_the_row_says(index: Index, tokens: Tokens) -> None:
    """Scope, prefix, label and id. A token of this run has all scopes."""
    digest = token_digest("kept")
    await change(index, label="ci", scope=Scope.WRITE, prefix="logs-")
    access = await tokens.access("Bearer kept")
    assert ("team", Scope.WRITE, "logs-", "ci", str(digest)[:16], False) == (
        *(access.namespace, access.scope, access.prefix, access.label, access.token_id, access.is_signed),
    )
    given = await tokens.access("Bearer given")
    assert (Scope.ADMIN, "", "") == (given.scope, given.prefix, given.label)


async def test_an_expired_token_is_refused_and_told_so(index: Index, tokens: Tokens, clock: Clock) -> None:
    """Also by the process that remembers it, and what it permitted ends. A longer time makes it valid again."""
    await change(index, expires_at=NOW + SECOND // 2)
    access = await tokens.access("Bearer kept")
    await tokens.refresh()
    assert tokens.is_valid(access)
    clock.now += 0.5
    assert not tokens.is_valid(access)
    with pytest.raises(TokenExpired, match="it has expired"):
        await tokens.access("Bearer kept")
    await change(index, expires_at=NOW + 9 * SECOND)
    await tokens.refresh()
    assert tokens.is_valid(access)
    assert "team" == (await tokens.access("Bearer kept")).namespace


@pytest.mark.parametrize(
    ("before", "after", "needed", "is_valid"),
    [
        ({"scope": Scope.DELETE}, {"scope": Scope.WRITE}, Scope.WRITE, True),
        ({"scope": Scope.DELETE}, {"scope": Scope.WRITE}, Scope.DELETE, False),
        ({"scope": Scope.WRITE}, {"scope": Scope.READ}, Scope.READ, True),
        ({"scope": Scope.WRITE}, {"scope": Scope.READ}, Scope.WRITE, False),
        ({"prefix": "logs-"}, {"prefix": "logs-"}, Scope.READ, True),
        ({"prefix": "logs-"}, {"prefix": "log"}, Scope.READ, True),
        ({"prefix": "logs-"}, {}, Scope.READ, True),
        ({"prefix": "logs-"}, {"prefix": "logs-2026"}, Scope.READ, False),
        ({}, {"prefix": "logs-"}, Scope.READ, False),
        ({}, {"label": "another"}, Scope.ADMIN, True),
    ],
)
async def test_a_limited_token_ends_what_it_no_longer_permits(
    index: Index, tokens: Tokens, *, before: dict[str, Any], after: dict[str, Any], needed: Scope, is_valid: bool
) -> None:
    """A request that the token still permits goes on."""
    await change(index, **before)
    access = await tokens.access("Bearer kept")
    await change(index, **after)
    await tokens.refresh()
    assert is_valid == tokens.is_valid(access, needed=needed)
    # The next request has what the token has now, also while the process remembers it.
    assert after.get("prefix", "") == (await tokens.access("Bearer kept")).prefix


async def test_a_signed_url_permits_what_its_token_permits_now(index: Index, tokens: Tokens, clock: Clock) -> None:
    """It ends with its token, and with its time."""
    issuer = (await tokens.access("Bearer kept")).issuer
    signed = signed_path(await tokens.keys(), "GET", "/a", namespace="team", expires_at=1 << 40, issuer=issuer)
    _, _, namespace, expires_at, signature, _ = signed.split("/")
    url = {"namespace": namespace, "expires_at": expires_at, "signature": signature}
    await change(index, scope=Scope.READ, prefix="logs-", expires_at=NOW + SECOND)
    await tokens.refresh()
    access = await tokens.signed("GET", "/a", **url)
    assert (Scope.READ, "logs-", True) == (access.scope, access.prefix, access.is_signed)
    clock.now += 1
    with pytest.raises(UrlRefused, match=r"it was revoked, or the token .* was removed, or has expired"):
        await tokens.signed("GET", "/a", **url)


async def test_urls_of_a_removed_token_do_not_read_the_index_again_and_again(
    index: Index, tokens: Tokens, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at all tokens in a second is enough. A token that is newer than the last look is found by one."""
    looks = []
    read = index.tokens

    async def counted() -> list[TokenRow]:
        looks.append(clock.now)
        return await read()

    monkeypatch.setattr(index, "tokens", counted)
    keys = await tokens.keys()

    def url(token: str) -> dict[str, str]:
        issuer = keys.issuer(token_digest(token))
        _, _, namespace, expires_at, signature, _ = signed_path(
            keys, "GET", "/a", namespace="team", expires_at=1 << 40, issuer=issuer
        ).split("/")
        return {"namespace": namespace, "expires_at": expires_at, "signature": signature}

    for after in range(3):
        for _ in range(10):
            with pytest.raises(UrlRefused):
                await tokens.signed("GET", "/a", **url("removed"))
        assert after + 1 == len(looks)
        clock.now += REMEMBER_SECONDS
    await tokens.signed("GET", "/a", **url("kept"))
    assert 3 == len(looks)
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest("new"), namespace="team", label="")
    await tokens.signed("GET", "/a", **url("new"))
    assert 4 == len(looks)
    clock.now += REMEMBER_SECONDS
    await tokens.refresh()
    assert {} == tokens._refused


async def test_a_namespace_is_revoked_when_its_last_token_expires(index: Index, tokens: Tokens, clock: Clock) -> None:
    """Its uploads in progress are then removed, as if the token had been removed."""
    await change(index, expires_at=NOW + SECOND)
    await tokens.access("Bearer kept")
    assert set() == await tokens.revoked_namespaces()
    clock.now += 1
    assert {"team"} == await tokens.revoked_namespaces()


async def test_used_tokens_are_told_once_a_minute(index: Index, tokens: Tokens, clock: Clock) -> None:
    """Tokens of this run have no row, and are left out."""
    await tokens.access("Bearer kept")
    await tokens.access("Bearer given")
    assert [token_digest("kept")] == tokens.take_used()
    assert [] == tokens.take_used()
    await index.note_token_uses([token_digest("kept")])
    await tokens.refresh()
    for _ in range(2):
        clock.now += 30
        await tokens.access("Bearer kept")
        assert [] == tokens.take_used()
    clock.now += 1
    await tokens.access("Bearer kept")
    assert [token_digest("kept")] == tokens.take_used()


async def test_a_use_in_the_future_is_told_again(index: Index, tokens: Tokens, clock: Clock) -> None:
    """A clock that was wrong and is set back must not keep a time of last use that is years ahead."""
    await tokens.access("Bearer kept")
    await index.note_token_uses(tokens.take_used())
    await tokens.refresh()
    clock.now -= 400 * 86400
    await tokens.access("Bearer kept")
    assert [token_digest("kept")] == tokens.take_used()


async def test_a_given_token_that_is_kept_has_the_limits_of_the_index(index: Index, clock: Clock) -> None:
    """Somebody starts a server with the limited token of a client in the environment. A runtime does not ask the index."""
    await change(index, scope=Scope.READ, namespace="kept")
    given = {token_digest("kept"): "default"}
    for knows_index, expected in ((True, ("kept", Scope.READ)), (False, ("default", Scope.ADMIN))):
        tokens = Tokens(index, given, knows_index=knows_index, clock=clock)
        await tokens.refresh()
        access = await tokens.access("Bearer kept")
        assert expected == (access.namespace, access.scope)
        await tokens.refresh()
        assert tokens.is_valid(access)
        assert knows_index == bool(tokens.take_used())
