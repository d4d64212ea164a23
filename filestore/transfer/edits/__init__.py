"""Edits of stored trees: a new tree is made of a stored one and operations, where the chunks are.

`operations.py`: the operations, and what a tree is after them; `stored_entries.py`: the entries of the old tree, and their
content; `content.py`: the zip of the new tree, of which only what is new is read and cut; `edit.py`: the verb.
"""

from filestore.transfer.edits.content import NewEntry, Sums
from filestore.transfer.edits.edit import EditResult, TreeEdit
from filestore.transfer.edits.operations import (
    CopyFile,
    DeleteFile,
    DeleteFolder,
    Operation,
    PutBytes,
    PutChunks,
    PutFile,
    PutSpan,
)

__all__ = [
    "CopyFile",
    "DeleteFile",
    "DeleteFolder",
    "EditResult",
    "NewEntry",
    "Operation",
    "PutBytes",
    "PutChunks",
    "PutFile",
    "PutSpan",
    "Sums",
    "TreeEdit",
]
