from __future__ import annotations

from pathlib import Path

from filestore.http.wire import API
from tests.support.frames import encoded, manifest
from tests.support.generator import octets
from tests.support.server import OTHER_TOKEN, batch, running_server

STATUS = f"{API}/status"


def test_the_server_tells_what_its_stages_did(tmp_path: Path) -> None:
    """The bytes that were received, written and verified are exact."""
    contents = [octets(seed, 300_000) for seed in range(5)]
    frames = [encoded(content) for content in contents]
    built = manifest(contents)
    stored_size = sum(len(frame.data) for frame in frames)
    with running_server(tmp_path / "root") as server:
        assert 200 == server.put(frames).status
        assert 201 == server.commit(built.encoded, name="a").status
        stages = server.ask("GET", STATUS).json["stages"]
    assert len(batch(frames)) == stages["receive"]["size"]
    assert stored_size + len(built.encoded) == stages["write"]["size"]
    assert (5, sum(map(len, contents))) == (stages["verify"]["times"], stages["verify"]["size"])
    assert stages["sync"]["times"] > 0
    assert all(stage["seconds"] >= 0 <= stage["cpu_seconds"] for stage in stages.values())


def test_the_numbers_are_those_of_all_workers(tmp_path: Path) -> None:
    """Whichever of them answers."""
    with running_server(tmp_path / "root", workers=2) as server:
        for seed in range(8):
            assert 200 == server.put([encoded(octets(seed, 1000))]).status
        answers = [server.ask("GET", STATUS).json for _ in range(8)]
    assert {8} == {answer["stages"]["verify"]["times"] for answer in answers}
    assert {2} == {len(answer["processes"]) for answer in answers}
    assert max(process["cpu_seconds"] for process in answers[-1]["processes"]) > 0
    assert max(process["peak_memory"] for process in answers[-1]["processes"]) > 1 << 20


def test_other_namespaces_do_not_learn_how_busy_the_server_is(tmp_path: Path) -> None:
    """The numbers are those of all namespaces: a tenant's token does not show them."""
    with running_server(tmp_path / "root") as server:
        refused = server.ask("GET", STATUS, token=OTHER_TOKEN)
        stranger = server.ask("GET", STATUS, token="a-stranger")
    assert (403, "forbidden") == (refused.status, refused.slug)
    assert 401 == stranger.status
