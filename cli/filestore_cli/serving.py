"""The command serve."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import click

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.scopes import Scope
from filestore.errors import FilestoreError, InvalidSetting
from filestore.http.limits import ServerLimits
from filestore.system.files import storage_errors
from filestore_cli.context import CommandContext, Place, creates, takes
from filestore_cli.folders import create_folder, with_index
from filestore_cli.plain_http import is_loopback
from filestore_cli.settings import UNKNOWN_FOLDER, Settings
from filestore_cli.start import run_to_end, say
from filestore_cli.text import for_display, table
from filestore_cli.token_files import warn_if_short
from filestore_cli.tokens import TokenProperties, add_token

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.core.digest import Digest
    from filestore.http.server.jwt_tokens import JwtOptions
    from filestore.http.server.request_logs import LogOptions
    from filestore.http.server.tls import TlsFiles
    from filestore.http.server.waiting import Waiting
    from filestore.repository.index.protocol import Index
    from filestore.repository.stores.protocol import ChunkStore

T = TypeVar("T")

TLS_SETTINGS = ("tls_cert", "tls_key", "tls_client_ca")
JWT_SETTINGS = ("jwt_keys", "jwt_issuer", "jwt_audience", "jwt_rules")
_UPSTREAM_LINE = "  # export HF_TOKEN=$HF_TOKEN~...  (with your token of the upstream, for what it does not show to everybody)"
UPSTREAM_SETTINGS = ("upstream", "upstream_max_age_seconds", "upstream_limit", "offline")
LOG_SETTINGS = ("access_log", "access_log_file", "audit_log", "audit_log_size")
SERVER_SETTINGS = (
    *("spool_folder", "min_free", *TLS_SETTINGS, *JWT_SETTINGS, *LOG_SETTINGS),
    *(limit.name for limit in fields(ServerLimits)),
)
"""The names of the settings that every server has, without its address."""
NOT_SERVED = "nothing is served, because the start cannot be reported on standard output"


@click.command(short_help="Serve a folder over HTTP.")
@creates
@takes("root", "host", "port", "workers", "index_connections", "token", *UPSTREAM_SETTINGS, *SERVER_SETTINGS)
def serve(context: CommandContext, *, create: bool) -> None:
    """Serve a folder over HTTP until Ctrl-C or SIGTERM stops it; then complete the current transfers.

    The first start makes the local folder and a token, and prints the token. With --token, that token is accepted until
    the server stops, and none is made. A folder that you name by --root becomes a repository only with --create.

    With --store and --index it serves a repository in an object store, beside any number of other servers. The folder of --root
    then has only what this server is receiving.
    """
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.backends import open_backend  # heavy
    from filestore.http.server import serve as serve_forever  # heavy

    settings = context.settings
    place = context.objects() or settings.root.absolute()
    spool_folder = _spool_folder(context, place)
    created, made = False, None
    given = {} if settings.token is None else {token_digest(settings.token): DEFAULT_NAMESPACE}

    def prepare(waiting: Waiting) -> None:
        nonlocal created, made
        is_first = settings.token is None
        created, made = open_served(context, place, create=create, given=given, with_token=is_first, waiting=waiting)
        if not context.json:
            # Printed before anything else can fail: a new token is not stored, and not shown again.
            words = table(**{_kind(place): folder_words(place, created=created)}, token=_token_words(settings.token, made, place))
            context.show({}, *words, otherwise=NOT_SERVED)

    check_listening(settings)
    _check_token(settings.token)
    warn_if_short(settings.token)

    def announce(url: str) -> None:
        context.show(
            {"url": url, "root": str(place), "token": made, "repository_created": created},
            f"URL     {url}",
            "",
            "To see what is stored, open the URL in a browser, and sign in with the token.",
            "",
            "To push a file, type in another terminal:",
            *client_lines(settings, url, variable="FILESTORE_URL", access_line=_token_line(settings.token, made, place)),
            "  filestore push model.safetensors",
            *hub_lines(settings, url, made),
            *([] if settings.upstream is None else [_UPSTREAM_LINE]),
            "",
            f"listening on {url}",
            otherwise=NOT_SERVED,
        )

    def opening() -> Awaitable[tuple[ChunkStore, Index]]:
        return open_backend(
            place,
            min_free=settings.min_free,
            scratch=spool_folder,
            index_connections=settings.index_connections,
            # A client that gets no answer for so long asks again, and would never learn what is wrong.
            store_retry_seconds=settings.stall_seconds / 2,
        )

    serve_forever(
        opening,
        # What is on other hosts may not be there yet, such as after a power cut.
        waits=not isinstance(place, Path),
        workers=settings.workers,
        tokens=given,
        announce=announce,
        announce_stop=stop_announcement(context),
        prepare=prepare,
        **_upstream_argument(settings, place),
        **server_arguments(settings, spool_folder),
    )


def _spool_folder(context: CommandContext, place: Place) -> Path:
    """Return where a server collects what it receives: on the disk of the repository, or in a folder that has nothing else."""
    settings = context.settings
    if isinstance(place, Path) or settings.root.absolute() not in {context.default_root, UNKNOWN_FOLDER}:
        return settings.spool_folder or settings.root.absolute()
    if context.default_root is None and settings.spool_folder is None:
        raise InvalidSetting("the default of root", "the home folder of this user is not known; set HOME, or give --root")
    import platformdirs  # heavy

    folder = settings.spool_folder or platformdirs.user_cache_path("filestore-server")
    with storage_errors(folder):
        folder.mkdir(0o700, parents=True, exist_ok=True)
    return folder


def _upstream_argument(settings: Settings, place: Place) -> dict[str, Any]:
    """Return the argument of a server that has an upstream, or none. Raises InvalidSetting."""
    if settings.upstream is None:
        if settings.offline:
            raise InvalidSetting("offline", "it is about the upstream of a server, which --upstream names")
        return {}
    if not isinstance(place, Path):
        raise InvalidSetting("upstream", "a server of an object store has none so far; let one of a folder have it")
    from filestore.upstream.extension import upstream_extension  # heavy
    from filestore.upstream.options import UpstreamOptions  # heavy

    options = UpstreamOptions(
        url=settings.upstream,
        max_age_seconds=settings.upstream_max_age_seconds,
        size_limit=settings.upstream_limit,
        is_offline=settings.offline,
        limits=settings.download_limits,
    )
    return {"extension": upstream_extension(place, options)}


def stop_announcement(context: CommandContext) -> Callable[[str], None]:
    """Return the function that says on standard output, for a person, how a server stops."""

    def announce_stop(sentence: str) -> None:
        if context.json:
            return  # the output is one object
        # Not through `sys.stdout`: what could not be written would fail again at the end.
        with suppress(OSError):
            os.write(1, f"{sentence}\n".encode())

    return announce_stop


def open_served(
    context: CommandContext,
    root: Place,
    *,
    create: bool,
    given: Mapping[Digest, str],
    with_token: bool = False,
    waiting: Waiting | None = None,
) -> tuple[bool, str | None]:
    """Make sure, in a child process, that `root`, a folder or an object store, is a repository.

    Return whether the repository was made now, and the token that was made, or None.

    The default folder is always made a repository, and any other folder only with `create`. A token is made only if
    `with_token` is true and the repository has no token yet. The tokens `given` for this run are noted in the index, so
    that they can be listed and removed. An object store and its index are waited for by `waiting`. Raises FilestoreError.
    """
    may_create = create or (isinstance(root, Path) and context.has_default_root)

    created = False

    async def opened() -> tuple[bool, str | None]:
        nonlocal created
        # Once made, it is new also if the next step fails and is tried again.
        created |= await create_folder(root) if may_create else False
        return created, await with_index(context, root, partial(_prepared, given=given, with_token=with_token))

    def prepared() -> tuple[bool, str | None]:
        if waiting is None or isinstance(root, Path):
            return run_to_end(opened())
        return run_to_end(waiting.once_there(opened, tell=lambda sentence: say(f"Warning: {sentence}.")))

    return in_child(prepared)


def folder_words(root: Place, *, created: bool) -> str:
    """Return the words for the folder or the object store in the output of a server's start."""
    return for_display(root) + (" (a new repository, made just now)" if created else "")


def server_arguments(settings: Settings, spool_folder: Path) -> dict[str, Any]:
    """Return the arguments of every server from the settings."""
    return {
        "logs": log_options(settings, audit_log=settings.audit_log),
        "host": settings.host,
        "port": settings.port,
        "limits": settings.server_limits,
        # The default is on the disk of the repository, since a temporary folder may be small, or in memory.
        "spool_folder": settings.spool_folder or spool_folder,
        "tls": tls_files(settings),
        "jwt": _jwt_options(settings),
    }


def log_options(settings: Settings, *, audit_log: Path | None) -> LogOptions:
    """Return which logs of requests are written. Warn if the settings contradict each other."""
    from filestore.http.server.request_logs import OFF, LogOptions  # heavy

    if settings.access_log_file is not None and settings.access_log == OFF:
        say("Warning: nothing is written to access_log_file, because access_log is off; set it to json or plain.")
    return LogOptions(
        access_log=settings.access_log,
        access_log_file=_absolute(settings.access_log_file),
        audit_log=_absolute(audit_log),
        audit_log_size=settings.audit_log_size,
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _jwt_options(settings: Settings) -> JwtOptions | None:
    """Return which JSON Web Tokens a server accepts. Raises InvalidSetting if settings for them are incomplete."""
    needed = {name: getattr(settings, name) for name in JWT_SETTINGS[:3]}
    if not any(getattr(settings, name) for name in JWT_SETTINGS):
        return None
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        # Without an audience, the tokens that the same issuer made for other servers would be accepted.
        raise InvalidSetting("the setting of JSON Web Tokens", f"{' and '.join(missing)} must be given too")
    from filestore.http.server.jwt_tokens import JwtOptions  # heavy

    return JwtOptions(
        keys=needed["jwt_keys"],
        issuer=needed["jwt_issuer"],
        audience=needed["jwt_audience"],
        rules=settings.jwt_rules,
        namespace_claim=settings.jwt_namespace_claim,
        scope_claim=settings.jwt_scope_claim,
        prefix_claim=settings.jwt_prefix_claim,
    )


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the files of the server's certificate, or None if it speaks plain HTTP. Raises click.ClickException."""
    if settings.tls_cert is None:
        for name in TLS_SETTINGS:
            if getattr(settings, name) is not None:
                raise click.ClickException(f"the setting {name} needs a certificate; name its file by --tls-cert")
        return None
    if settings.tls_by_proxy:
        raise click.ClickException(
            "the settings tls_cert and tls_by_proxy exclude each other: either the server speaks TLS or the proxy does; give one"
        )
    from filestore.http.server.tls import TlsFiles  # heavy

    cert, key, authority = (None if path is None else path.absolute() for path in map(partial(getattr, settings), TLS_SETTINGS))
    assert cert is not None  # noqa: S101  # checked above
    return TlsFiles(cert=cert, key=key, client_ca=authority)


def client_lines(settings: Settings, url: str, *, variable: str, access_line: str) -> list[str]:
    """Return what a client of a server types first: its URL, its token, and whom to trust if the certificate signs itself."""
    names: tuple[str, ...] = ()
    trust = []
    files = tls_files(settings)
    if files is not None:
        from filestore.http.server.tls import load  # heavy

        certificate = load(files)
        names = certificate.names
        if certificate.is_self_signed:
            trust = [f"  export SSL_CERT_FILE={shlex.quote(str(files.cert))}  # a copy of it on each client: it signs itself"]
    return [f"  export {variable}={settings.public_url or reachable(url, names)}", f"  {access_line}", *trust]


def hub_lines(settings: Settings, url: str, token: str | None) -> list[str]:
    """Return what a user of the tools of the Hugging Face Hub types first. `token` is None if it is not shown."""
    access = "# export HF_TOKEN=...  (the same token)" if token is None else f"export HF_TOKEN={token}"
    # Whom to trust was said before, for all clients.
    endpoint, access, *_ = client_lines(settings, url, variable="HF_ENDPOINT", access_line=access)
    return ["", "For the tools of the Hugging Face Hub:", endpoint, access, "  export HF_HUB_DISABLE_XET=1"]


def check_listening(settings: Settings, *, on: str | None = None) -> None:
    """Refuse to speak plain HTTP with other machines, unless the user permits it. Then only warn.

    `on` is the address to listen on, if that is not the setting `host`. No proxy can be before such an address.

    Raises click.ClickException.
    """
    is_behind_proxy = bool(settings.tls_by_proxy) and on is None
    if tls_files(settings) is not None or is_behind_proxy or is_loopback(on or settings.host):
        return
    host = for_display(on or settings.host)
    if not settings.insecure:
        raise click.ClickException(
            f"{host} can be reached from other machines, and traffic would not be encrypted: "
            "others on the network could read the tokens and the files; give a certificate by --tls-cert and --tls-key"
            f"{'' if on else ', or the address of a proxy that speaks TLS by --tls-by-proxy'}; "
            "in a network that you trust, --insecure permits it"
        )
    say(
        f"Warning: {host} can be reached from other machines, and traffic is not encrypted: "
        "others on the network can read the tokens and the files; --insecure permits it."
    )


def in_child(function: Callable[[], T]) -> T:
    """Run `function` in a child process. Return what it returns, and raise what it raises.

    The server forks its workers. Threads and open databases of this process would not work in them.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(function, sender))
    child.start()
    sender.close()
    try:
        succeeded, result = receiver.recv()
    except KeyboardInterrupt:
        # Only this process may have got the signal.
        child.terminate()
        raise
    except EOFError:
        raise click.ClickException("the process that opens the folder died; look for the reason in the system's log") from None
    finally:
        receiver.close()
        child.join()
    if not succeeded:
        raise result
    return result  # type: ignore[no-any-return]  # what came through the pipe is what `function` returned


def _answer(function: Callable[[], object], sender: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer: tuple[bool, object] = (True, function())
    except KeyboardInterrupt:
        return  # the same key interrupted the parent, which reports it
    except Exception as error:  # noqa: BLE001  # raised again in the parent
        answer = (False, error)
    sender.send(answer)


def _end_with_parent() -> None:
    """End this process when its parent is killed. It may wait for long, and has the address of the server open."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


async def _prepared(index: Index, *, given: Mapping[Digest, str], with_token: bool) -> str | None:
    """Note the given tokens. Return the first token of the repository if it is wanted and made now."""
    if given:
        await _note_given(index, given)
    return await _first_token(index) if with_token else None


def _check_token(token: str | None) -> None:
    """Refuse a token whose end would be taken for a token of the upstream. Raises InvalidSetting."""
    from filestore.http.server.auth import split_token  # heavy

    if token is not None and split_token(token)[1] is not None:
        raise InvalidSetting(
            "the token of this server",
            "it ends as a token of an upstream does that follows one (~hf_...); give another one, "
            "such as the output of `openssl rand -hex 32`",
        )


async def _note_given(index: Index, given: Mapping[Digest, str]) -> None:
    from filestore.repository.given_tokens import note_given  # heavy

    try:
        removed = await note_given(index, given)
    except FilestoreError as error:
        # A full disk must not keep a server from its start.
        say(f"Warning: `filestore token` can neither list nor remove the token of this server: {for_display(str(error))}.")
        return
    if removed:
        raise InvalidSetting(
            "the token of this server",
            "it was removed by `filestore token rm`, and no server takes it again; give another one, "
            "such as the output of `openssl rand -hex 32`",
        )


async def _first_token(index: Index) -> str | None:
    from filestore.repository.links import without_links  # heavy

    if await without_links(index, await index.tokens()):
        return None
    # The person who starts a server may do everything with it.
    return await add_token(index, TokenProperties(DEFAULT_NAMESPACE, "first token", Scope.ADMIN))


def _token_words(given: str | None, made: str | None, place: Place) -> str:
    if made is not None:
        return f"{made}  (shown only this once, because only its digest is stored)"
    if given is not None:
        return f"the one that you gave, which is not shown; the tokens of the {_kind(place)} work as well"
    return f"printed when it was made; `filestore token new{_options(place)}` makes another"


def _kind(place: Place) -> str:
    return "folder" if isinstance(place, Path) else "repository"


def _options(place: Place) -> str:
    """Return the options that name a folder. An object store is better named by the environment, as its password is."""
    return f" --root {shlex.quote(for_display(place))}" if isinstance(place, Path) else ""


def _token_line(given: str | None, made: str | None, place: Place) -> str:
    if made is not None:
        return f"export FILESTORE_TOKEN={made}"
    if given is not None:
        return "# export FILESTORE_TOKEN=...  (the token that this server was given)"
    another = f"`filestore token new{_options(place)}` makes another one"
    return f"# export FILESTORE_TOKEN=...  (a token of the {_kind(place)}, printed when it was made; {another})"


def reachable(url: str, names: Sequence[str] = ()) -> str:
    """Return a URL that another machine can use.

    An address that means all interfaces is replaced, since it is not a destination. Of the `names` of a certificate one
    is taken if the name of this machine is not among them: clients accept no other one.
    """
    parts = urlsplit(url)
    if parts.hostname not in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        return url
    host = socket.gethostname()
    if host not in names and f"*.{host.partition('.')[2]}" not in names:
        host = next((name for name in names if "*" not in name and ":" not in name), host)
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}"))
