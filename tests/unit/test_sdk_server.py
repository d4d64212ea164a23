"""Which server the Pipeline SDK would use, by its configuration file and its variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from filestore.errors import InvalidSetting
from filestore_cli.sdk_server import SdkServer, find_sdk_server

VARIABLES = {"PIPELINE_API_URL": "http://variables/", "PIPELINE_API_TOKEN": "t"}


def find(folder: Path, content: str | bytes, **variables: str) -> SdkServer | None:
    """The server that is found if the SDK's configuration file has this content."""
    (folder / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    return find_sdk_server({"PIPELINE_DIR": str(folder), **variables})


@pytest.mark.parametrize(
    ("content", "url"),
    [
        ("remotes: [{alias: a, url: 'http://a', active: false}, {alias: b, url: 'http://b', active: true}]", "http://b"),
        ("remotes: [{alias: a, url: 'http://a', active: false}]", "http://variables"),
        ("active_remote: b\nremotes: [{alias: a, url: 'http://a'}, {alias: b, url: 'https://b/prefix/'}]", "https://b/prefix"),
        ("active_remote: none\nremotes: [{alias: a, url: 'http://a'}]", "http://variables"),
        ("active_remote: 5\nremotes: [{alias: '5', url: 'http://a'}]", "http://a"),
        ("remotes: [{alias: a, url: 'http://a'}, {alias: b, url: 'http://b'}]", "http://a"),
        ("remotes: []", "http://variables"),
        ("{}", "http://variables"),
    ],
)
def test_a_stored_server_counts_before_the_variables(tmp_path: Path, content: str, url: str) -> None:
    """Version 1 marks the active one in its entry; version 2 has its alias, and without that the first entry counts."""
    found = find(tmp_path, content, **VARIABLES)

    assert found is not None
    assert url == found.url
    assert ("t" if url == "http://variables" else None) == found.token


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty"),
        ("- a\n", "it is not a mapping"),
        ("a: [", "it is not valid YAML"),
        ("a: \0", "it is not valid YAML"),
        ("[" * 5_000, "it is not valid YAML"),
        (b"a: \xff\xfe", "it is not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "it is not valid YAML"),
        ("remotes: 5\n", "its remotes are not a list of mappings"),
        ("remotes: [5]\n", "its remotes are not a list of mappings"),
        ("remotes: [{alias: a, active: true}]\n", "it does not begin with http:// or https://"),
        ("remotes: [{alias: a, url: a_folder, active: true}]\n", "it does not begin with http:// or https://"),
        ('remotes: [{alias: a, url: "http://a", token: "a b", active: true}]\n', "a token has printable ASCII characters only"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path, content: str | bytes, reason: str) -> None:
    """To ignore it could mean to store a file on another server. The error names the file and no token."""
    with pytest.raises(InvalidSetting) as raised:
        find(tmp_path, content, **VARIABLES)

    assert reason in str(raised.value)
    assert str(tmp_path / "config.yaml") in str(raised.value)
    assert "a b" not in str(raised.value)


@pytest.mark.parametrize("url", ["a_folder", "127.0.0.1:8080", "file:///srv", "/srv"])
def test_a_variable_that_names_no_server_is_an_error(tmp_path: Path, url: str) -> None:
    """A path would be a local folder."""
    with pytest.raises(InvalidSetting, match="PIPELINE_API_URL cannot be used: it does not begin with http:// or https://"):
        find_sdk_server({"PIPELINE_DIR": str(tmp_path), "PIPELINE_API_URL": url})


def test_nothing_is_found(tmp_path: Path) -> None:
    """Without a file and without variables, or with an empty one, nothing is found; a token alone names none."""
    assert find_sdk_server({"PIPELINE_DIR": str(tmp_path / "none"), "PIPELINE_API_URL": "", "PIPELINE_API_TOKEN": "t"}) is None
