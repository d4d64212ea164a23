"""Make file systems for one test, which fill up or have no locks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, limit: str) -> Iterator[Callable[[str], None]]:
    """Mount a tmpfs at `folder`, limited by a mount option; yield a function that sets another limit.

    The folder is made. CI must be able to mount it.
    """
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", folder], check=False, capture_output=True, text=True)
    if made.returncode:
        assert "CI" not in os.environ, made.stderr
        pytest.skip(f"needs the right to mount: {made.stderr}")

    def change(limit: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{limit}", folder], check=True)

    try:
        yield change
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def overlay(folder: Path, image: Path) -> Iterator[None]:
    """Mount an overlay file system at `folder`, over `image`, as a container does. The folder is made.

    As in most containers, a folder of the image cannot be renamed. CI must be able to mount it.
    """
    with small_disk(folder.with_name(f"{folder.name}-layer"), "size=64m"):
        layer = folder.with_name(f"{folder.name}-layer")
        for name in ("upper", "work"):
            (layer / name).mkdir()
        folder.mkdir()
        options = f"lowerdir={image},upperdir={layer}/upper,workdir={layer}/work,redirect_dir=off"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def refuse_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all file locks fail, as they do on some network file systems."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
