"""Commits, labels and owners: the rules that hold for every repository, in a folder or at a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.core.commits import AUTHOR_LIMIT, COMMIT_ID_PATTERN, MAIN, MESSAGE_LIMIT, Commit, LabelKind, NewCommit
from filestore.core.names import RESERVED_OWNERS
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import (
    HeadMoved,
    InvalidInput,
    InvalidName,
    InvalidReference,
    LabelExists,
    NotFound,
    RevisionNotFound,
    VersionLabelled,
)
from filestore.repository.protocol import Repository
from tests.contracts.conftest import serving
from tests.support.frames import encoded, manifest
from tests.support.server import RunningServer

NAME = "team/my-model"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of each test: they use the same owners, and an owner belongs to one namespace of a repository."""
    with serving(tmp_path) as server:
        yield server


async def put(
    repository: Repository,
    content: bytes,
    *,
    name: str = NAME,
    message: str = "",
    branch: str = MAIN,
    parent: str | None = None,
) -> Record:
    """Store a file of one chunk."""
    await repository.put([encoded(content)])
    new = NewCommit(message, branch=branch, parent=parent)
    return await repository.commit(manifest([content]).encoded, name=name, kind=Kind.FILE, commit=new)


async def contents(repository: Repository, *, name: str = NAME, revision: str | None = None) -> list[str]:
    """Return the ids of the records of a history, the newest first."""
    return [commit.file_id for commit in await repository.history(name, revision=revision)]


@pytest.mark.parametrize("name", [NAME, "my-model", "Team_1.x/My.Model-2"])
async def test_a_name_with_and_without_an_owner_has_a_history(repository: Repository, name: str) -> None:
    """A, B, A are three commits; to store the newest content again makes none. Each names the one before it."""
    first = await put(repository, b"A", name=name, message="the first one")
    second = await put(repository, b"B", name=name)
    assert first.id == (await put(repository, b"A", name=name)).id
    await put(repository, b"A", name=name)

    commits = await repository.history(name)
    assert [first.id, second.id, first.id] == [commit.file_id for commit in commits]
    assert ["", "", "the first one"] == [commit.message for commit in commits]
    assert [commits[1].id, commits[2].id, None] == [commit.parent for commit in commits]
    assert 3 == len({commit.id for commit in commits if COMMIT_ID_PATTERN.match(commit.id)})
    assert first.digest == commits[0].digest == commits[2].digest
    assert {("main", 1, Kind.FILE)} == {(commit.branch, commit.size, commit.kind) for commit in commits}
    assert commits[1:] == await repository.history(name, revision=commits[1].id)
    assert commits[1:2] == await repository.history(name, limit=1, before=commits[0].number)
    assert commits[0] == await repository.find_commit(name)


@pytest.mark.slow
async def test_the_owner_is_in_the_reference_only(repository: Repository) -> None:
    """Paths have the name after it. The same name without an owner, and of another owner, are others."""
    owned = await put(repository, b"A")
    plain = await put(repository, b"A", name="my-model")
    other = await put(repository, b"A", name="others/my-model")

    assert ("team", "my-model", NAME) == (owned.owner, owned.name, owned.full_name)
    assert owned.path == plain.path == other.path
    assert len({owned.id, plain.id, other.id}) == 3
    for text, record in ((NAME, owned), ("my-model", plain), ("others/my-model", other)):
        assert record == await repository.record(text)
        assert 1 == (await repository.versions(text)).total
    assert other == await repository.record(owned.path)
    assert [other, plain, owned] == await repository.records()
    assert [other, plain, owned] == [record async for record in repository.iter_records()]
    with pytest.raises(NotFound):
        await repository.record("team/other")


@pytest.mark.slow
async def test_a_revision_names_the_newest_commit(repository: Repository) -> None:
    """By its place on `main`, by a tag, and by a branch."""
    await put(repository, b"A")
    newest = await put(repository, b"B")
    await repository.set_label(NAME, "v1.0")
    await repository.set_label(NAME, "dev", kind=LabelKind.BRANCH)
    assert newest == await repository.record(NAME)
    for revision in ("main", "~0", "refs/heads/main", "v1.0", "refs/tags/v1.0", "dev", "refs/heads/dev"):
        assert newest == await repository.record(f"{NAME}@{revision}")


@pytest.mark.slow
async def test_revisions_by_place_and_by_digits(repository: Repository) -> None:
    """`~N`, the id of a commit, and first digits of the id or of the digest of the content."""
    first, second = await put(repository, b"A"), await put(repository, b"B")
    await put(repository, b"A")
    commits = await repository.history(NAME)
    for text, record in (
        ("~1", second),
        ("~2", first),
        (commits[1].id, second),
        (commits[2].id, first),
        (commits[1].id[:7], second),
        (str(first.digest), first),
        (str(second.digest)[:12], second),
    ):
        assert record.id == (await repository.record(f"{NAME}@{text}")).id, text
    assert commits[1] == await repository.find_commit(NAME, str(second.digest)[:9])
    assert commits[0] == await repository.find_commit(NAME, str(first.digest))
    for text in ("~3", "v9", "f" * 40, "0" * 64, "refs/tags/main", "refs/pr/1", "~01"):
        with pytest.raises(RevisionNotFound):
            await repository.record(f"{NAME}@{text}")
        with pytest.raises(RevisionNotFound):
            await repository.find_commit(NAME, text)
    with pytest.raises(NotFound) as caught:
        await repository.find_commit("team/other", "v1")
    assert not isinstance(caught.value, RevisionNotFound)


@pytest.mark.slow
async def test_a_tag_stays_and_a_branch_moves(repository: Repository) -> None:
    """A commit on a branch follows its newest one, and does not change what the name means."""
    first = await put(repository, b"A")
    await repository.set_label(NAME, "v1")
    await repository.set_label(NAME, "dev", kind=LabelKind.BRANCH)
    second = await put(repository, b"B", branch="dev", message="tried")
    third = await put(repository, b"C", branch="dev")

    assert [first.id] == await contents(repository)
    assert [third.id, second.id, first.id] == await contents(repository, revision="dev")
    assert first.id == (await repository.record(NAME)).id == (await repository.record(f"{NAME}@v1")).id
    assert third == await repository.record(f"{NAME}@dev")
    fourth = await put(repository, b"D")
    assert [fourth.id, first.id] == await contents(repository)
    assert [("dev", "branch"), ("v1", "tag")] == [(label.name, label.kind.value) for label in await repository.labels(NAME)]
    with pytest.raises(RevisionNotFound):
        await put(repository, b"E", branch="v1")
    with pytest.raises(RevisionNotFound):
        await put(repository, b"E", branch="other")


@pytest.mark.slow
async def test_a_label_is_set_moved_and_removed(repository: Repository) -> None:
    """To set it again changes nothing; to move it needs force."""
    await put(repository, b"A")
    made = await repository.set_label(NAME, "v1")
    assert made == await repository.set_label(NAME, "v1")
    await put(repository, b"B")
    for kind in LabelKind:
        with pytest.raises(LabelExists):
            await repository.set_label(NAME, "v1", kind=kind)
    moved = await repository.set_label(NAME, "v1", force=True)
    assert (await repository.find_commit(NAME)).id == moved.commit_id != made.commit_id
    old = await repository.set_label(NAME, "old", revision="~1")
    assert [old, moved] == await repository.labels(NAME)
    assert moved == await repository.remove_label(NAME, "v1")
    with pytest.raises(RevisionNotFound):
        await repository.remove_label(NAME, "v1")
    with pytest.raises(RevisionNotFound):
        await repository.set_label(NAME, "v2", revision="~9")
    for name in ("team/other", "my-model"):
        with pytest.raises(NotFound):
            await repository.labels(name)
        with pytest.raises(NotFound):
            await repository.set_label(name, "v1")


@pytest.mark.slow
async def test_what_cannot_be_a_label(repository: Repository) -> None:
    """It would be read as another revision, or cannot be written in a reference."""
    await put(repository, b"A")
    for label in ["", "main", "HEAD", "a b", "a@b", "refs/tags/a", "0" * 8, "a" * 256, "~1", "a..b", "/a", "a/"]:
        with pytest.raises(InvalidInput):
            await repository.set_label(NAME, label)


@pytest.mark.slow
async def test_names_with_an_owner_follow_the_rules_of_the_hub(repository: Repository) -> None:
    """Its clients refuse all others. Owners that begin URLs are reserved, in any case of letters."""
    for name in ("-a/b", "a--b/c", "a/b c", "a/b.git", "a/-b", "a/b..c", "ä/b", "a" * 97 + "/b", "a/b/c", "a/", "/a"):
        with pytest.raises(InvalidName):
            await put(repository, b"A", name=name)
    for owner in ("api", "API", "datasets", "native", "v3"):
        assert owner.lower() in RESERVED_OWNERS
        with pytest.raises(InvalidName, match="reserved"):
            await put(repository, b"A", name=f"{owner}/model")


@pytest.mark.slow
async def test_a_name_is_checked_before_content_is_sent_for_it(repository: Repository) -> None:
    """With what the commit would be refused with."""
    await repository.check_new_name(NAME)
    with pytest.raises(InvalidName):
        await repository.check_new_name("api/model")
    with pytest.raises(NotFound):
        await repository.check_new_name(NAME, branch="dev")
    await put(repository, b"A")
    with pytest.raises(RevisionNotFound):
        await repository.check_new_name(NAME, branch="dev")
    await repository.set_label(NAME, "dev", kind=LabelKind.BRANCH)
    await repository.check_new_name(NAME, branch="dev")


async def test_what_a_commit_cannot_say(repository: Repository) -> None:
    """The same limits hold in a folder and at a server, also for the author, whom a server knows itself."""
    encoded_manifest = manifest([b"A"]).encoded
    await repository.put([encoded(b"A")])
    for new in (
        NewCommit(message="x" * (MESSAGE_LIMIT + 1)),
        NewCommit(message="a\0b"),
        NewCommit(author="ä" * (AUTHOR_LIMIT // 2 + 1)),
        NewCommit(author="a\x1b[0m"),
        NewCommit(branch="a b"),
    ):
        with pytest.raises(InvalidInput):
            await repository.commit(encoded_manifest, name=NAME, commit=new)
    longest = NewCommit("x" * MESSAGE_LIMIT, "ä" * (AUTHOR_LIMIT // 2))
    await repository.commit(encoded_manifest, name=NAME, commit=longest)
    assert longest.message == (await repository.find_commit(NAME)).message


async def test_a_commit_can_name_its_parent(repository: Repository) -> None:
    """It is made only if that is the newest one. An empty text means that there must be none."""
    first = await put(repository, b"A", parent="")
    head = await repository.find_commit(NAME)
    for parent in ("", "f" * 40):
        with pytest.raises(HeadMoved) as caught:
            await put(repository, b"B", parent=parent)
        assert head.id == caught.value.head
    assert [first.id] == await contents(repository)
    with pytest.raises(NotFound):
        await repository.record(Reference(digest=manifest([b"B"]).digest))
    second = await put(repository, b"B", parent=head.id)
    assert [second.id, first.id] == await contents(repository)


async def test_a_commit_that_names_its_parent_may_be_repeated(repository: Repository) -> None:
    """A client that got no answer sends it again. It is the same commit while it is the newest one, and says the same."""
    first = await put(repository, b"A", message="one", parent="")
    head = await repository.find_commit(NAME)
    assert first.id == (await put(repository, b"A", message="one", parent="")).id
    second = await put(repository, b"B", message="two", parent=head.id)
    assert second.id == (await put(repository, b"B", message="two", parent=head.id)).id
    assert [second.id, first.id] == await contents(repository)

    for content, message, parent in (
        (b"B", "other", head.id),
        (b"A", "two", head.id),
        (b"B", "two", ""),
        (b"B", "two", "f" * 40),
    ):
        with pytest.raises(HeadMoved):
            await put(repository, content, message=message, parent=parent)
    await put(repository, b"C")
    with pytest.raises(HeadMoved):
        await put(repository, b"B", message="two", parent=head.id)


@pytest.mark.slow
async def test_of_two_commits_at_once_for_one_parent_one_is_made(repository: Repository) -> None:
    """The other one learns what the newest commit is."""
    await put(repository, b"0")
    head = await repository.find_commit(NAME)
    contents_ = [b"%d" % number for number in range(1, 5)]
    tried = await asyncio.gather(*(put(repository, each, parent=head.id) for each in contents_), return_exceptions=True)
    made = [each for each in tried if isinstance(each, Record)]
    assert 1 == len(made)
    assert 3 == sum(isinstance(each, HeadMoved) for each in tried)
    assert made[0].id == (await repository.find_commit(NAME)).file_id


@pytest.mark.slow
async def test_a_removed_record_leaves_the_line_whole(repository: Repository) -> None:
    """The commits after it follow those before it. What was in the middle twice goes twice."""
    kept = [await put(repository, content) for content in (b"A", b"B", b"C", b"B", b"D")]
    await repository.remove(kept[1].id)
    assert [kept[4].id, kept[2].id, kept[0].id] == await contents(repository)
    await repository.remove(kept[4].id)
    assert kept[2].id == (await repository.record(NAME)).id
    commits = await repository.history(NAME)
    assert [commits[1].id, None] == [commit.parent for commit in commits]


@pytest.mark.slow
async def test_a_version_with_a_label_is_removed_by_force_only(repository: Repository) -> None:
    """Its tags go with it, and a branch goes to the commit before it."""
    first, second = await put(repository, b"A"), await put(repository, b"B")
    await repository.set_label(NAME, "v2")
    await repository.set_label(NAME, "dev", kind=LabelKind.BRANCH)
    with pytest.raises(VersionLabelled) as caught:
        await repository.remove(second.id)
    assert "dev, v2" == caught.value.labels
    await repository.remove(second.id, force=True)
    assert [("dev", first.digest)] == [
        (label.name, (await repository.find_commit(NAME, label.commit_id)).digest) for label in await repository.labels(NAME)
    ]
    await repository.remove(first.id, force=True)
    with pytest.raises(NotFound):
        await repository.labels(NAME)


@pytest.mark.slow
async def test_a_name_whose_versions_are_all_on_a_branch(repository: Repository) -> None:
    """The name means nothing then, and the branch and its versions are there."""
    first = await put(repository, b"A")
    branch = await repository.set_label(NAME, "dev", kind=LabelKind.BRANCH)
    second = await put(repository, b"B", branch="dev")
    await repository.remove(first.id, force=True)
    for revision in (None, MAIN, "~0"):
        with pytest.raises(RevisionNotFound):
            await repository.find_commit(NAME, revision)
        with pytest.raises(RevisionNotFound):
            await repository.history(NAME, revision=revision)
    with pytest.raises(NotFound):
        await repository.record(NAME)
    assert [second.id] == await contents(repository, revision="dev")
    assert [branch.name] == [label.name for label in await repository.labels(NAME)]
    assert [second] == (await repository.versions(NAME)).records

    tag = await repository.set_label(NAME, "v1", revision="dev")
    assert tag == await repository.remove_label(NAME, "v1")
    await repository.remove_label(NAME, "dev")
    assert [] == await repository.labels(NAME)
    assert [second] == (await repository.versions(NAME)).records
    await repository.remove(second.id)
    for verb in (repository.labels, repository.versions):
        with pytest.raises(NotFound):
            await verb(NAME)


@pytest.mark.slow
async def test_a_path_inside_a_directory_is_refused_where_a_whole_one_is_needed(repository: Repository) -> None:
    """It would be taken for the directory itself."""
    record = await put(repository, b"A")
    for text in (f"{NAME}:a", f"{record.id}:a", f"{NAME}:"):
        for verb in (repository.record, repository.versions):
            with pytest.raises(InvalidReference, match="path inside a directory"):
                await verb(text)


@pytest.mark.slow
async def test_a_long_history_comes_in_pages(repository: Repository) -> None:
    """All commits come once, the newest first."""
    records = [await put(repository, b"%d" % (number % 2)) for number in range(7)]
    found: list[Commit] = []
    while page := await repository.history(NAME, limit=3, before=found[-1].number if found else None):
        found += page
    assert [record.id for record in reversed(records)] == [commit.file_id for commit in found]
    assert found == await repository.history(NAME)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_pages_lead_from_a_branch_to_main(repository: Repository, size: int) -> None:
    """Each commit before the one of the branch comes once, whatever was stored on `main` since."""
    for number in range(4):
        await put(repository, b"%d" % number)
    await repository.set_label(NAME, "dev", kind=LabelKind.BRANCH, revision="~1")
    for number in range(3):
        await put(repository, b"%d" % (10 + number), branch="dev")
        await put(repository, b"%d" % (20 + number))
    whole = await repository.history(NAME, revision="dev")
    assert ["dev"] * 3 + [MAIN] * 3 == [commit.branch for commit in whole]
    assert [commit.id for commit in whole[1:]] + [None] == [commit.parent for commit in whole]

    for is_from_first in (True, False):
        found: list[Commit] = []
        while page := await repository.history(
            NAME,
            revision="dev" if not found else found[0 if is_from_first else -1].id,
            limit=size,
            before=found[-1].number if found else None,
        ):
            found += page
        assert whole == found
    assert whole[-1:] == await repository.history(NAME, revision="dev", before=2)
