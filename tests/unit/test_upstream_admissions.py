"""What is kept of the tokens that the upstream has accepted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filestore.errors import StorageError
from filestore.upstream.admissions import ALLOWED_SECONDS, Admissions

WHO = ("models", "team/m", "hf_reader")


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_only_what_was_accepted_is(tmp_path: Path) -> None:
    """The repository, its type and the token all count, in another process too."""
    clock = Clock()
    Admissions(tmp_path, clock=clock).allow(*WHO)
    later = Admissions(tmp_path, clock=clock)
    assert later.is_allowed(*WHO)
    others = (("datasets", *WHO[1:]), (WHO[0], "team/n", WHO[2]), (*WHO[:2], "hf_other"))
    assert not [other for other in others if later.is_allowed(*other)]
    later.forget(*WHO)
    later.forget(*WHO)
    assert not Admissions(tmp_path, clock=clock).is_allowed(*WHO)


def test_it_has_an_end(tmp_path: Path) -> None:
    """It ends a time after the upstream has let the token in last. A clock that was set back ends it too."""
    clock = Clock()
    admissions = Admissions(tmp_path, clock=clock)
    admissions.allow(*WHO)
    clock.now += ALLOWED_SECONDS - 1
    assert admissions.is_allowed(*WHO)
    admissions.allow(*WHO)
    clock.now += ALLOWED_SECONDS - 1
    assert admissions.is_allowed(*WHO)
    clock.now += 1
    assert not admissions.is_allowed(*WHO)
    clock.now -= 2 * ALLOWED_SECONDS
    assert not admissions.is_allowed(*WHO)


def test_no_token_is_kept(tmp_path: Path) -> None:
    """Neither the token nor the name of the repository is in a file, nor in the name of one. Another secret finds nothing."""
    admissions = Admissions(tmp_path, clock=Clock())
    admissions.allow(*WHO)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files for text in WHO[1:] if text in str(path) or text.encode() in path.read_bytes()]
    (tmp_path / "key").write_bytes(bytes(32))
    assert not Admissions(tmp_path, clock=Clock()).is_allowed(*WHO)


def test_all_processes_make_one_secret(tmp_path: Path) -> None:
    """Of several that begin at the same time, all find what another one has noted."""
    each = [Admissions(tmp_path, clock=Clock()) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda admissions: admissions.allow("models", f"team/{id(admissions)}", "hf_a"), each))
    assert all(one.is_allowed("models", f"team/{id(other)}", "hf_a") for one in each for other in each)


def test_a_secret_that_was_cut_lets_nobody_in(tmp_path: Path) -> None:
    """It is an error that names the file."""
    (tmp_path / "key").write_bytes(b"cut")
    with pytest.raises(StorageError, match="key"):
        Admissions(tmp_path, clock=Clock()).is_allowed(*WHO)
