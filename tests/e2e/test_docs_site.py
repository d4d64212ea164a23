"""The documentation site, as `bash docs/build.sh` makes it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import filestore
from tests.support.commands import REPOSITORY, scripts_of

ELSEWHERE = re.compile(r"<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)=\"(?:https?:)?//[^\"]*", re.IGNORECASE)
"""What a browser would load from another machine."""


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_the_site_is_made_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    """All links lead somewhere, all public names are there, and no page loads anything from elsewhere or names our folder."""
    build = scripts_of(".venv-docs") / "sphinx-build"
    done = subprocess.run(
        [build, "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs/site", ".", tmp_path / "site"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)

    pages = {path.relative_to(tmp_path / "site"): path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert {Path("index.html"), Path("docs/tour.html"), Path("README.html")} <= pages.keys()
    assert [] == [name for name, text in pages.items() if ELSEWHERE.search(text) or str(REPOSITORY) in text]
    styles = "".join(path.read_text() for path in (tmp_path / "site").rglob("*.css"))
    assert [] == re.findall(r"url\([\"']?(?:https?:)?//|@import", styles)
    api = pages[Path("docs/site/api.html")]
    modules = {"blocking", "errors"}
    assert [] == [name for name in filestore.__all__ if name not in modules and f'<span class="pre">{name}</span>' not in api]
    routes = pages[Path("docs/site/routes.html")]
    assert "/native/v1/usage" in routes
