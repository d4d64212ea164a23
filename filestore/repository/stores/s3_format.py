"""Put the format file of a repository, so that all who do it at the same time get the same one.

A store with conditional puts lets one of them win. In a store without them, each puts a proposal under a key of its own, waits
until the proposals of the others can be seen, and takes the oldest one. That is right as long as a put takes less than the wait.
Such stores exist, so make a repository in one of them by one process.
"""

from __future__ import annotations

import asyncio
import secrets

from filestore.errors import Busy, FilestoreError, StorageError
from filestore.repository.stores.s3_client import S3Client
from filestore.repository.stores.s3_keys import FORMAT_KEY, PROPOSALS

SETTLING_SECONDS = 2.0


async def initialise(client: S3Client, text: bytes) -> bytes:
    """Put `text` as the format file if there is none. Return the content of this file. Raises StorageError, Busy."""
    kept = await client.get(FORMAT_KEY)
    if kept is None:
        if await _knows_conditions(client):
            await client.create(FORMAT_KEY, text)
        else:
            await client.put(FORMAT_KEY, await _oldest_proposal(client, text))
        kept = await client.get(FORMAT_KEY)
    if kept is None:
        raise StorageError(f"{client.location}/{FORMAT_KEY}", "it vanished")
    return bytes(kept)


async def _knows_conditions(client: S3Client) -> bool:
    """Return whether the store refuses to create an object that is there."""
    probe = f"{PROPOSALS}/probe-{secrets.token_hex(8)}"
    try:
        await client.put(probe, b"\n")
        return not await client.create(probe, b"\n")
    except Busy:
        raise
    except FilestoreError:
        return False  # the request is not known; if it is anything else, the next one fails too
    finally:
        await client.delete([probe])


async def _oldest_proposal(client: S3Client, text: bytes) -> bytes:
    own = f"{PROPOSALS}/proposal-{secrets.token_hex(8)}"
    await client.put(own, text)
    await asyncio.sleep(SETTLING_SECONDS)
    proposals = [
        (listed.put_at, listed.key)
        async for page in client.pages(PROPOSALS)
        for listed in page
        if listed.key.startswith(f"{PROPOSALS}/proposal-")
    ]
    found = await client.get(min(proposals)[1]) if proposals else None
    return text if found is None else bytes(found)
