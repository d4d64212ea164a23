#!/usr/bin/env bash
# Runs a command in the root folder of an image, as an orchestrator with strict rules does: by a user without any rights, on a
# file system that cannot be written but for /tmp and the volume. The command keeps the process id of this script.
# Usage, in a mount namespace of its own: unshare --mount bash in_image.sh ROOT USER VOLUME TARGET COMMAND...
set -euo pipefail
root=$1 user=$2 volume=$3 target=$4
shift 4

mount --bind "$root" "$root"
mount --bind "$volume" "$root$target"
mount -o remount,ro,bind "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
exec chroot "$root" /usr/bin/setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups \
    --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
