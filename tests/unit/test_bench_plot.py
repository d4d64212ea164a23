from __future__ import annotations

from pathlib import Path

import pytest

from filestore.errors import MissingPackage
from filestore_cli.bench import plot
from filestore_cli.bench.plot import check_plot


def test_what_brings_matplotlib_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is an extra: most installations do not have it."""
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match="pip install 'filestore\\[plot\\]'"):
        check_plot(tmp_path / "a.png")
