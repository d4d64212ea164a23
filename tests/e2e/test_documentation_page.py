"""The Pipeline SDK's page "Files and directories": each example, in order, by each version of the SDK.

The results are the table in `docs/sdk.md`. To write the columns of the versions whose environments exist:

    WRITE_RESULTS=yes .venv/bin/pytest tests/e2e/test_documentation_page.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest

from tests.support.commands import REPOSITORY, Home, scripts_of
from tests.support.runtimes import TOKEN, VENV, VENVS, RunningRuntime, running_runtime, running_site

CLIENTS = {**VENVS, "2.8.0": ".venv-sdk2-last"}
DOC = REPOSITORY / "docs/sdk.md"
TITLE = f"| example | {' | '.join(CLIENTS)} |\n"
PROGRAM = REPOSITORY / "tests/support/documentation_page.py"
CONTENT = "what is in my file"
ROW = re.compile(r"^\| (?!---|example)(.+?) \|(.*)\|$")
SDK_COMMAND = """
from importlib.metadata import distribution
(command,) = [point for point in distribution("pipeline-ai").entry_points if point.name == "pipeline"]
command.load()()
"""
"""The SDK's own command `pipeline`, also where filestore's script of that name was installed last."""

EXAMPLES = {
    '`File("my_file.txt")`': "position",
    '`File(path="my_file.txt")`': "file",
    '`Directory(path="my_dir")`': "directory",
    '`FileURL("https://...")`': "url",
    "`pipeline create file my_file.txt`": "create file",
    "`pipeline create file -r ./my_dir`": "create directory",
    "`filestore create file` prints `Pipeline File created with ID=` and the id": "our create file",
    "a static `File`; `upload_pipeline` makes `paulh/file_test:v1`, and it runs": "static file",
    "a static `Directory`": "static directory",
    "a static `FileURL` of a third party (1.0.26: `File(url=)`)": "static url",
    "a static `FileURL` of our own storage (1.0.26: `File(url=)`)": "static own url",
    "a static `File.from_remote(id=)`": "remote file",
    "a static `Directory.from_remote(id=)`": "remote directory",
    "a static `File(path=, remote_id=)`": "remote id",
    "`upload_pipeline` of a pipeline with the input `Variable(File)` prints `paulh/read-my-file:v1`": "upload input",
    '`run_pipeline("paulh/read-my-file:v1", File(path=))`': "run input",
    "a `FileURL` as an input of a run (1.0.26 and 2.8.0: `File(url=)`)": "run url",
    "`upload_pipeline` of a pipeline with the input `Variable(Directory)`": "upload tree",
    '`Directory(path="my_dir")` as an input of a run': "run directory",
    '`Directory(path="my_dir.zip")` as an input of a run': "run zip",
    "`upload_pipeline` of `meta/llama-2-70B` with the inputs `str` and `dict`": "upload llama",
    "curl: a run of `meta/llama-2-70B:latest` as printed, with a comma after the last member": "curl llama as printed",
    "curl: the same without that comma": "curl llama",
    "curl: the upload of `pfile=@my_file.txt` answers `file_name` and `file_path`": "curl upload",
    "curl: a run of `paulh/read-my-file:v1` with that `file_path`": "curl run",
    "curl: a run with a URL as the `file_path`": "curl run url",
    "curl: the same as `/v4/runs`, with the `url` of `/v4/files` as the `file_url`": "curl v4",
    "`upload_pipeline` of pipelines that return a `File` and a `List[File]`": "upload outputs",
    "a returned `File` is `{name, path, url, size}`, and its `url` opens without a token": "one file",
    "a returned `List[File]` is an `array` of these": "two files",
    "`GET /v4/runs/ID` returns the URLs of the outputs": "curl get",
}
"""The examples of the page in its order, and their names in the results."""

REASONS = {
    r"TypeError: .* takes 1 positional argument but 2 were given": "SDK: only `path=`",
    r"ImportError: cannot import name '(FileURL)'.*": r"SDK: no `\1`",
    r"AttributeError: .* has no attribute '(from_remote|upload_pipeline)'": r"SDK: no `\1`",
    r"IsADirectoryError: .*": "SDK: opens the folder as a file",
}
"""The failures of the SDK itself."""


class Page(NamedTuple):
    """A runtime, the client of one version, and the folder in which the examples are typed."""

    runtime: RunningRuntime
    home: Home
    folder: Path
    site: str

    def typed(self, venv: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program in an environment, as its user does."""
        url = self.runtime.server.url
        own = {"FILESTORE_URL": url, "FILESTORE_TOKEN": TOKEN}
        environ = {"PIPELINE_API_URL": url, "PIPELINE_API_TOKEN": TOKEN, **own}
        program, *rest = arguments
        return self.home.run(*rest, program=scripts_of(venv) / program, environ=environ, cwd=self.folder)

    def created(self, venv: str, *arguments: str, program: tuple[str, ...] = ("python", "-c", SDK_COMMAND)) -> str:
        """Return the id of a file that `create file` made."""
        done = self.typed(venv, *program, "create", "file", *arguments)
        found = re.search(r"file_[0-9a-f]{32}", done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        assert found is not None
        return found[0]

    def curl(self, path: str, *arguments: str, status: int = 200) -> Any:
        """Return the answer to a request as the page types it, with the token."""
        command = ["curl", "-sS", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {TOKEN}", *arguments]
        url = f"{self.runtime.server.url}{path}"
        done = subprocess.run([*command, url], cwd=self.folder, capture_output=True, text=True, check=True)
        body, _, code = done.stdout.rpartition("\n")
        assert str(status) == code, body
        return json.loads(body)

    def curl_run(self, version: int, body: str, *, status: int = 200) -> Any:
        """Return the answer to a run."""
        kind = ("-H", "Content-Type: application/json")
        return self.curl(f"/v{version}/runs", "--request", "POST", *kind, "--data", body, status=status)


def typed_commands(page: Page, venv: str) -> tuple[dict[str, str], str, str]:
    """Create a file and a directory as the page does. Return the results, and both ids."""
    results = {"create file": "works", "create directory": "works", "our create file": "works"}
    file_id, directory_id = page.created(venv, "my_file.txt"), page.created(venv, "-r", "./my_dir")
    said = page.typed(venv, "filestore", "create", "file", "my_file.txt").stdout
    assert re.search(r"^Pipeline File created with ID= file_[0-9a-f]{32}$", said, re.MULTILINE)
    return results, file_id, directory_id


def curl_results(page: Page) -> dict[str, str]:
    """Send the requests of the page."""
    llama = """{
  "pipeline_id_or_pointer": "meta/llama-2-70B:latest",
  "async_run": false,
  "input_data": [
    {"type": "string", "value": "Hello, my name is Paul, I like to"},
    {"type": "dictionary", "value": {"max_new_tokens": 20%s}}
  ]
}"""
    page.curl_run(3, llama % ",", status=400)
    (output,) = page.curl_run(3, llama % "")["result"]["outputs"]
    assert "Hello, my name is Paul, I like to 20" == output["value"]

    uploaded = page.curl("/v3/pipeline_files", "--request", "POST", "--form", "pfile=@my_file.txt", status=201)
    for path in (uploaded["file_path"], f"{page.site}/{uploaded['file_name']}"):
        file = {"type": "file", "value": None, "file_name": uploaded["file_name"], "file_path": path}
        asked = {"pipeline_id_or_pointer": "paulh/read-my-file:v1", "async_run": False, "input_data": [file]}
        (output,) = page.curl_run(3, json.dumps(asked))["result"]["outputs"]
        assert CONTENT == output["value"]

    url = page.curl("/v4/files", "--request", "POST", "--form", "pfile=@my_file.txt", status=201)["url"]
    file = {"type": "file", "value": None, "file_url": url}
    (output,) = page.curl_run(4, json.dumps({"pipeline": "paulh/read-my-file:v1", "inputs": [file]}))["outputs"]
    assert CONTENT == output["value"]

    run = page.curl_run(4, json.dumps({"pipeline": "paulh/one-file:v1", "inputs": []}))
    (output,) = page.curl(f"/v4/runs/{run['id']}")["outputs"]
    with urlopen(output["file"]["url"]) as answer:
        assert b"image 0" == answer.read()
    names = ("curl llama", "curl upload", "curl run", "curl run url", "curl v4", "curl get")
    return dict.fromkeys(names, "works") | {"curl llama as printed": "400: JSON has no such comma"}


def python_results(page: Page, venv: str, *, file_id: str, directory_id: str) -> dict[str, str]:
    """Execute the Python examples."""
    record = page.curl(f"/v3/pipeline_files/{file_id}")
    own = f"{page.runtime.server.url}/{record['path'].lstrip('/')}"
    done = page.typed(venv, "python", PROGRAM, f"{page.site}/my_file.txt", own, file_id, directory_id)
    assert 0 == done.returncode, done.stderr
    results: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return results


def shown(result: str) -> str:
    """Return a result as the table has it. A failure that is not the SDK's own fails the test."""
    if result in {"works", "400: JSON has no such comma"}:
        return result
    for pattern, reason in REASONS.items():
        if re.fullmatch(pattern, result):
            return re.sub(pattern, reason, result)
    raise AssertionError(result)


def columns(text: str) -> dict[str, dict[str, str]]:
    """Return the table of the page, version by version."""
    table: dict[str, dict[str, str]] = {version: {} for version in CLIENTS}
    for line in text.partition(TITLE)[2].splitlines():
        found = ROW.match(line)
        if found is not None:
            for version, cell in zip(CLIENTS, found[2].split("|"), strict=True):
                table[version][found[1]] = cell.strip()
    return table


def write_column(version: str, column: Mapping[str, str]) -> None:
    """Replace the column of a version in the page."""
    text = DOC.read_text()
    table = columns(text) | {version: dict(column)}
    rows = [f"| {example} | {' | '.join(table[each].get(example, '') for each in CLIENTS)} |\n" for example in EXAMPLES]
    before, _, rest = text.partition(TITLE)
    after = rest.partition("\n\n")[2]
    DOC.write_text(f"{before}{TITLE}|{'---|' * (len(CLIENTS) + 1)}\n{''.join(rows)}\n{after}")


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
@pytest.mark.parametrize("version", CLIENTS)
def test_each_example_does_what_the_table_says(home: Home, tmp_path: Path, version: str) -> None:
    """With a runtime of the same version, or, for version 2, whose pipelines are containers, with pipelines of version 1."""
    venv = CLIENTS[version]
    runtime_venv = VENVS.get(version, VENV)
    scripts_of(venv)
    folder = tmp_path / "typed"
    (folder / "my_dir").mkdir(parents=True)
    for path in (folder / "my_file.txt", folder / "my_dir/my_file.txt"):
        path.write_text(CONTENT)
    zipped: list[str | Path] = ["python3", "-m", "zipfile", "-c", folder / "my_dir.zip", "my_file.txt"]
    subprocess.run(zipped, cwd=folder / "my_dir", check=True)
    private = {"FILESTORE_URL_PRIVATE_ALLOWED": "yes"}
    with running_site(folder) as site, running_runtime(home, tmp_path / "root", environ=private, venv=runtime_venv) as runtime:
        page = Page(runtime, home, folder, site)
        results, file_id, directory_id = typed_commands(page, venv)
        if venv != runtime_venv:
            python_results(page, runtime_venv, file_id=file_id, directory_id=directory_id)
        results |= python_results(page, venv, file_id=file_id, directory_id=directory_id)
        results |= curl_results(page)
    column = {example: shown(results[name]) for example, name in EXAMPLES.items()}
    if os.environ.get("WRITE_RESULTS"):
        write_column(version, column)
    assert column == columns(DOC.read_text())[version]
