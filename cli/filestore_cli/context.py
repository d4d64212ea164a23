"""The code that all commands share: they get their settings here, and print their results."""

from __future__ import annotations

import functools
import json
import os
import stat
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click

from filestore.core.object_location import ObjectLocation, has_password, is_object_store
from filestore.errors import InvalidSetting, NotARepository
from filestore.repository.protocol import Repository
from filestore.system.rate_limit import RateLimit
from filestore_cli.parameters import SettingOption
from filestore_cli.plain_http import check_plain_http
from filestore_cli.sdk_server import SdkServer
from filestore_cli.settings import Folders, Settings, option_of, setting_definitions, settings_from, without_effect
from filestore_cli.start import TOKEN_SOURCE, output_failure, say
from filestore_cli.text import for_display, lines_for_display
from filestore_cli.token_files import token_source, warn_of_option, warn_of_password, with_token_of_file

Command: TypeAlias = Callable[..., None]
Result: TypeAlias = Mapping[str, object]
Place: TypeAlias = Path | ObjectLocation
"""Where a repository is that a command opens itself: a folder, or an object store and its index."""

_NOT_TAKEN = "the work is done, but its result cannot be written to standard output"
_CONFIG_FILE = "config.toml"
TRANSFER_SETTINGS = (
    "url",
    "token",
    "connections",
    "processes",
    "transfer_memory",
    "stall_seconds",
    "retry_seconds",
    "limit_rate",
)
"""The settings of the commands that push and fetch."""
_OTHER_OPTIONS = {"transfer_memory": ("--max-memory",)}
"""Further options of settings: names that other programs have for the same."""
PIPELINE = "pipeline"
"""The name of the console script that the Pipeline SDK has too."""


@dataclass(frozen=True, slots=True)
class CommandContext:
    """The settings of one command, and the way in which it prints its result."""

    settings: Settings
    json: bool
    quiet: bool
    default_root: Path | None
    """The default path of the local folder. None if the home folder is not known."""
    sdk_server: SdkServer | None = None
    """The server of the settings, if it is from the sources of the Pipeline SDK."""

    @property
    def shows_progress(self) -> bool:
        """Whether to show progress. With --json, only in a terminal: a program that reads JSON does not need it."""
        return not self.quiet and (not self.json or sys.stderr.isatty())

    @property
    def has_default_root(self) -> bool:
        """Whether the local folder is the default one, which the first start of a server makes."""
        return self.default_root is not None and self.settings.root.absolute() == self.default_root.absolute()

    @asynccontextmanager
    async def repository(self, *, read_only: bool = False, asks_peers: bool = True) -> AsyncIterator[Repository]:
        """Open the repository at the URL of the settings, or else the local folder. The end of the block closes it.

        A command that only reads gives `read_only`. A peer does not ask peers: they would wait for each other.
        """
        settings, objects = self.settings, self._objects_of_client
        if objects is None:
            check_plain_http(settings.url, settings)
        connecting = self.connecting(
            self._url if objects is None else objects.store,
            index=None if objects is None else objects.index,
            token=settings.token,
            read_only=read_only,
            peers=settings.peers if asks_peers else None,
        )
        async with AsyncExitStack() as stack:
            try:
                repository = await stack.enter_async_context(connecting)
            except NotARepository as error:
                raise self.advised(error) from None
            yield repository

    def connecting(
        self, url: str, *, index: str | None, token: str | None, read_only: bool, peers: str | None
    ) -> AbstractAsyncContextManager[Repository]:
        """Return the block that opens the repository at `url` with what the settings say about transfers."""
        from filestore.backends import connect  # heavy: aiohttp

        settings = self.settings
        return connect(
            url,
            index=index,
            token=token,
            connections=settings.connections,
            processes=settings.processes,
            transfer_memory=settings.transfer_memory,
            stall_seconds=settings.stall_seconds,
            retry_seconds=settings.retry_seconds,
            read_only=read_only,
            tls_client_cert=settings.tls_client_cert,
            tls_client_key=settings.tls_client_key,
            min_free=settings.min_free,
            presigned_reads=settings.presigned_reads,
            limit_rate=_shared_limit(settings.limit_rate),
            peers=peers,
        )

    async def create_repository(self, url: str | None = None, *, index: str | None = None) -> bool:
        """Make a repository in the folder or object store at `url`, or of the settings, and print a note.

        Return False if it was a repository already.
        """
        from filestore.backends import create_repository, repository_folder  # heavy

        if url is None:
            url, objects = self._url, self._objects_of_client
        else:
            objects = ObjectLocation.of(url, index) if is_object_store(url) else None
        place = objects or repository_folder(url)
        if place is None:
            raise click.ClickException(
                f"--create makes a repository in a folder of this machine, and {for_display(url)} is the URL of a server; "
                "leave --create out, or name a folder"
            )
        created = await create_repository(place)
        if created:
            self.note_created(place.absolute() if isinstance(place, Path) else place)
        return created

    def peers_result(self, repository: Repository) -> dict[str, int]:
        """Return what the result of a command says about peers: how many bytes came from them, if it asks some."""
        from filestore.repository.protocol import AsksPeers  # heavy

        return {"bytes_from_peers": repository.peers_size} if isinstance(repository, AsksPeers) else {}

    @property
    def is_local(self) -> bool:
        """Whether the command works on the repository itself, and not through a server."""
        from filestore.backends import repository_folder  # heavy

        return self._objects_of_client is not None or repository_folder(self._url) is not None

    @property
    def local_folder(self) -> Path | None:
        """The folder of this machine that the command works on. None for a server and an object store."""
        from filestore.backends import repository_folder  # heavy

        return None if self._objects_of_client is not None else repository_folder(self._url)

    @property
    def served(self) -> Place:
        """What `filestore serve` serves with the same settings."""
        return self.objects(unless=("root",)) or self.settings.root.absolute()

    def objects(self, *, unless: Collection[str] = ()) -> ObjectLocation | None:
        """Return the object store and the index that the settings name, or None.

        An option of `unless` names another repository, and beats the environment and the configuration file. Raises InvalidUrl,
        InvalidSetting, click.UsageError.
        """
        given, settings = click.get_current_context().params, self.settings
        others = [option_of(name) for name in unless if given.get(name) is not None]
        if given.get("store") is not None and others:
            raise click.UsageError(f"--store and {others[0]} name two repositories; give one of them")
        if "url" in unless and settings.url is not None and is_object_store(settings.url):
            return ObjectLocation.of(settings.url, settings.index)
        if settings.store is not None and not others:
            return ObjectLocation.of(settings.store, settings.index)
        if given.get("index") is not None:
            raise click.UsageError("--index is for a repository in an object store; name that by --store")
        if settings.index is not None and not others:
            # Without this, a folder of this machine would take what belongs into the repository of the index.
            raise InvalidSetting(
                "index", "it is for a repository in an object store, and no store is set; set FILESTORE_STORE too"
            )
        return None

    @property
    def _objects_of_client(self) -> ObjectLocation | None:
        """The object store of a command that a server answers too. A URL that is set somewhere comes before its environment."""
        url, is_given = self.settings.url, click.get_current_context().params.get("store") is not None
        if url is not None and not is_object_store(url) and not is_given:
            return None
        return self.objects(unless=("url", "root"))

    @property
    def _url(self) -> str:
        return self.settings.url or str(self.settings.root.absolute())

    def advised(self, error: NotARepository) -> NotARepository:
        """Return an error with advice, if no server and no folder was named and the local folder does not exist.

        Otherwise return `error` unchanged.
        """
        root = self.settings.root.absolute()
        if self.settings.url is not None or not self.has_default_root or error.folder != str(root) or root.exists():
            return error
        advice = (
            "`filestore serve` makes it at its first start, and `filestore push --create` at once; "
            "to use a server or another folder, name it by --url or FILESTORE_URL"
        )
        return NotARepository(error.folder, error.found, advice)

    def note_created(self, place: Place) -> None:
        """Print a note that a folder or an object store has become a repository."""
        self.note(f"A new repository was made in {for_display(place)}.")

    def place(self, repository: Repository) -> str:
        """Return words that name the repository. If it is the local folder by default, the words say this."""
        is_chosen = self.settings.url or self._objects_of_client is not None
        chosen = "" if is_chosen else " (local folder, because --url, FILESTORE_URL and the configuration file name no server)"
        return for_display(repository.location) + chosen

    def show(self, result: Result, *lines: str, otherwise: str = _NOT_TAKEN) -> None:
        """Print a result as one JSON object, or as `lines` for a person.

        If it cannot be printed, the error message begins with `otherwise`, which says what was done.
        """
        self.write(json.dumps(result) if self.json else "\n".join(map(for_display, lines)), otherwise=otherwise)

    def write(self, text: str, *, otherwise: str = _NOT_TAKEN) -> None:
        """Print a part of a result, and a line end. `otherwise` is as in `show`.

        Whatever is in it, it cannot control a terminal.
        """
        try:
            # `json.dumps` escapes everything but this character.
            click.echo(text.replace("\x7f", "\\u007f") if self.json else lines_for_display(text))
        except BrokenPipeError:
            # The program that read the output has ended. `Commands.invoke` exits without a message.
            raise
        except OSError as error:
            reason = output_failure(error)
            raise click.ClickException(f"{otherwise}: {reason}") from None

    def note(self, sentence: str) -> None:
        """Print a note for a person to standard error."""
        if not self.quiet and not self.json:
            say(sentence)


def creates(command: Command) -> Command:
    """Give a command the option --create."""
    about = "First make the folder a repository, if it is not one yet; it must be new or empty."
    decorated: Command = click.option("--create", is_flag=True, help=about)(command)
    return decorated


@functools.cache
def _shared_limit(bytes_per_second: int | None) -> RateLimit | None:
    """Return the limit that all repositories of a command share."""
    return None if bytes_per_second is None else RateLimit(bytes_per_second)


def takes(*names: str, in_pipeline: bool = False) -> Callable[[Command], Command]:
    """Give a command the options of these settings, --json and --quiet, and a CommandContext as its first argument.

    With `in_pipeline`, the console script `pipeline` also has the command, and it uses the server of the Pipeline SDK there.
    """
    # Every command that takes a token takes it from a file as well, and may be told to send it without TLS. What a command does
    # with a folder, it does with an object store.
    with_others = {"token": ("token", "token_file", "insecure"), ("url" if "url" in names else "root"): ("store", "index")}
    taken = tuple(each for name in names for each in dict.fromkeys((name, *with_others.get(name, ()))))

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(*, json: bool, quiet: bool, **arguments: Any) -> None:
            from filestore_cli.library_log import show_library_log  # `logging` takes 5 ms, which --help need not wait for

            show_library_log(is_quiet=quiet)
            options = {name: arguments.pop(name) for name in taken}
            if options.get("token") is not None:
                warn_of_option()
            if options.get("index") is not None and has_password(options["index"]):
                warn_of_password()
            command(command_context(options, json=json, quiet=quiet, in_pipeline=in_pipeline), **arguments)

        decorated: Command = click.option("--quiet", is_flag=True, help="Print no progress and no notes.")(call)
        decorated = click.option("--json", is_flag=True, help="Print one JSON object, and nothing else on standard output.")(
            decorated
        )
        for name in reversed(taken):
            decorated = _setting_option(name)(decorated)
        return decorated

    return decorate


def command_context(options: Mapping[str, object], *, json: bool, quiet: bool, in_pipeline: bool = False) -> CommandContext:
    """Return the context of a command that has these options of settings, with None for those that were not given.

    Raises InvalidSetting for a value from the environment or the configuration file.
    """
    folders = _folders()
    server = _sdk_server(options) if in_pipeline else None
    return CommandContext(_load(options, folders, server), json, quiet, folders.data, server)


def _setting_option(name: str) -> Callable[[Command], Command]:
    setting = setting_definitions()[name]
    environment = f"; {setting.environment}" if setting.environment else ""
    return click.option(
        option_of(name),
        *_OTHER_OPTIONS.get(name, ()),
        cls=SettingOption,
        setting_name=name,
        **({"is_flag": True, "flag_value": "yes", "default": None} if setting.is_flag else {"metavar": name.upper()}),
        multiple=setting.is_repeatable,
        help=f"{setting.meaning}.  [default: {setting.default}{environment}]",
    )


def _folders() -> Folders:
    import platformdirs  # 20 ms, which --help need not wait for

    if not os.environ.get("HOME"):
        # An empty HOME would mean the root folder. Without HOME, the system's list of users is used.
        os.environ.pop("HOME", None)
    return Folders(
        _known(platformdirs.user_data_path),
        _known(platformdirs.user_cache_path),
        _known(platformdirs.user_state_path),
    )


def is_pipeline() -> bool:
    """Return whether the running command is one of the console script `pipeline`."""
    return click.get_current_context().find_root().info_name == PIPELINE


def _sdk_server(options: Mapping[str, object]) -> SdkServer | None:
    """Return the server of the Pipeline SDK, if the console script `pipeline` runs and no option names another one."""
    if not is_pipeline() or options.get("url"):
        return None
    from filestore_cli.sdk_server import find_sdk_server  # heavy: YAML

    return find_sdk_server(os.environ)


def _load(options: Mapping[str, object], folders: Folders, server: SdkServer | None) -> Settings:
    """Load the settings. `server` takes the place of the URL and the token that are not options."""
    import platformdirs  # 20 ms, which --help need not wait for

    config = _known(platformdirs.user_config_path)
    path = None if config is None else config / _CONFIG_FILE
    for variable, reason in without_effect(os.environ).items():
        say(f"Warning: {for_display(variable)} has no effect: {reason}")
    file = {} if path is None else _read(path)
    environ: Mapping[str, str] = os.environ
    if server is not None:
        # A token of another server is not sent to this one.
        others = {"token", "token_file"}
        variables = {setting_definitions()[name].environment for name in others}
        environ = {name: value for name, value in environ.items() if name not in variables}
        file = {name: value for name, value in file.items() if name not in others}
    if "token" in options:
        source = token_source(options, environ, file, file_path=str(path))
        click.get_current_context().meta[TOKEN_SOURCE] = source or (server.source if server and server.token else None)
        options = with_token_of_file(options, environ, file, file_path=str(path))
    if server is not None:
        options = {**options, "url": server.url, "token": options.get("token") or server.token}
    used = set(options)
    if "url" in used and not (options["url"] or os.environ.get("FILESTORE_URL") or file.get("url")):
        used.add("root")
    if options.get("store") or os.environ.get("FILESTORE_STORE") or file.get("store"):
        used.discard("root")
    return settings_from(folders=folders, options=options, environ=environ, file=file, file_path=str(path), used=used)


def _known(find: Callable[[str], Path]) -> Path | None:
    """Return the folder. Return None if the home folder in which it would be is not known."""
    try:
        folder = find("filestore")
    except RuntimeError:
        return None
    # Older versions of platformdirs leave the ~ in it.
    return folder if folder.is_absolute() else None


def _read(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            # Some editors on Windows begin a text with a byte-order mark.
            text = opened.read().decode("utf-8-sig")
        values = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidSetting(str(path), error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise InvalidSetting(str(path), "it is not text in UTF-8; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(str(path), f"it is not valid TOML ({error})") from None
    except RecursionError:
        raise InvalidSetting(str(path), "it is not valid TOML for settings (its brackets are nested too deep)") from None
    if "token" in values and mode & (stat.S_IRGRP | stat.S_IROTH):
        say(f"Warning: other users of this machine can read the token in {for_display(path)}; run `chmod 600` on it.")
    return values
