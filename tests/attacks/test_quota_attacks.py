"""A tenant that wants more than its quota: it never keeps or does more, and no other tenant notices."""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from filestore.core.quotas import Quota
from filestore.format.codec import Frame
from filestore.http import wire
from tests.support.frames import contents, frames, manifest
from tests.support.generator import octets
from tests.support.quotas import set_quota, usage
from tests.support.server import FORM, OTHER_TOKEN, TOKEN, Reply, RunningServer, batch, eventually, form, reply, running_server

SIZE = 1000
COUNT = 20


def stored_size(put: Sequence[Frame]) -> int:
    """Return the bytes that frames take."""
    return sum(len(frame.data) for frame in put)


def check_refused(answer: Reply, *, limit: int) -> None:
    """Check that an answer names the quota, and says when to try again."""
    assert (507, "quota-exceeded", "60") == (answer.status, answer.slug, answer.headers["Retry-After"]), answer.body
    assert (limit, True) == (answer.json["limit"], answer.json["used"] > limit)


def put_each(server: RunningServer, put: Sequence[Frame]) -> list[Reply]:
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
        replies = put_each(server, put)
    assert {200: COUNT // 2, 507: COUNT // 2} == Counter(each.status for each in replies)
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
        assert 422 == server.ask("POST", f"{wire.API}/chunks", lie + one.data + two.data).status
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
        assert {201: 5, 507: 7} == Counter(each.status for each in replies)
        check_refused(next(each for each in replies if each.status == 507), limit=5)
        kept = next(each for each in replies if each.status == 201).json
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


@pytest.mark.slow
def test_requests_beyond_the_rate_of_a_tenant_do_not_concern_others(tmp_path: Path) -> None:
    """Two hundred requests at once get 429 with Retry-After from both processes, and the other tenant gets all its answers."""
    set_quota(tmp_path / "root", Quota(requests_per_second=1))
    path = f"{wire.API}/repository"
    with running_server(tmp_path / "root", workers=2) as server, ThreadPoolExecutor(200) as pool:
        refused = [pool.submit(server.ask, "GET", path) for _ in range(200)]
        others = [pool.submit(server.ask, "GET", path, token=OTHER_TOKEN) for _ in range(20)]
        assert [200] * 20 == [other.result().status for other in others]
        replies = [each.result() for each in refused]
    statuses = Counter(each.status for each in replies)
    # About one a second, and the first one.
    assert 1 <= statuses[200] <= 50
    assert statuses[429] == 200 - statuses[200]
    answer = next(each for each in replies if each.status == 429)
    assert ("rate-limited", 1, True) == (answer.slug, answer.json["limit"], int(answer.headers["Retry-After"]) >= 1)


@pytest.mark.slow
def test_a_request_that_is_refused_by_its_rate_sends_no_body(tmp_path: Path) -> None:
    """With `Expect: 100-continue`, a client waits before its body. It counts once."""
    set_quota(tmp_path / "root", Quota(requests_per_second=1))
    head = (f"Content-Length: {len(batch(frames(1)))}", "Expect: 100-continue")
    with running_server(tmp_path / "root") as server:
        with server.begin("POST", f"{wire.API}/chunks", *head) as connection:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
            connection.sendall(batch(frames(1)))
            assert 200 == reply(connection).status
        refused = [server.ask("GET", f"{wire.API}/repository").status for _ in range(20)]
        assert 429 in refused
        with ExitStack() as stack:
            begun = [stack.enter_context(server.begin("POST", f"{wire.API}/chunks", *head)) for _ in range(10)]
            assert any(each.recv(1 << 16).startswith(b"HTTP/1.1 429 ") for each in begun)


@pytest.mark.slow
def test_connections_in_use_are_counted_over_all_processes(tmp_path: Path) -> None:
    """A tenant with slow requests has its share of connections, whichever process serves them, and others have theirs."""
    set_quota(tmp_path / "root", Quota(connections=3))
    path = f"{wire.API}/repository"
    with running_server(tmp_path / "root", workers=2) as server:
        slow = [server.begin("POST", f"{wire.API}/chunks", "Content-Length: 1000", body=b"x") for _ in range(10)]
        eventually(lambda: len(select.select(slow, [], [], 0)[0]) == 7)
        refused = server.ask("GET", path)
        assert ("rate-limited", 3, "1") == (refused.slug, refused.json["limit"], refused.headers["Retry-After"])
        assert 200 == server.ask("GET", path, token=OTHER_TOKEN).status
        for connection in slow:
            connection.close()
        eventually(lambda: server.ask("GET", path).status == 200)


@pytest.mark.slow
def test_a_token_has_limits_of_its_own(tmp_path: Path) -> None:
    """They hold besides those of its namespace."""
    set_quota(tmp_path / "root", Quota(requests_per_second=1), token=TOKEN)
    path = f"{wire.API}/repository"
    with running_server(tmp_path / "root") as server:
        statuses = Counter(server.ask("GET", path).status for _ in range(20))
        assert statuses[429] > 0
        assert [200] * 20 == [server.ask("GET", path, token=OTHER_TOKEN).status for _ in range(20)]


@pytest.mark.slow
def test_bodies_beyond_the_bandwidth_wait_and_arrive(tmp_path: Path) -> None:
    """Nothing is refused, no pause looks like a stall, and every byte is right in both directions and in all ways."""
    content = octets(1, 150_000)
    set_quota(tmp_path / "root", Quota(bytes_per_second=65536))
    with running_server(tmp_path / "root", stall_seconds=5) as server:
        put = frames(3, size=40_000, seed=5)
        assert 200 == server.put(put).status
        kept = server.upload("one", content)
        assert 201 == kept.status
        found = server.ask("GET", f"/{kept.json['path']}")
        assert (200, content) == (found.status, found.body)
        answer = server.ask("POST", f"{wire.API}/chunks/get", b"".join(frame.digest for frame in put))
        assert batch(put) == answer.body


@pytest.mark.slow
@pytest.mark.parametrize("quota", [Quota(name_count=1), Quota(size=SIZE), Quota(stored_size=SIZE + 100)])
def test_files_that_are_refused_leave_no_manifests(tmp_path: Path, quota: Quota) -> None:
    """A manifest may be as large as a request, and one that no record has does not count. Many of them would fill the disk."""
    [content] = contents(1, size=SIZE)
    set_quota(tmp_path / "root", quota)
    with running_server(tmp_path / "root") as server:
        server.put(frames(1, size=SIZE))
        assert 201 == server.commit(manifest([content]).encoded, name="kept").status
        for count in range(2, 6):
            assert 507 == server.commit(manifest([content] * count).encoded, name="other").status
        assert 201 == server.commit(manifest([content]).encoded, name="kept").status
    assert 1 == sum(path.is_file() for path in (tmp_path / "root" / "manifests").rglob("*"))
