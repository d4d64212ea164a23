"""The directive `openapi-routes FILE`: a table of the routes that an OpenAPI document describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

METHODS = ("get", "head", "put", "post", "patch", "delete", "options")
COLUMNS = ("method", "path", "what it does")


def routes(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return method, path and summary of each route, in the order of the document."""
    return [
        (method.upper(), path, operation.get("summary", operation.get("description", "")).strip().split("\n")[0])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in METHODS
    ]


def row(*cells: nodes.Node) -> nodes.row:
    """Return a row of a table."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


class Routes(SphinxDirective):
    """The table, made again when the document changes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        relative, absolute = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        found = routes(yaml.safe_load(Path(absolute).read_text(encoding="utf-8")))
        group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (1, 4, 5)), cols=len(COLUMNS))
        group += nodes.thead("", row(*(nodes.Text(name) for name in COLUMNS)))
        group += nodes.tbody(
            "",
            *(row(nodes.literal("", method), nodes.literal("", path), nodes.Text(text)) for method, path, text in found),
        )
        return [nodes.table("", group)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("openapi-routes", Routes)
    return {"parallel_read_safe": True}
