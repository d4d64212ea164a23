#!/usr/bin/env bash
# Makes the documentation site. Usage: bash docs/build.sh [FOLDER]       FOLDER gets the pages; without it, build/site.
# A warning is an error, so no page has a link to another page or heading that is not there.
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/../build/site}")
cd "$(dirname "$0")/.."

bash docs/site/environment.sh
.venv-docs/bin/sphinx-build --quiet --fail-on-warning --keep-going --jobs auto -c docs/site . "$folder"
echo "file://$folder/index.html"
