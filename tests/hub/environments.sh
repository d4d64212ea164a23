#!/usr/bin/env bash
# Makes .venv-hub-VERSION for each file of tests/hub/environments: clients of the Hugging Face Hub, as their users install them.
# A file has every package of its environment with its version, so pip has nothing to resolve.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Only the index of torch itself has the build for processors, unless the machine was given it. The other one needs gigabytes.
torch_index=https://download.pytorch.org/whl/cpu
for file in tests/hub/environments/*.txt; do
    folder=.venv-hub-$(basename "$file" .txt)
    made=$(cksum "$file")
    [ "$(cat "$folder/made" 2>/dev/null)" = "$made" ] && continue
    rm -rf "$folder"
    bash tests/make_venv.sh "$folder"
    install=("$folder/bin/pip" install --quiet --no-deps --no-compile --only-binary ':all:')
    "${install[@]}" --requirement <(grep -v '^torch==' "$file")
    torch=$(grep '^torch==' "$file") && { "${install[@]}" "$torch" || "${install[@]}" --index-url "$torch_index" "$torch"; }
    echo "$made" >"$folder/made"
done
