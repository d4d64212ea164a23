#!/usr/bin/env bash
# Unpacks promtool and Prometheus from their Debian package. It is not installed, because it would start a service.
# Usage: bash tests/prometheus.sh FOLDER
set -euo pipefail
folder=$1

[ -x "$folder/usr/bin/promtool" ] && exit
command -v promtool >/dev/null && command -v prometheus >/dev/null && exit
echo "downloading prometheus with apt-get" >&2
rm -rf "$folder"
mkdir -p "$folder/package"
(cd "$folder/package" && apt-get download -qq prometheus 2>/dev/null) || {
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    (cd "$folder/package" && apt-get download -qq prometheus)
}
dpkg-deb --extract "$folder"/package/prometheus_*.deb "$folder"
rm -rf "$folder/package"
