#!/usr/bin/env bash
# Makes .venv-hub-VERSION for each file of tests/hub/environments: clients of the Hugging Face Hub, as their users install them.
# A file has every package of its environment with its version, so pip has nothing to resolve.
set -euo pipefail
cd "$(dirname "$0")/../.."

for file in tests/hub/environments/*.txt; do
    folder=.venv-hub-$(basename "$file" .txt)
    made=$(cksum "$file")
    [ "$(cat "$folder/made" 2>/dev/null)" = "$made" ] && continue
    rm -rf "$folder"
    bash tests/make_venv.sh "$folder"
    install=("$folder/bin/pip" install --quiet --no-deps --no-compile --only-binary ':all:')
    "${install[@]}" --requirement <(grep -v '^torch==' "$file")
    # Most machines do not have the build for processors at hand, and the other one needs gigabytes. Its tests say so then.
    torch=$(grep '^torch==' "$file") && { "${install[@]}" "$torch" || echo "$torch cannot be installed" >&2; }
    echo "$made" >"$folder/made"
done
