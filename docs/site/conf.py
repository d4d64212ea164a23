"""How Sphinx makes the documentation site: `bash docs/build.sh`.

The source folder is the whole checkout, so that links from one page to another are the same here and in a checkout.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "filestore"
html_title = "filestore"
html_theme = "furo"
root_doc = "docs/site/index"
include_patterns = ["*.md", "docs/*.md", "docs/site/*.md", "bench/README.md"]
exclude_patterns = [".*", "build", "dist", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "openapi_routes"]
# The anchors of headings are those that a viewer of Markdown makes, to the deepest level that pages have.
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
html_copy_source = False
html_show_sphinx = False
smartquotes = False
pygments_style = "tango"
pygments_dark_style = "monokai"


ITEM = re.compile(r"([a-z_*][\w*]*(?:, [\w*]+)*): ")
"""The beginning of a line that explains an argument or a member."""


def paragraph_as_rst(paragraph: str) -> str:
    """Return a paragraph of a docstring, which is plain text, as reStructuredText.

    One with items, such as `path: a file or a directory`, becomes a list, and any other one with indented lines stays as it is.
    """
    if paragraph.lstrip().startswith(">>>"):
        return paragraph
    lines = paragraph.split("\n")
    if any(line.startswith("  ") for line in lines) and not all(ITEM.match(line) for line in lines if line[:1] != " "):
        return "::\n\n" + "\n".join(f"    {line}" for line in lines)
    paragraph = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", paragraph)
    lines = re.sub(r"(?<![`*\w])(\*+)(?=\w)", r"\\\1", paragraph).split("\n")
    if all(ITEM.match(line) for line in lines if line[:1] != " "):
        return "\n".join(f"  {line.strip()}" if line[:1] == " " else ITEM.sub(r"- **\1**: ", line, count=1) for line in lines)
    return "\n".join(lines)


def docstring_as_rst(_app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Change the lines of a docstring for autodoc."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = [*"\n\n".join(map(paragraph_as_rst, paragraphs)).split("\n"), ""]


def write_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Write the `index.html` that a web server answers with, and that leads to the first page of the site."""
    if failure is None and app.builder.format == "html":
        page = f"{root_doc}.html"
        text = f'<!doctype html><meta http-equiv="refresh" content="0; url={page}"><a href="{page}">{project}</a>\n'
        Path(app.outdir, "index.html").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register what changes docstrings, and what is written at the end."""
    app.connect("autodoc-process-docstring", docstring_as_rst)
    app.connect("build-finished", write_first_page)
