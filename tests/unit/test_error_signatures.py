"""Live signatures do not appear in error texts: whoever reads an error or a log could use the URL."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from filestore.core.references import Directory, File, FileURL, redact_url
from filestore.core.signing import SigningKeys, signed_path
from filestore.errors import FilestoreError, InvalidReference
from filestore.http import wire
from filestore.runtime.errors import InvalidRun, RunFailed
from filestore.runtime.inputs import Inputs
from filestore.runtime.own_urls import OwnUrls
from tests.support.errors import SAMPLES, classes, fact_types

PATH = signed_path(SigningKeys.first(b"s" * 32), "GET", "/pipeline_files/a", namespace="team", expires_at=1_900_000_000)
SIGNATURE = PATH.split("/")[4]
URL = f"https://models.example{PATH}"


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
def test_no_error_shows_one(kind: type[FilestoreError]) -> None:
    """Not in its text, its facts, its problem document, or a pickle."""
    facts: list[Any] = [f"a {URL}" if needed is str else SAMPLES[needed] for needed in fact_types(kind).values()]
    error = kind(*facts)

    for each in (error.args, error.named_facts(), wire.encode_problem(error).document, repr(error), pickle.dumps(error)):
        assert SIGNATURE not in str(each)
    assert SIGNATURE not in "".join(str(fact) for fact in error.named_facts().values())


@pytest.mark.parametrize(
    "text", [URL, PATH, URL.replace("/", "%2F"), f"'{URL}' and {PATH[1:]}", f"{URL[:90]}...", f"{URL}?a=b", f"x\n{URL}"]
)
def test_in_every_form_in_which_a_url_is_written(text: str) -> None:
    """The rest of the URL stays, so that one sees which file was meant."""
    shown = str(RunFailed(text, ""))

    assert SIGNATURE[:20] not in shown
    assert "team" in shown


def test_what_only_looks_like_one_stays() -> None:
    """A digest in a path is not a signature."""
    path = f"pipeline_files/ab/cd/{'ab' * 32}/signed"
    assert path in str(InvalidReference(path, "a reason"))


def test_a_url_that_is_shown() -> None:
    """Also outside an error: a value that is printed, and the URL in a message."""
    assert SIGNATURE not in redact_url(URL)
    for value in (FileURL(URL), File(url=URL), Directory(url=URL)):
        assert SIGNATURE not in repr(value)
        assert SIGNATURE not in str(value)


@pytest.mark.parametrize("text", [PATH, PATH[1:], f"ftp://a{PATH}", f"https://models.example{PATH}\n", f"{URL}/.."])
def test_an_input_that_is_refused(text: str) -> None:
    """Such as a signed path without its host."""
    with pytest.raises(InvalidRun) as refused:
        Inputs([{"type": "file", "file_path": text}], None, own_urls=OwnUrls(["https://models.example"]))
    assert SIGNATURE[:20] not in str(refused.value)
