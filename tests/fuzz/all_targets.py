"""All targets, by their names."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz.target import Target
from tests.fuzz.targets import answers, archives, containers, frames, hub, local, names, requests

TARGETS: Mapping[str, Target] = {
    name.lower().replace("_", "-"): target
    for module in (frames, containers, archives, requests, hub, answers, names, local)
    for name, target in vars(module).items()
    if isinstance(target, Target)
}
"""The name of a target is that of its constant, with dashes."""
