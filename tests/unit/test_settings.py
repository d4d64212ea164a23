from __future__ import annotations

import inspect
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from filestore.errors import InvalidSetting, LimitExceeded
from filestore.format.codec import Codec
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.http.client.repository import RemoteRepository
from filestore.http.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from filestore.http.server import serve
from filestore.system.files import home_path
from filestore_cli.hints import explained
from filestore_cli.settings import CODEC_CHOICES, Folders, Settings, setting_definitions, settings_from
from tests.support.archives import Forged, forged, unpacked

FOLDERS = Folders(data=Path("/data"), cache=Path("/cache"), state=Path("/state"))


def settings(
    *,
    options: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    file: dict[str, object] | None = None,
) -> Settings:
    """Settings of a user whose folders are known."""
    return settings_from(folders=FOLDERS, options=options, environ=environ, file=file, file_path="/etc/config.toml")


def test_defaults() -> None:
    """The default folders are those of the platform, and no server is set."""
    assert Settings(root=Path("/data"), cache=Path("/cache"), push_cache=Path("/state/journal.sqlite")) == settings()
    assert settings().url is None


def test_option_beats_environment_beats_file() -> None:
    """A setting is taken from option, environment, configuration file, in that order."""
    options: dict[str, object] = {"port": "1"}
    environ = {"FILESTORE_PORT": "2"}
    file: dict[str, object] = {"port": 3}

    assert settings(options=options, environ=environ, file=file).port == 1
    assert settings(environ=environ, file=file).port == 2
    assert settings(file=file).port == 3


@pytest.mark.parametrize("nothing", [{"options": {"url": None}}, {"environ": {"FILESTORE_URL": ""}}])
def test_what_says_nothing(nothing: dict[str, dict[str, object]]) -> None:
    """An option that was not given and an empty variable leave the word to the file."""
    assert settings(**nothing, file={"url": "http://file"}).url == "http://file"  # type: ignore[arg-type]  # either mapping


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"options": {"port": "x"}}, "--port"),
        ({"options": {"memory_limit": "x"}}, "--memory-limit"),
        ({"environ": {"FILESTORE_PORT": "x"}}, "FILESTORE_PORT"),
        ({"file": {"port": "x"}}, "port in /etc/config.toml"),
    ],
)
def test_a_bad_value_is_told_with_its_place(given: dict[str, dict[str, object]], source: str) -> None:
    """An error names the option, the variable, or the key and file of the bad value."""
    with pytest.raises(InvalidSetting) as caught:
        settings(**given)  # type: ignore[arg-type]  # one of the three mappings
    assert source == caught.value.source


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", ""),
        ("url", 1),
        ("url", "http://\udcff"),
        ("token", "two words"),
        ("jwt_keys", "http://login.example.org/keys"),
        ("jwt_keys", "http://127.0.0.1.example.org/keys"),
        ("jwt_keys", "https://user@login.example.org/keys"),
        ("jwt_keys", "ftp://login.example.org/keys"),
        ("jwt_keys", ""),
        ("token", "line\n"),
        ("token", "ключ"),
        ("root", ""),
        ("root", "a\0b"),
        ("codec", "gzip"),
        ("connections", 0),
        ("connections", 1025),
        ("port", -1),
        ("port", 65536),
        ("port", "8080.5"),
        ("port", 8080.5),
        ("port", "٣"),
        ("workers", True),
        ("workers", "few"),
        ("workers", "9" * 40),
        ("stall_seconds", 0),
        ("stall_seconds", "nan"),
        ("stall_seconds", "soon"),
        ("stall_seconds", True),
        ("memory_limit", "1MiB"),
        ("memory_limit", "1 MB"),
        ("memory_limit", True),
        ("memory_limit", 1.5e9),
        ("memory_limit", "100000000.5"),
        ("memory_limit", "100000000.5B"),
        ("memory_limit", "128mib"),
        ("memory_limit", "128 Mb"),
        ("memory_limit", "1e9"),
        ("memory_limit", "-1GB"),
        ("memory_limit", "1.GiB"),
        ("memory_limit", "9" * 5000),
        ("root", "~somebody/models"),
        ("push_cache", "~~"),
        ("zip_entries", 0),
        ("zip_ratio", 1.5),
        ("zip_total_size", "2 XB"),
        ("zip_depth", -1),
        ("environment", "numpy"),
        ("environment", "=/opt/numpy/bin/python"),
        ("environment", "numpy="),
        ("environment", ["a=/a", "a=/b"]),
        ("environment", ["a=/a", 7]),
        ("environment", 7),
    ],
)
def test_values_that_cannot_be_used(name: str, value: object) -> None:
    """A text that is not a value of the setting is refused."""
    with pytest.raises(InvalidSetting):
        settings(file={name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("jwt_keys", "https://login.example.org/keys?tenant=a", "https://login.example.org/keys?tenant=a"),
        ("jwt_keys", "http://localhost:8080/keys", "http://localhost:8080/keys"),
        ("jwt_keys", "http://[::1]/keys", "http://[::1]/keys"),
        ("jwt_keys", "keys.json", Path("keys.json")),
        ("jwt_keys", Path("/run/keys.json"), Path("/run/keys.json")),
        ("root", "/srv/models", Path("/srv/models")),
        ("root", Path("/srv/models"), Path("/srv/models")),
        ("codec", "planes2+zstd", "planes2+zstd"),
        ("port", "0", 0),
        ("workers", 2, 2),
        ("workers", "4", 4),
        ("workers", "auto", None),
        ("stall_seconds", "0.5", 0.5),
        ("stall_seconds", 10, 10.0),
        ("memory_limit", "64 MiB", 64 << 20),
        ("memory_limit", "1GiB", 1 << 30),
        ("memory_limit", 1 << 28, 1 << 28),
        ("zip_total_size", "3TiB", 3 << 40),
        ("upload_limit", "0", 0),
        ("upload_limit", "7B", 7),
        ("upload_limit", "7k", 7000),
        ("upload_limit", "7K", 7000),
        ("upload_limit", "7kB", 7000),
        ("upload_limit", "7KB", 7000),
        ("upload_limit", "7Ki", 7 << 10),
        ("upload_limit", "7KiB", 7 << 10),
        ("upload_limit", "7M", 7 * 10**6),
        ("upload_limit", "10G", 10**10),
        ("upload_limit", "10GB", 10**10),
        ("upload_limit", "10Gi", 10 << 30),
        ("upload_limit", "1.5GiB", 3 << 29),
        ("upload_limit", "2.0000000001kB", 2000),
        ("upload_limit", "1.1Ti", 11 * (1 << 40) // 10),
        ("upload_limit", "1P", 10**15),
        ("upload_limit", "1PiB", 1 << 50),
        ("zip_ratio", 1000, 1000),
        ("token", "a-token_~!", "a-token_~!"),
    ],
)
def test_values(name: str, value: object, expected: object) -> None:
    """A text, a TOML value and the result itself mean the same."""
    assert expected == getattr(settings(options={name: value}), name)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for every source of the path, since a shell replaces it only in a few places."""
    monkeypatch.setenv("HOME", "/home/ann")
    given = [settings(options={"root": "~"}), settings(environ={"FILESTORE_ROOT": "~/"}), settings(file={"root": "~/./"})]
    assert [Path("/home/ann")] * 3 == [each.root for each in given]
    assert Path("/home/ann/a~b") == settings(environ={"FILESTORE_CACHE": "~/a~b"}).cache
    assert Path("~") == settings(environ={"FILESTORE_CACHE": "./~"}).cache
    assert Path("/home/ann/models") == home_path("~/models") == home_path(Path("~/models"))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("urll", "there is no such setting; did you mean url?"),
        ("cache-size-limit", "there is no such setting; did you mean cache_size_limit?"),
        ("Token", "there is no such setting; did you mean token?"),
        ("host", "only the option --host changes it"),
        ("qqqq", "there is no such setting; the settings are url, token, token_file, "),
    ],
)
def test_a_wrong_key_names_the_nearest_right_one(key: str, sentence: str) -> None:
    """All of them only where none is near."""
    with pytest.raises(InvalidSetting) as caught:
        settings(file={key: "x"})
    assert str(caught.value).startswith(f"{key} in /etc/config.toml cannot be used: {sentence}")


def test_a_folder_that_nobody_knows_is_missed_where_it_is_used() -> None:
    """And nowhere else; a push cache is done without."""
    homeless = Folders(None, None, None)
    with pytest.raises(
        InvalidSetting, match=r"the default of root cannot be used: .* set HOME, or give --root or FILESTORE_ROOT"
    ):
        settings_from(folders=homeless, used={"root"})
    found = settings_from(folders=homeless, environ={"FILESTORE_ROOT": "/srv"}, used={"root", "push_cache"})
    assert (Path("/srv"), Path("/dev/null/filestore/journal.sqlite")) == (found.root, found.push_cache)


@pytest.mark.parametrize("host", ["", "two\nlines", "a..b", "x" * 64])
def test_hosts_that_are_none(host: str) -> None:
    """A text that cannot be a host name is refused before any look-up."""
    with pytest.raises(InvalidSetting):
        settings(options={"host": host})


@pytest.mark.parametrize("value", ["tcp://10.96.0.12:8080", "udp://[fd00::1]:53"])
def test_a_service_of_kubernetes_is_not_a_port(value: str) -> None:
    """A container has this variable because a service of its namespace is called filestore. Nobody has set it."""
    assert settings().port == settings(environ={"FILESTORE_PORT": value}).port
    with pytest.raises(InvalidSetting):
        settings(environ={"FILESTORE_PORT": "tcp://"})
    # Somebody has set that. A push must not go to the local folder instead.
    assert value == settings(environ={"FILESTORE_URL": value}).url


def test_a_bad_token_is_not_repeated() -> None:
    """A secret is never in an error."""
    with pytest.raises(InvalidSetting) as caught:
        settings(environ={"FILESTORE_TOKEN": "my secret"})
    assert "my secret" not in str(caught.value)


def test_a_token_is_not_in_the_repr() -> None:
    """A secret does not reach a log by way of its settings."""
    assert "hidden" not in repr(settings(environ={"FILESTORE_TOKEN": "hidden"}))


def test_only_the_option_opens_a_server_to_others() -> None:
    """The host is taken neither from a file nor from the environment."""
    assert setting_definitions()["host"].environment is None
    with pytest.raises(InvalidSetting):
        settings(file={"host": "0.0.0.0"})


@pytest.mark.parametrize("value", ["a=/opt/a/python, b=b/python", ["a=/opt/a/python", "b=b/python"]])
def test_environments_are_pythons_by_name(value: object) -> None:
    """An option or a line of the file for each, and commas in the variable. A path is made absolute."""
    expected = (("a", Path("/opt/a/python")), ("b", Path.cwd() / "b/python"))

    assert expected == settings(file={"environment": value}).environment
    assert expected == settings(options={"environment": expected}).environment


def test_every_setting_has_a_definition() -> None:
    """Each has a meaning, a unit, a default in words, and a variable of its own."""
    variables = [setting.environment for setting in setting_definitions().values() if setting.environment is not None]

    assert sorted(set(variables)) == sorted(variables)
    for name, setting in setting_definitions().items():
        assert setting.environment in {None, f"FILESTORE_{name.upper()}"}
        assert all([setting.meaning, setting.unit, setting.default])


@pytest.mark.parametrize(
    "name",
    [
        *("codec", "stall_seconds", "retry_seconds", "host", "port", "workers", "memory_limit", "drain_seconds"),
        *(f"zip_{limit.name}" for limit in fields(ZipLimits)),
    ],
)
def test_the_default_in_words_is_the_default(name: str) -> None:
    """The default in the documentation is the real one."""
    assert getattr(settings(), name) == setting_definitions()[name].parse(setting_definitions()[name].default)


def test_codec_choices() -> None:
    """Every codec can be chosen, and auto."""
    assert ("auto", *(codec.name.lower().replace("_", "+") for codec in Codec)) == CODEC_CHOICES


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (RemoteRepository.__init__, ["connections", "stall_seconds", "retry_seconds"]),
        (serve, ["workers", "spool_folder"]),
    ],
)
def test_the_library_has_the_same_defaults(function: object, names: list[str]) -> None:
    """A program without settings gets the same values as the command line."""
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]  # both are callable

    assert {name: getattr(settings(), name) for name in names} == {name: parameters[name].default for name in names}


def test_server_limits() -> None:
    """Every limit of a server is a setting, without which the library's own default holds."""
    assert settings().server_limits == DEFAULT_SERVER_LIMITS == inspect.signature(serve).parameters["limits"].default
    for number, limit in enumerate(fields(ServerLimits), start=1 << 24):
        value: object = number if limit.name.endswith("limit") else number - (1 << 24) + 1
        if limit.name == "gc_grace":
            value = float(number)
        if limit.name == "gc_hours":
            value = (22, 6)
        if limit.name == "public_url":
            value = "https://files.example.org"
        if limit.name == "presigned_reads":
            value = False
        if limit.name in {"trusted_proxies", "tls_by_proxy"}:
            value = (ip_network("10.0.0.0/8"), ip_network("::1"))
        options: dict[str, object] = {limit.name: value}
        assert settings(options=options).server_limits == replace(DEFAULT_SERVER_LIMITS, **options)  # type: ignore[arg-type]


def test_zip_limits() -> None:
    """Every limit of an archive is a setting, without which the library's own default holds."""
    assert settings().zip_limits == DEFAULT_LIMITS
    for number, limit in enumerate(fields(ZipLimits), start=1):
        file: dict[str, object] = {f"zip_{limit.name}": number}
        assert settings(file=file).zip_limits == replace(DEFAULT_LIMITS, **{limit.name: number})


@pytest.mark.parametrize("limit", [limit.name for limit in fields(ZipLimits)])
def test_an_archive_beyond_a_limit_names_the_setting_that_raises_it(limit: str) -> None:
    """The error names the setting, and its environment variable."""
    archive = forged([Forged("a/b/c.txt", bytes(3 << 20), deflated=True)])
    with pytest.raises(LimitExceeded) as caught:
        unpacked(archive, limits=replace(DEFAULT_LIMITS, **{limit: 1}))

    setting = f"zip_{limit}"
    assert setting == caught.value.setting
    told = f"raise the setting {setting}; {setting_definitions()[setting].environment} sets it"
    assert explained(caught.value).endswith(told)
