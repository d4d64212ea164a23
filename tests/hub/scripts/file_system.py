"""Use a repository as a file system, and print what was found. Usage: file_system.py NAME."""

import json
import sys

import huggingface_hub

if __name__ == "__main__":
    name = sys.argv[1]
    files = huggingface_hub.HfFileSystem()
    with files.open(f"{name}/data.bin", "rb", block_size=1 << 16) as opened:
        opened.seek(200_000)
        part = opened.read(100)
    print(
        json.dumps(
            {
                "top": sorted(files.ls(name, detail=False)),
                "found": sorted(files.find(name)),
                "matched": sorted(files.glob(f"{name}/**/*.json")),
                "size": files.info(f"{name}/data.bin")["size"],
                "is_folder": files.isdir(f"{name}/notes"),
                "is_there": [files.exists(f"{name}/{path}") for path in ("config.json", "absent", "notes/absent")],
                "text": files.cat_file(f"{name}/README.md").decode(),
                "part": part.hex(),
            }
        )
    )
