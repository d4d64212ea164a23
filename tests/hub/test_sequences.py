"""Requests of clients that are not at hand here, sent in their order as their source sends them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_clients import Hub

pytestmark = pytest.mark.slow
SEQUENCES = sorted((Path(__file__).parent / "sequences").glob("*.json"))
FILE = "model.safetensors"


def member(value: Any, path: str) -> Any:
    """Return a member of JSON. In a path such as `branches/name=main/targetCommit`, `name=main` chooses an item of a list."""
    for step in path.split("/"):
        key, is_choice, wanted = step.partition("=")
        value = next(item for item in value if item.get(key) == wanted) if is_choice else value[key]
    return value


@pytest.mark.parametrize("path", SEQUENCES, ids=lambda path: path.stem)
def test_the_sequence_of_a_client(hub: Hub, stored: str, model: Path, path: Path) -> None:
    """Each answer has the status, the headers, the JSON and the bytes that the client needs."""
    content = (model / FILE).read_bytes()
    known = {"name": stored, "file": FILE, "size": str(len(content))}

    def filled(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], found[0]), text)

    for request in json.loads(path.read_text())["requests"]:
        headers = {name: filled(value) for name, value in request["headers"].items()}
        reply = hub.ask(request["method"], filled(request["target"]), headers=headers)
        assert request["status"] == reply.status, (request["why"], reply.body[:1000])
        for name, pattern in request.get("answer", {}).items():
            assert re.fullmatch(filled(pattern), reply.headers[name] or ""), (request["why"], name, reply.headers[name])
        for place, pattern in request.get("json", {}).items():
            assert re.fullmatch(filled(pattern), member(reply.json, filled(place))), (request["why"], place)
        if "bytes" in request:
            assert content[slice(*request["bytes"])] == reply.body, request["why"]
        known |= {key: member(reply.json, place) for key, place in request.get("take", {}).items()}
        known |= {key: str(reply.headers[name]) for key, name in request.get("take_header", {}).items()}
