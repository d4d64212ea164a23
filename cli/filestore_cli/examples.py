"""Examples of each command, for its help, its manual page and docs/cli.md.

A test runs them, or at least parses those that need another machine, and fails when a command has none.
"""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "backup": ("filestore backup backups", "filestore backup backups --full --keep 14"),
    "bench fetch": ("filestore bench fetch --size 1GiB --clients 1,4",),
    "bench remote": ("filestore bench remote --server https://files.example",),
    "bench upload": ("filestore bench upload --size 1GiB --clients 1,4", "filestore bench upload --kind tree --plot stages.svg"),
    "cache ls": ("filestore cache ls", "filestore cache ls --filter 'size>1GB' --filter 'accessed>7d'"),
    "cache prune": ("filestore cache prune --cache-size-limit 500GB", "filestore cache prune --filter 'accessed>30d' --dry-run"),
    "cache rm": ("filestore cache rm weights.bin --dry-run", "filestore cache rm weights.bin"),
    "cache serve": ("filestore cache serve --url https://files.example --listen 10.0.0.5:8600",),
    "cache verify": ("filestore cache verify",),
    "cache warm": ("filestore cache warm my_model.zip weights.bin",),
    "check": ("filestore check", "filestore check --read-data 10%", "filestore check --read-data --repair --from my_model"),
    "completion": ("filestore completion bash",),
    "copy": ("filestore copy my_model.zip --to mirror --create --all-versions", "filestore copy my_model.zip@v1 stable.zip"),
    "create file": ("filestore create file weights.bin", "filestore create file -r my_model --name my_model.zip"),
    "diff": ("filestore diff my_model.zip@~1 my_model.zip", "filestore diff my_model.zip ./my_model"),
    "du": ("filestore du", "filestore du --limit 5"),
    "fetch": (
        "filestore fetch my_model.zip",
        "filestore fetch my_model.zip@v1 -o first_model",
        "filestore fetch my_model.zip:config.json -o config.json",
    ),
    "gc": ("filestore gc --dry-run", "filestore gc --grace 0s"),
    "hash": ("filestore hash weights.bin", "filestore hash my_model --exclude '*.log'"),
    "info": ("filestore info my_model.zip", "filestore info my_model.zip@v1:config.json"),
    "leftovers": ("filestore leftovers", "filestore leftovers models --remove"),
    "link": ("filestore link my_model.zip --for 2d", "filestore link --list", "filestore link --revoke link_52fa0c1e77ab9d3f"),
    "log": ("filestore log my_model.zip", "filestore log my_model.zip@v1 --limit 5"),
    "ls": (
        "filestore ls '*.zip' --sort size",
        "filestore ls my_model.zip",
        "filestore ls my_model.zip: --recursive",
        "filestore ls my_model.zip:model.safetensors --tensors",
    ),
    "man": ("filestore man ~/.local/share/man/man1",),
    "migrate": ("filestore migrate --from /srv/models --to s3://models --dry-run",),
    "namespace ls": ("filestore namespace ls",),
    "namespace policy": (
        "filestore namespace policy default",
        "filestore namespace policy default --keep-last 5 --older-than 30d",
    ),
    "namespace rm": ("filestore namespace rm old-team --yes",),
    "owner give": ("filestore owner give research default",),
    "owner ls": ("filestore owner ls",),
    "owner rm": ("filestore owner rm research",),
    "push": (
        "filestore push my_model",
        "filestore push weights.bin --name team/weights --message 'after epoch 3'",
        "filestore push my_model --exclude '*.log' --dry-run",
    ),
    "quota ls": ("filestore quota ls",),
    "quota rm": ("filestore quota rm --namespace default",),
    "quota set": ("filestore quota set --stored 500GB --names 1000", "filestore quota set --everybody --bandwidth 200MB/s"),
    "restore": ("filestore restore backups --root restored",),
    "rm": (
        "filestore rm my_model.zip@~1",
        "filestore rm my_model.zip --keep-last 3 --dry-run",
        "filestore rm weights.bin --all --yes",
    ),
    "runtime serve": ("filestore runtime serve --token-file token.txt --port 8080",),
    "serve": (
        "filestore serve",
        "filestore serve --root /srv/models --create --host 0.0.0.0 --tls-cert cert.pem",
    ),
    "signing-key ls": ("filestore signing-key ls",),
    "signing-key rotate": ("filestore signing-key rotate", "filestore signing-key rotate --revoke"),
    "sync": ("filestore sync ./my_model synced.zip", "filestore sync my_model.zip ./working_copy --plan"),
    "tag": ("filestore tag my_model.zip v1", "filestore tag my_model.zip", "filestore tag my_model.zip v1 --delete"),
    "token ls": ("filestore token ls",),
    "token new": (
        "filestore token new --scope read --label 'nightly tests'",
        "filestore token new --prefix team/ --expires 90d",
    ),
    "token rm": ("filestore token rm 1f2e3d4c",),
    "token rotate": ("filestore token rotate 1f2e3d4c --keep 1h",),
}
"""The command lines by the name of the command, as one types it after `filestore`."""

_ALIASES = {"warm": "cache warm"}


def examples_of(name: str) -> tuple[str, ...]:
    """Return the command lines for the command that one types as `name`. A group has none."""
    return EXAMPLES.get(_ALIASES.get(name, name), ())
