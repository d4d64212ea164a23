#!/usr/bin/env bash
# Run tests and print which share of each package they ran, in this process and in all that the tests start. Arguments go to pytest.
# tests/run.sh has made .venv before.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH="$PATH:/usr/sbin"
.venv/bin/coverage erase
mkdir -p .coverage
failed=0
.venv/bin/coverage run -m pytest -p no:cacheprovider "$@" || failed=$?
.venv/bin/coverage combine --quiet
.venv/bin/coverage report
exit "$failed"
