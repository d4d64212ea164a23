#!/usr/bin/env bash
# Makes `.venv-docs`, with what the documentation site is made with.
set -euo pipefail
cd "$(dirname "$0")/../.."

bash tests/make_venv.sh .venv-docs
.venv-docs/bin/pip install --quiet --upgrade 'pip>=25.1'
.venv-docs/bin/pip install --quiet --constraint docs/site/constraints.txt --group docs --editable .
