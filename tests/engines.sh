#!/usr/bin/env bash
# Installs the engines of servers that share a repository: PostgreSQL, and Ceph's gateway for the S3 API. The tests start them.
# faketime gives a server another clock.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH="$PATH:/usr/sbin"
for program in setpriv psql ceph ceph-mon ceph-osd radosgw faketime; do
    command -v "$program" >/dev/null || missing=true
done
# Debian has the other programs of PostgreSQL on no path.
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing=true
[ -z "${missing:-}" ] || bash tests/install.sh util-linux postgresql ceph-common ceph-mon ceph-osd radosgw faketime
