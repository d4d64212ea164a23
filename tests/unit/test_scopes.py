"""The scope of a token decides which requests it permits."""

from __future__ import annotations

import pytest

from filestore.core.scopes import Scope
from filestore.errors import InvalidInput, ScopeMissing
from filestore.http.server.access import Access


@pytest.mark.parametrize("scope", Scope)
def test_scope_contains_those_below_it(scope: Scope) -> None:
    """A token may do what its scope and each lower one permit, and nothing else."""
    for needed in Scope:
        access = Access("team", scope=scope)
        if needed <= scope:
            access.check_scope(needed)
        else:
            with pytest.raises(ScopeMissing, match=f"scope '{needed}' or a higher one; this token has '{scope}'"):
                access.check_scope(needed)
        Access("team", scope=scope, is_signed=True).check_scope(needed)


def test_scope_is_named_by_its_word() -> None:
    """Each scope is parsed from its name, and any other word is refused with the list of names."""
    assert ["read", "write", "delete", "admin"] == [str(scope) for scope in Scope]
    assert list(Scope) == [Scope.parse(str(scope)) for scope in Scope]
    with pytest.raises(InvalidInput, match="'READ' does not exist; give one of read, write, delete, admin"):
        Scope.parse("READ")
