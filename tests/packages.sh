#!/usr/bin/env bash
# Build wheel and sdist, check them, install the wheel into a clean environment, and run tests with the lowest allowed versions.
# tests/run.sh has made .venv before.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The wheel is built from the sdist, so it proves that nothing is missing there.
.venv/bin/python -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    exit 1
}
.venv/bin/twine check --strict "$work"/dist/*

bash tests/make_venv.sh "$work/clean"
"$work/clean/bin/pip" install --quiet --no-compile "$work"/dist/*.whl
# From another folder, where the checkout cannot be imported.
version=$(cd "$work" && clean/bin/filestore --version)
[ "$version" = "$(cd "$work" && clean/bin/python -m filestore --version)" ]
[ "$version" = "filestore $(.venv/bin/python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')" ]
(cd "$work" && printf 'some bytes' >file && clean/bin/filestore hash file >hash)
# The pages of a server need files that are no modules.
(cd "$work" && clean/bin/python -c '
from filestore.http.server.routes.page.assets import STATIC
from filestore.http.server.routes.page.rendering import TEMPLATES
print(*sorted(path.name for folder in (STATIC, TEMPLATES) for path in folder.rglob("*") if path.is_file()), sep="\n")
' >pages)
diff "$work/pages" <(git ls-files 'filestore/http/server/routes/page/static' 'filestore/http/server/routes/page/templates' | xargs basename -a | LC_ALL=C sort)
echo "packages: $(basename -a "$work"/dist/* | paste -sd' '), installed: $version"

# How one user installs it, from a checkout and from a wheel (docs/operating.md). uv trusts the authorities of the system, too.
bash tests/make_venv.sh "$work/installers"
"$work/installers/bin/pip" install --quiet --no-compile pipx==1.18.4 uv==0.13.9
export PIPX_HOME=$work/pipx PIPX_BIN_DIR=$work/pipx-bin PIPX_MAN_DIR=$work/pipx-man
export UV_TOOL_DIR=$work/uv UV_TOOL_BIN_DIR=$work/uv-bin UV_CACHE_DIR=$work/uv-cache UV_NATIVE_TLS=1
for source in . "$work"/dist/*.whl; do
    "$work/installers/bin/pipx" install --quiet --force "$source"
    "$work/installers/bin/uv" tool install --quiet --force "$source"
    for folder in "$PIPX_BIN_DIR" "$UV_TOOL_BIN_DIR"; do
        [ "$version" = "$(cd "$work" && "$folder/filestore" --version)" ]
        [ -x "$folder/pipeline" ]
        rm -r "$folder"
    done
done
echo "installed by pipx and by uv, from the checkout and from the wheel"

bash tests/make_venv.sh .venv-lowest
.venv-lowest/bin/pip install --quiet --upgrade 'pip>=25.1'
.venv-lowest/bin/python tests/lowest.py >"$work/lowest.txt"
.venv-lowest/bin/pip install --quiet --constraint "$work/lowest.txt" --group pytest --editable '.[jwt,postgres,s3]'
echo "lowest versions: $(paste -sd' ' "$work/lowest.txt")"
# A class of a command may need a newer click, and each command is imported only when it is called.
.venv-lowest/bin/python -c '
import importlib, pkgutil, filestore_cli
for module in pkgutil.walk_packages(filestore_cli.__path__, "filestore_cli."):
    importlib.import_module(module.name)
'
.venv-lowest/bin/pytest -n "${JOBS:-2}" -m 'not slow' tests/contracts tests/golden
