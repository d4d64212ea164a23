#!/usr/bin/env bash
# Installs Debian packages. Usage: bash tests/install.sh PACKAGE...
set -euo pipefail

echo "installing $* with apt-get" >&2
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=600 install -qq --yes --no-install-recommends "$@" >&2
