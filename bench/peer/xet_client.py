"""Push and fetch by `hf_xet`: xet_client.py ENDPOINT push PATH JSON | ENDPOINT fetch JSON FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hf_xet  # type: ignore[import-not-found]  # it is in an environment of its own


def push(endpoint: str, path: Path, answer: Path) -> None:
    """Upload a file, or the files below a folder; write their hashes to `answer`."""
    paths = [below for below in sorted(path.rglob("*")) if below.is_file()] if path.is_dir() else [path]
    with hf_xet.XetSession().new_upload_commit(endpoint=endpoint) as commit:
        uploads = [commit.start_upload_file(str(below), sha256=hf_xet.SKIP_SHA256) for below in paths]
    found = {}
    for below, upload in zip(paths, uploads, strict=True):
        info = upload.result().xet_info
        found[str(below.relative_to(path.parent))] = [info.hash, info.file_size]
    answer.write_text(json.dumps(found), encoding="utf-8")


def fetch(endpoint: str, answer: Path, folder: Path) -> None:
    """Download the files that `answer` names."""
    found = json.loads(answer.read_text(encoding="utf-8"))
    for below in {(folder / name).parent for name in found}:
        below.mkdir(parents=True, exist_ok=True)
    with hf_xet.XetSession().new_file_download_group(endpoint=endpoint) as group:
        for name, (digest, size) in found.items():
            group.start_download_file(hf_xet.XetFileInfo(digest, size), str(folder / name))


if __name__ == "__main__":
    {"push": push, "fetch": fetch}[sys.argv[2]](sys.argv[1], Path(sys.argv[3]), Path(sys.argv[4]))
