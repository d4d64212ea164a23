#!/usr/bin/env bash
# Makes the archives of this folder: one small tree, zipped by everything at hand. Run it only to add a tool: the bytes depend on
# its version. Debian packages: zip, p7zip-full, libarchive-tools, default-jdk-headless, python3.
set -euo pipefail
cd "$(dirname "$0")"
target=$PWD
export LC_ALL=C.UTF-8 TZ=UTC
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f "$target"/*.zip "$target"/*.jar "$target"/*.pyz

mkdir -p "$work/tree/folder/deep" "$work/tree/empty folder" "$work/tree/größe"
cd "$work/tree"
printf 'small\n' >readme.txt
for number in $(seq 400); do echo "line $number of a text that packs well"; done >folder/deep/text.txt
printf '#!/bin/sh\necho hello\n' >run.sh
chmod 755 run.sh
chmod 644 readme.txt folder/deep/text.txt
: >empty.txt
printf 'grüße\n' >größe/naïve.txt
find . -exec touch -h -d '2024-02-29 12:00:00' {} +

# Info-ZIP
zip -q -r -X "$target/infozip.zip" .
zip -q -r -X -0 "$target/infozip-stored.zip" .
zip -q -r -X -fz "$target/infozip-zip64.zip" .
zip -q -r -X - . | cat >"$target/infozip-streamed.zip"
printf 'all of it\nand more\n' | zip -q -r -X -z "$target/infozip-comment.zip" . >/dev/null
zip -q -r -X -e -P secret "$target/infozip-encrypted.zip" readme.txt
zip -q -r -X -Z bzip2 "$target/infozip-bzip2.zip" folder
cat folder/deep/text.txt | zip -q "$target/infozip-stdin.zip" -
cat folder/deep/text.txt | zip -q - - | cat >"$target/infozip-stdin-streamed.zip"
printf '#!/bin/sh\nexec unzip "$0"\n' | cat - "$target/infozip.zip" >"$target/preamble.zip"
{ printf '#!/bin/sh\nexec unzip "$0"\n'; cat "$target/infozip.zip"; } >"$target/preamble-adjusted.zip"
zip -q -A "$target/preamble-adjusted.zip"

# 7-Zip
7z a -bso0 -bsp0 -tzip "$target/7zip.zip" .
7z a -bso0 -bsp0 -tzip -mm=Deflate64 "$target/7zip-deflate64.zip" folder
7z a -bso0 -bsp0 -tzip -mm=LZMA "$target/7zip-lzma.zip" folder
7z a -bso0 -bsp0 -tzip -psecret -mem=AES256 "$target/7zip-aes.zip" readme.txt

# Java
jar --create --file "$target/java.jar" --no-manifest -C . .

# libarchive
bsdtar --format zip -cf "$target/bsdtar.zip" .
bsdtar --format zip -cf - . | cat >"$target/bsdtar-streamed.zip"
bsdtar --format zip -n -cf "$target/bsdtar-folders-twice.zip" . folder folder/deep größe readme.txt run.sh empty.txt größe/naïve.txt \
    folder/deep/text.txt 'empty folder' folder folder/deep größe .

# Python
python3 - "$target" <<'PYTHON'
import os, sys, zipapp, zipfile
from pathlib import Path

target = Path(sys.argv[1])


def fill(archive, **options):
    for path in sorted(Path().rglob("*")):
        archive.write(path, compress_type=zipfile.ZIP_DEFLATED)


with zipfile.ZipFile(target / "python.zip", "w") as archive:
    fill(archive)


class Pipe:
    """Something that cannot seek."""

    def __init__(self, file):
        self.write, self.flush = file.write, file.flush


with open(target / "python-streamed.zip", "wb") as file, zipfile.ZipFile(Pipe(file), "w") as archive:
    fill(archive)
Path("__main__.py").write_text("print('hello')\n")
zipapp.create_archive(".", target / "zipapp.pyz", interpreter="/usr/bin/env python3")
os.remove("__main__.py")

# No .NET and no macOS here: what their tools write is written by hand.
with zipfile.ZipFile(target / "dotnet.zip", "w") as archive:
    for path in sorted(Path().rglob("*")):
        name = str(path).replace("/", "\\") + ("\\" if path.is_dir() else "")
        entry = zipfile.ZipInfo("placeholder")
        entry.filename, entry.create_system, entry.external_attr = name, 0, 0
        archive.writestr(entry, b"" if path.is_dir() else path.read_bytes(), zipfile.ZIP_DEFLATED)


class Plain(zipfile.ZipInfo):
    """Names in UTF-8 without the flag that says so."""

    def _encodeFilenameFlags(self):
        return self.filename.encode(), self.flag_bits


with open(target / "macos.zip", "wb") as file, zipfile.ZipFile(Pipe(file), "w") as archive:
    for path in sorted(Path().rglob("*")):
        entry = Plain(f"{path}/" if path.is_dir() else str(path))
        entry.external_attr = path.stat().st_mode << 16
        archive.writestr(entry, b"" if path.is_dir() else path.read_bytes(), zipfile.ZIP_DEFLATED)
    archive.writestr("__MACOSX/._readme.txt", b"\0\5\x16\7\0\2\0\0Mac OS X        ")
PYTHON

# Links
ln -s folder/deep/text.txt link
ln -s ../readme.txt folder/link
zip -q -r -X -y "$target/infozip-links.zip" .
7z a -bso0 -bsp0 -tzip -snl "$target/7zip-links.zip" .
bsdtar --format zip -cf "$target/bsdtar-links.zip" .
