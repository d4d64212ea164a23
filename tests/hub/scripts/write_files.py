"""Write, copy and remove files of a new repository as a file system, and print what is left. Usage: write_files.py NAME."""

import json
import sys

import huggingface_hub

if __name__ == "__main__":
    name = sys.argv[1]
    huggingface_hub.create_repo(name)
    files = huggingface_hub.HfFileSystem()
    with files.open(f"{name}/written.txt", "w") as opened:
        opened.write("written")
    files.cp_file(f"{name}/written.txt", f"{name}/folder/copied.txt")
    files.rm(f"{name}/written.txt")
    print(json.dumps({path.removeprefix(f"{name}/"): files.cat_file(path).decode() for path in files.find(name)}))
