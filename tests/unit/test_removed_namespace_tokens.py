from __future__ import annotations

from pathlib import Path

import pytest

from filestore.core.digest import token_digest
from filestore.core.scopes import Scope
from filestore.errors import Unauthorized
from filestore.http.server.auth import Tokens
from filestore.repository.given_tokens import note_given
from filestore.repository.index.sqlite import open_index
from filestore.repository.maintenance.namespaces import remove_namespace

GIVEN = ("a-token", "another-token")


async def test_limited_tokens_of_a_run_get_no_more_when_their_namespace_is_removed(tmp_path: Path) -> None:
    """They were given to a server, and the index limits them. Without their rows in it, they would permit everything."""
    given = {token_digest(token): "team" for token in GIVEN}
    index = await open_index(tmp_path / "index.sqlite")
    await note_given(index, given)
    async with index.transaction() as transaction:
        for digest in given:
            await transaction.add_token(digest, namespace="team", label="", scope=Scope.READ)
    tokens = Tokens(index, given)
    await tokens.refresh()
    for token in GIVEN:
        assert (await tokens.access(f"Bearer {token}")).scope is Scope.READ
    await remove_namespace(index, "team")
    await tokens.refresh()
    for token in GIVEN:
        with pytest.raises(Unauthorized):
            await tokens.access(f"Bearer {token}")
    await index.close()
