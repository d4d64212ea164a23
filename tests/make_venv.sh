#!/usr/bin/env bash
# Makes a virtual environment in FOLDER unless there is one that works. Usage: bash tests/make_venv.sh FOLDER
set -euo pipefail

folder=$1
if [ -x "$folder/bin/python" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    # The distribution had the name `filestore` before. What is left of that would remove the scripts of ours when it is uninstalled.
    ! compgen -G "$folder/lib/python*/site-packages/filestore-*.dist-info" >/dev/null ||
        "$folder/bin/python" -m pip uninstall --quiet --yes filestore
    exit 0
fi

install() { bash "$(dirname "$0")/install.sh" "$@"; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || install python3 python3-venv
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "filestore needs Python 3.11 or newer, and this is $("$python" --version); name another one by PYTHON=..." >&2
    exit 1
fi
# Debian ships Python without ensurepip, which a virtual environment is made with.
"$python" -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
"$python" -m venv --clear "$folder"
