"""A tenant that wants more than its quota: it never keeps or does more, and no other tenant notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filestore.core.quotas import Quota
from filestore.format.codec import Frame
from filestore.http import wire
from tests.support.frames import contents, frames, manifest
from tests.support.quotas import set_quota, usage
from tests.support.server import FORM, OTHER_TOKEN, Reply, RunningServer, batch, form, running_server

SIZE = 1000
COUNT = 20


def stored_size(put: Sequence[Frame]) -> int:
    """Return the bytes that frames take."""
    return sum(len(frame.data) for frame in put)


def check_refused(reply: Reply, *, limit: int) -> None:
    """Check that an answer names the quota, and says when to try again."""
    assert (507, "quota-exceeded", "60") == (reply.status, reply.slug, reply.headers["Retry-After"]), reply.body
    assert (limit, True) == (reply.json["limit"], reply.json["used"] > limit)


def each(server: RunningServer, put: Sequence[Frame]) -> list[Reply]:
    """Put each frame in a batch of its own, many at the same time."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda frame: server.put([frame]), put))


@pytest.mark.slow
def test_pushes_at_once_store_no_more_than_the_quota(tmp_path: Path) -> None:
    """The processes of a server check in the transaction that stores. What fits is stored, and the rest is refused."""
    put = frames(COUNT, size=SIZE)
    limit = stored_size(put) // 2
    set_quota(tmp_path / "root", Quota(stored_size=limit))
    with running_server(tmp_path / "root", workers=2) as server:
        replies = each(server, put)
    assert {200: COUNT // 2, 507: COUNT // 2} == Counter(reply.status for reply in replies)
    assert limit >= usage(tmp_path / "root").stored_size == stored_size(put) // 2


def test_a_batch_beyond_the_quota_is_refused_by_its_header(tmp_path: Path) -> None:
    """The frames are not read: what was announced is enough. Frames that are there already count once."""
    one, two = frames(2, size=SIZE)
    set_quota(tmp_path / "root", Quota(stored_size=len(one.data) + len(two.data) - 1))
    with running_server(tmp_path / "root") as server:
        assert 200 == server.put([one]).status
        whole = batch([two])
        with server.begin("POST", f"{wire.API}/chunks", f"Content-Length: {len(whole)}", body=whole[:40]) as connection:
            begun = connection.recv(1 << 16)
        assert begun.startswith(b"HTTP/1.1 507 ")
        assert 200 == server.put([one]).status
        check_refused(server.put([one, two]), limit=len(one.data) + len(two.data) - 1)
    assert 1 == usage(tmp_path / "root").chunk_count


def test_a_batch_that_lies_about_its_sizes_stores_no_more(tmp_path: Path) -> None:
    """A frame that is larger than its header says is not valid. The sizes that count are those of what arrived."""
    one, two = frames(2, size=SIZE)
    set_quota(tmp_path / "root", Quota(stored_size=len(one.data) + 4))
    lie = wire.encode_batch_header([wire.BatchEntry(one.digest, len(one.data)), wire.BatchEntry(two.digest, 4)])
    with running_server(tmp_path / "root") as server:
        reply = server.ask("POST", f"{wire.API}/chunks", lie + one.data + two.data)
        assert 422 == reply.status
    assert len(one.data) >= usage(tmp_path / "root").stored_size


@pytest.mark.slow
def test_names_and_content_are_limited_by_the_commits_of_all_processes(tmp_path: Path) -> None:
    """Files that share all chunks take no disk. So their names and sizes have limits of their own."""
    set_quota(tmp_path / "root", Quota(name_count=5, size=7 * SIZE))
    [content] = contents(1, size=SIZE)
    [other] = contents(1, size=SIZE, seed=1)
    with running_server(tmp_path / "root", workers=2) as server:
        server.put(frames(1, size=SIZE))
        server.put(frames(1, size=SIZE, seed=1))
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda n: server.commit(manifest([content]).encoded, name=f"f{n}"), range(12)))
        assert {201: 5, 507: 7} == Counter(reply.status for reply in replies)
        check_refused(next(reply for reply in replies if reply.status == 507), limit=5)
        kept = next(reply for reply in replies if reply.status == 201).json
        # A name that exists may have another version, and the same file may be stored again.
        assert 201 == server.commit(manifest([other]).encoded, name=kept["name"]).status
        assert 201 == server.commit(manifest([content]).encoded, name=kept["name"]).status
        check_refused(server.commit(manifest([other, other]).encoded, name=kept["name"]), limit=7 * SIZE)
        # At its limit, a namespace can still remove, and then store again.
        assert 200 == server.ask("DELETE", f"{wire.API}/files/{kept['id']}").status
        assert 201 == server.commit(manifest([other, other]).encoded, name=kept["name"]).status
    assert (7 * SIZE, 5) == (usage(tmp_path / "root").size, usage(tmp_path / "root").name_count)


def test_manifests_count_as_stored(tmp_path: Path) -> None:
    """A file of one tiny chunk, many times, is a large manifest and little else."""
    [content] = contents(1, size=SIZE)
    whole = manifest([content] * 100)
    [frame] = frames(1, size=SIZE)
    set_quota(tmp_path / "root", Quota(stored_size=len(frame.data) + 2 * len(whole.encoded)))
    with running_server(tmp_path / "root") as server:
        server.put([frame])
        assert [201, 201, 507] == [server.commit(whole.encoded, name=f"f{n}").status for n in range(3)]


@pytest.mark.slow
def test_forms_and_parts_have_the_same_limit(tmp_path: Path) -> None:
    """Whatever way a file comes, it is stored by the same commits. A full namespace does not even read the next one."""
    content = contents(1, size=SIZE)[0]
    set_quota(tmp_path / "root", Quota(size=SIZE, uploads=1))
    with running_server(tmp_path / "root", workers=2) as server:
        assert 201 == server.upload("one", content).status
        check_refused(server.upload("two", content), limit=SIZE)
        body = form("two", content)
        head = f"Content-Length: {len(body)}"
        with server.begin("POST", "/v3/pipeline_files", f"Content-Type: {FORM['Content-Type']}", head) as connection:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 507 ")
        begin = "/v3/pipeline_files/initiate-multipart-upload"
        answers = [server.ask("POST", begin, b'{"name": "n"}') for _ in range(2)]
        assert [(201, None), (429, 1)] == [(answer.status, answer.json.get("limit")) for answer in answers]
        ids = answers[0].json
        part = server.ask("PUT", f"/v3/pipeline_files/uploads/{ids['upload_id']}/parts/1", content)
        check_refused(part, limit=SIZE)
        # Another namespace has no such quota.
        other = server.ask("POST", "/v3/pipeline_files", form("two", content), headers=FORM, token=OTHER_TOKEN)
        assert 201 == other.status
