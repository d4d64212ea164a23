"""Open repositories in a bucket of a gateway and a database, as a server process does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.s3 import S3Store
from filestore.repository.stores.s3_client import RETRY_SECONDS, S3Client
from filestore.repository.stores.s3_credentials import CredentialsFile
from filestore.repository.stores.s3_location import parse_location
from filestore.repository.stores.s3_open import open_s3_store
from filestore.repository.stores.s3_sweep import Sweep
from filestore.system.clock import system_now
from tests.support.ceph import Bucket
from tests.support.s3_requests import Credentials

PREFIX = "models/one"


def write_credentials(path: Path, credentials: Credentials) -> None:
    """Write a file of credentials, or replace it in one step."""
    new = path.with_suffix(".new")
    new.write_text(f"[default]\naws_access_key_id = {credentials.access_key}\naws_secret_access_key = {credentials.secret_key}\n")
    new.rename(path)


@asynccontextmanager
async def object_repository(
    bucket: Bucket,
    index_url: str,
    folder: Path,
    *,
    prefix: str = PREFIX,
    retry_seconds: float = RETRY_SECONDS,
    now: Callable[[], int] = system_now,
) -> AsyncIterator[LocalRepository]:
    """Open the repository in a bucket and a database. Make it if there is none. `now` is the clock of the server.

    `folder`, which may exist, gets the file `credentials` with those of the bucket, and what is on its way.
    """
    folder.mkdir(exist_ok=True)
    credentials = folder / "credentials"
    write_credentials(credentials, bucket.credentials)
    location = parse_location(bucket.location(prefix))
    client = S3Client(location, credentials=CredentialsFile(credentials), retry_seconds=retry_seconds)
    index = await open_postgres_index(index_url, now=now)
    try:
        store = await open_s3_store(client, index, scratch=folder / "scratch")
    except BaseException:
        await index.close()
        raise
    repository = LocalRepository(store, index, location=str(location))
    try:
        yield repository
    finally:
        await repository.close()


async def sweep(repository: LocalRepository) -> None:
    """Remove the objects that no row names, as if all were older than any push."""
    store, index = repository._store, repository._index
    assert isinstance(store, S3Store)
    assert isinstance(index, PostgresIndex)
    await Sweep(store.client, index, dry_run=False, abandoned_seconds=-3600).run()
