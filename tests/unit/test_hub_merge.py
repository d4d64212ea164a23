"""Of several operations of a commit on one path, the last one counts."""

from __future__ import annotations

import pytest

from filestore.errors import EntryNotFound
from filestore.http.server.routes.hub.commit import merged
from filestore.transfer.edits import DeleteFile, DeleteFolder, Operation, PutBytes


def test_a_folder_that_is_deleted_takes_what_was_put_into_it() -> None:
    """A file whose path only begins with the same letters stays, and so does one that is put later."""
    kept, later = PutBytes("ab/c", b"1"), PutBytes("a/later", b"2")
    before: list[Operation] = [PutBytes("a/b/c", b"0"), kept, PutBytes("a/d", b"0"), PutBytes("a0", b"3")]
    assert [kept, PutBytes("a0", b"3"), later] == merged("team/it", None, [*before, DeleteFolder("a"), later])


def test_what_is_put_again_after_its_folder_was_deleted_can_be_deleted_again() -> None:
    """A path may be put, deleted with its folder, and put again, any number of times."""
    rounds: list[Operation] = [PutBytes("a/b", b"1"), DeleteFolder("a")] * 3
    assert [] == merged("team/it", None, [PutBytes("c", b"0"), *rounds, DeleteFile("c")])
    assert [PutBytes("a/b", b"2")] == merged("team/it", None, [*rounds, PutBytes("a/b", b"2")])


@pytest.mark.parametrize("operation", [DeleteFile("a"), DeleteFolder("a")])
def test_what_is_not_there_cannot_be_deleted(operation: DeleteFile | DeleteFolder) -> None:
    """Neither can what was deleted before."""
    with pytest.raises(EntryNotFound):
        merged("team/it", None, [PutBytes("ab", b""), operation])
    with pytest.raises(EntryNotFound):
        merged("team/it", None, [PutBytes("a/b", b""), DeleteFolder("a"), operation])
