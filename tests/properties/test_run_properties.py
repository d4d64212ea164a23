"""What a run sends and gets that is no file is JSON, whatever it is; names and paths of records, whatever they are."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestore.core.names import SEGMENT_LIMIT, checked_name, shortened
from filestore.core.paths import parse_run_path, run_path
from filestore.core.references import Reference
from filestore.core.signing import SigningKeys, signed_path, unsigned_path, verify_path
from filestore.errors import InvalidName
from filestore.runtime.inputs import Inputs
from filestore.runtime.outputs import Outputs
from filestore.runtime.own_urls import OwnUrls

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
IDS = st.text("0123456789abcdef", min_size=32, max_size=32).map("file_{}".format)


def is_kept(name: str) -> bool:
    """Whether a record may have the name."""
    try:
        return bool(checked_name(name))
    except InvalidName:
        return False


NAMES = st.text(min_size=1, max_size=255).filter(is_kept)


@pytest.mark.slow
@given(st.lists(VALUES))
def test_what_is_not_a_file_passes(values: list[Any]) -> None:
    """What a pipeline returns is what another one gets, by the types that the first was told with."""
    told = Outputs(values)
    assert [] == told.places
    assert values == [answer["value"] for answer in told.answers]
    read = Inputs(json.loads(json.dumps(told.answers)), None, own_urls=OwnUrls([]))
    assert [] == read.places
    assert values == read.arguments


@given(IDS, NAMES)
def test_a_path_of_a_record(file_id: str, name: str) -> None:
    """Gives the record back, also once it is signed, percent-encoded, and its name shortened."""
    path = run_path(file_id, name)
    assert (file_id, name) == parse_run_path(path)
    assert Reference(id=file_id) == Reference.parse(path)
    signed = signed_path(
        SigningKeys.first(b"s" * 32), "GET", f"/{run_path(file_id, shortened(name))}", namespace="team", expires_at=100
    )
    _, _, namespace, expires_at, signature, rest = unquote(signed).split("/", 5)
    verify_path(
        SigningKeys.first(b"s" * 32), "GET", f"/{rest}", namespace=namespace, expires_at=expires_at, signature=signature, now=99
    )
    assert file_id == parse_run_path(unsigned_path(unquote(signed)))[0]


@given(NAMES)
def test_a_shortened_name(name: str) -> None:
    """Fits, can be kept, and is the beginning of the name, and its extension where it has a short one."""
    short = shortened(name)
    assert len(quote(short, safe="")) <= SEGMENT_LIMIT
    assert is_kept(short)
    extension = name.rpartition(".")[2]
    ending = f".{extension}" if short != name and short.endswith(f".{extension}") else ""
    assert name.startswith(short.removesuffix(ending))
    assert (short == name) is (len(quote(name, safe="")) <= SEGMENT_LIMIT)
