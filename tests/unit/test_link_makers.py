"""Who can make a link: a server remembers a token for about a second after it was removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from filestore.core.digest import manifest_digest, token_digest
from filestore.core.links import link_from_json
from filestore.core.records import Kind, Record
from filestore.errors import Unauthorized
from filestore.repository.given_tokens import note_given, remove_given
from filestore.repository.index.protocol import Index, TokenRow
from filestore.repository.index.sqlite import open_index
from filestore.repository.links import LinkMaker, end_links_of, list_links, make_link

NONCE = "0" * 32
ROW = TokenRow(token_digest("a-token"), "team", "", 0)
MAKER = LinkMaker(ROW.id)
RECORD = Record("file_" + "0" * 32, "weights.bin", manifest_digest(b""), 1, Kind.FILE, "team", 0, 0)


async def removed(index: Index) -> None:
    """Remove the token, as `filestore token rm` does."""
    async with index.transaction() as transaction:
        await transaction.remove_token(ROW.digest)
        await end_links_of(index, transaction, ROW)
        await remove_given(index, transaction, ROW.digest, namespace=ROW.namespace)


@pytest.mark.parametrize("is_given", [False, True])
async def test_a_removed_token_makes_no_link(tmp_path: Path, *, is_given: bool) -> None:
    """The link would be valid for a year, and nothing would end it."""
    index = await open_index(tmp_path / "index.sqlite")
    if is_given:
        await note_given(index, {ROW.digest: "team"})
    else:
        async with index.transaction() as transaction:
            await transaction.add_token(ROW.digest, namespace="team", label="")
    assert (await make_link(index, RECORD, seconds=60, nonce=NONCE, maker=MAKER)).file_id == RECORD.id
    await removed(index)
    with pytest.raises(Unauthorized):
        await make_link(index, RECORD, seconds=60, nonce=NONCE, maker=MAKER)
    assert [] == await list_links(index, "team")
    await index.close()


async def test_a_long_label_is_cut(tmp_path: Path) -> None:
    """A client believes no longer one, and would not list any link."""
    index = await open_index(tmp_path / "index.sqlite")
    made = await make_link(index, RECORD, seconds=60, nonce=NONCE, maker=LinkMaker(label="x\n" * 2000))
    assert made == link_from_json(made.as_json())
    assert "x x x" == made.made_by[:5]
    await index.close()
