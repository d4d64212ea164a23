from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.ceph import Bucket, Gateway
from tests.support.commands import REPOSITORY
from tests.support.daemons import accepts
from tests.support.postgres import Postgres, postgres_program
from tests.support.server import eventually


def test_a_database_is_empty_and_keeps_rows(postgres: Postgres, postgres_url: str) -> None:
    """The fixture makes a database in a server that runs."""
    postgres.execute("CREATE TABLE a (b int)", url=postgres_url)
    postgres.execute("INSERT INTO a VALUES (3)", url=postgres_url)
    assert "3" == postgres.execute("SELECT b FROM a", url=postgres_url)


def test_a_bucket_keeps_objects(bucket: Bucket) -> None:
    """The fixture makes a bucket in a gateway that runs."""
    bucket.put("a/b c", b"content")
    assert ["a/b c"] == bucket.list_keys()
    assert b"content" == bucket.read("a/b c")


def test_another_user_has_no_permission_until_it_is_given(gateway: Gateway, bucket: Bucket) -> None:
    """A bucket is its owner's."""
    bucket.put("a", b"content")
    stranger = gateway.new_user()
    assert 403 == bucket._replace(credentials=stranger).request("GET", "a").status
    reader = gateway.permit(bucket, stranger, "s3:GetObject")
    assert (200, 403) == (reader.request("GET", "a").status, reader.request("PUT", "b").status)


def test_a_full_bucket_takes_no_more(gateway: Gateway) -> None:
    """The gateway refuses what is over a quota."""
    user = gateway.new_user()
    gateway.limit(user, max_objects=1)
    bucket = gateway.new_bucket(user)
    assert [200, 403] == [bucket.request("PUT", name).status for name in ("a", "b")]
    gateway.remove_bucket(bucket)


_LEADER = """
import sys
from tests.support.engines import lead_run, shared_postgres

lead_run()
print(shared_postgres().port, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_an_engine_ends_with_the_process_that_leads_the_run() -> None:
    """Also if it is killed, so that it can end nothing itself."""
    postgres_program("initdb")
    leader = subprocess.Popen(
        [sys.executable, "-c", _LEADER], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert leader.stdout is not None
        port = int(leader.stdout.readline())
        assert accepts(port)
    finally:
        leader.kill()
        leader.communicate()
    eventually(lambda: not accepts(port))
