from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from filestore.runtime.routes import Routes
from tests.support.commands import REPOSITORY, Home
from tests.support.runtimes import TOKEN, make_graphs, running_runtime

DOC = (REPOSITORY / "docs/http-api.md").read_text().partition("\n## The runtime\n")[2]
LINE = re.compile(r"^curl (.*?) +# (\d{3})$", re.MULTILINE)
HEADING = re.compile(r"^### `(\S+) (\S+)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A runtime and a folder for the lines of the page, with what they name."""
    folder = tmp_path_factory.mktemp("typed")
    user = Home(folder)
    graph = make_graphs(user, folder / "graphs") / "returned"
    with running_runtime(user, folder / "root") as runtime:
        (folder / "graph.bin").write_bytes(graph.read_bytes())
        pipeline = runtime.pipeline(graph)
        yield {
            "URL": runtime.server.url,
            "TOKEN": TOKEN,
            "PIPELINE": pipeline,
            "OUTPUT": runtime.run(pipeline, "file")["result"]["outputs"][0]["file"]["path"],
            "RUN": runtime.begin(pipeline, "file", is_async=True).json["id"],
            "PATH": os.environ["PATH"],
            "PWD": str(folder),
        }


@pytest.mark.slow
def test_every_curl_line_does_what_it_says(known: dict[str, str]) -> None:
    """In the order of the page."""
    lines = LINE.findall(DOC)
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    options = '--silent --show-error --output /dev/null --write-out "%{http_code} "'
    typed = "\n".join(f"curl {options} {line}" for line, _ in lines)
    done = subprocess.run(
        ["bash", "-c", typed], env=known, cwd=known["PWD"], capture_output=True, text=True, timeout=60, check=False
    )

    assert len("".join(blocks).splitlines()) == len(lines)
    assert ([status for _, status in lines], "") == (done.stdout.split(), done.stderr)


def test_every_route_is_described_with_a_curl_line() -> None:
    """Neither more nor fewer."""
    described = {f"{method} {path}": text for method, path, text in HEADING.findall(DOC)}
    routes = Routes(None).all  # type: ignore[arg-type]  # only their paths are looked at

    # The page does not say which names may hold slashes.
    paths = [route.path.replace(":.+}", "}").replace("{path:run_files/.*}", "run_files/{path}") for route in routes]
    assert {f"{route.method} {path}" for route, path in zip(routes, paths, strict=True)} == set(described)
    assert [] == [route for route, text in described.items() if LINE.search(text) is None]
