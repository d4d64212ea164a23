"""The server that the Pipeline SDK uses, for `pipeline create file`: the order of its sources is that of the SDK.

`pipeline cluster login` stores servers in `config.yaml` in the folder PIPELINE_DIR. Version 1 of the SDK marks the active
one in its entry. Version 2 has the alias of the active one in `active_remote`; without that, it uses the first entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filestore.errors import InvalidSetting
from filestore.system.files import home_path
from filestore_cli.settings import parse_setting
from filestore_cli.text import for_display

_FOLDER, _URL, _TOKEN = "PIPELINE_DIR", "PIPELINE_API_URL", "PIPELINE_API_TOKEN"


class SdkServer(NamedTuple):
    """A server, with the token that belongs to it. The token is never sent to another server."""

    url: str
    token: str | None
    source: str
    """Words that say where its URL is from."""


def find_sdk_server(environ: Mapping[str, str]) -> SdkServer | None:
    """Return the active server of `pipeline cluster login`, or else that of PIPELINE_API_URL, or None.

    Raises InvalidSetting.
    """
    return _stored_server(environ) or _server_of_variables(environ)


def _server_of_variables(environ: Mapping[str, str]) -> SdkServer | None:
    url = environ.get(_URL)
    if not url:
        return None
    token = environ.get(_TOKEN)
    return SdkServer(_checked_url(url, source=_URL), _checked_token(token, source=_TOKEN) if token else None, _URL)


def _stored_server(environ: Mapping[str, str]) -> SdkServer | None:
    # The SDK takes the variable as it is, without a meaning of `~`.
    folder = environ.get(_FOLDER)
    path = (Path(folder) if folder else home_path("~/.pipeline")) / "config.yaml"
    entry = _active_entry(_read(path), path)
    if entry is None:
        return None
    alias, url, token = (entry.get(name) for name in ("alias", "url", "token"))
    where = f"the server {str(alias)!r} in {path}"
    return SdkServer(
        _checked_url(url, source=f"the URL of {where}"),
        # YAML reads a token of digits as a number.
        None if token is None else _checked_token(str(token), source=f"the token of {where}"),
        f"the server {for_display(str(alias))} of `pipeline cluster login`",
    )


def _checked_url(url: object, *, source: str) -> str:
    # A path would be a local folder.
    if not isinstance(url, str) or not url.lower().startswith(("http://", "https://")):
        raise InvalidSetting(source, "it does not begin with http:// or https://; give the URL of a server")
    return url.rstrip("/")


def _checked_token(token: str, *, source: str) -> str:
    checked: str = parse_setting("token", token, source=source)
    return checked


def _read(path: Path) -> Mapping[str, Any]:
    """Return the content of the SDK's configuration file; an empty mapping if it does not exist. Raises InvalidSetting."""
    import yaml

    try:
        values = yaml.safe_load(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InvalidSetting(str(path), error.strerror or str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _invalid(path, "it is not valid YAML") from None
    if not isinstance(values, dict):
        # The SDK refuses an empty file too. To ignore it could mean to store the file on another server.
        raise _invalid(path, "it is empty" if values is None else "it is not a mapping")
    return values


def _active_entry(values: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    entries = values.get("remotes") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _invalid(path, "its remotes are not a list of mappings")
    active = values.get("active_remote")
    if active is not None:
        return next((entry for entry in entries if str(entry.get("alias")) == str(active)), None)
    if any("active" in entry for entry in entries):
        return next((entry for entry in entries if entry.get("active")), None)
    return entries[0] if entries else None


def _invalid(path: Path, reason: str) -> InvalidSetting:
    return InvalidSetting(str(path), f"{reason}; remove the file and run `pipeline cluster login` again")
