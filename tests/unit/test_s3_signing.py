"""URLs that are signed here are those that obstore would have signed in the same second."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import pytest
from obstore.store import S3Store as Engine

from filestore.repository.stores.s3_client import S3Client
from filestore.repository.stores.s3_credentials import CredentialsFile
from filestore.repository.stores.s3_location import S3Location, parse_location
from filestore.repository.stores.s3_signing import NotedCredentials, Secret, UrlSigner, environment_secret

if TYPE_CHECKING:
    from obstore.store import S3Credential

KEYS = [f"frames/team-a_b/{number:02x}/{number:064x}.{number:016x}" for number in range(3)]
VALID = timedelta(seconds=300)
SECRET = "se/cr+et="


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for credentials. The environment has none."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def credentials(folder: Path, *, token: str | None = None) -> CredentialsFile:
    """Credentials in a file."""
    path = folder / "credentials"
    lines = ["[default]", "aws_access_key_id = AKIDEXAMPLE", f"aws_secret_access_key = {SECRET}"]
    path.write_text("\n".join([*lines, *([] if token is None else [f"aws_session_token = {token}"])]))
    return CredentialsFile(path)


async def of_both(client: S3Client, keys: list[str] = KEYS) -> tuple[list[str], list[str]]:
    """What the client signs, and what obstore signs in the same second."""
    while True:
        ours, theirs = await client.urls(keys, seconds=300), obstore.sign(client._signer, "GET", keys, VALID)
        if ours[0] == theirs[0]:
            return ours, list(theirs)


def are_signed_here(client: S3Client, keys: list[str] = KEYS) -> bool:
    """Whether obstore signs the first URL only."""
    first = obstore.sign(client._signer, "GET", keys[0], VALID)
    return client._url_signer.urls(first, keys) is not None


@pytest.mark.parametrize(
    "url",
    [
        "s3://models",
        "s3://models/a=b/c.d?region=eu-central-1",
        "s3://models/a?path_style=false",
        "s3://models/a?endpoint=http://127.0.0.1:8480",
        "s3://models/a?endpoint=https://objects.example:443&region=x-1",
        "s3://models/a?endpoint=http://objects.example&path_style=false",
        "s3://models/a?endpoint=http://[::1]:80",
        "s3://models/a?endpoint=http://10.0.0.5:8480&public_endpoint=https://Objects.Example:8481",
    ],
)
@pytest.mark.parametrize("token", [None, "a/b+c==%3D~*' é"])
async def test_urls_are_those_of_obstore(folder: Path, url: str, token: str | None) -> None:
    """Wherever the bucket is in the URL, and with the token of temporary credentials."""
    client = S3Client(parse_location(url), credentials=credentials(folder, token=token))
    ours, theirs = await of_both(client)
    assert theirs == ours
    assert are_signed_here(client)


@pytest.mark.parametrize("token", [{}, {"AWS_SESSION_TOKEN": "to/ken"}])
async def test_credentials_may_be_in_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, token: Mapping[str, str]
) -> None:
    """What obstore finds there itself is known here too."""
    for name, value in {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": SECRET, **token}.items():
        monkeypatch.setenv(name, value)
    client = S3Client(S3Location("models", str(folder.name)))
    ours, theirs = await of_both(client)
    assert theirs == ours
    assert are_signed_here(client)


@pytest.mark.parametrize("key", ["frames/a b", "frames/a=b", "frames/a%2Fb", "frames/é", "frames/.well"])
async def test_a_key_that_a_url_has_in_another_form_is_for_obstore(folder: Path, key: str) -> None:
    """Only obstore says what that form is, wherever the key is in the list."""
    client = S3Client(S3Location("models"), credentials=credentials(folder))
    for keys in ([key, *KEYS], [*KEYS, key]):
        ours, theirs = await of_both(client, keys)
        assert theirs == ours
        assert not are_signed_here(client, keys)


def test_other_credentials_than_those_of_obstore_sign_nothing() -> None:
    """The first signature shows that they are others."""
    engine = Engine("models", config={"access_key_id": "AKID", "secret_access_key": SECRET})
    first = obstore.sign(engine, "GET", KEYS[0], VALID)
    assert UrlSigner(lambda: Secret("AKID", SECRET)).urls(first, KEYS) is not None
    assert UrlSigner(lambda: Secret("AKID", "other")).urls(first, KEYS) is None
    assert UrlSigner(lambda: None).urls(first, KEYS) is None
    assert environment_secret({"AWS_ACCESS_KEY_ID": "AKID"}) is None


def test_credentials_that_are_replaced_sign_from_then_on() -> None:
    """The library asks for those that have expired, and what it gets is what signs here."""
    numbers = itertools.count()

    def next_one() -> S3Credential:
        name = f"{next(numbers)}"
        return {"access_key_id": name, "secret_access_key": f"secret{name}", "token": None, "expires_at": datetime.now(UTC)}

    noted = NotedCredentials(next_one)
    engine, signer = Engine("models", credential_provider=noted), UrlSigner(noted.secret)
    assert noted.secret() is None
    for number in range(3):
        first = obstore.sign(engine, "GET", KEYS[0], VALID)
        urls = signer.urls(first, KEYS)
        assert urls is not None
        assert all(f"X-Amz-Credential={number}%2F" in url for url in urls)


def test_a_secret_is_not_shown() -> None:
    """It may be in a traceback."""
    assert SECRET not in repr(Secret("AKID", SECRET))
