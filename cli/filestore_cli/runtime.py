"""The command runtime serve. It starts a server that also runs the pipelines that are uploaded to it."""

from __future__ import annotations

import os

import click

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.system.machine import core_count, memory_size
from filestore_cli.context import CommandContext, creates, takes
from filestore_cli.folders import refuse_objects
from filestore_cli.serving import (
    NOT_SERVED,
    SERVER_SETTINGS,
    check_listening,
    client_lines,
    folder_words,
    hub_lines,
    open_served,
    server_arguments,
    stop_announcement,
)
from filestore_cli.token_files import warn_if_short


@click.group(short_help="Run pipelines of the Pipeline SDK.")
def runtime() -> None:
    """Run pipelines of the Pipeline SDK."""


@runtime.command("serve", short_help="Serve a folder and run its pipelines.")
@creates
@takes(
    "root",
    "cache",
    "cache_size_limit",
    "cache_min_free",
    "host",
    "port",
    "token",
    "run_seconds",
    "run_memory_limit",
    "loaded_pipelines",
    "processes_per_pipeline",
    "environment",
    "run_results_seconds",
    "run_files_seconds",
    "public_run_files",
    *SERVER_SETTINGS,
)
def serve_runtime(context: CommandContext, *, create: bool) -> None:
    """Serve a folder, and run the pipelines that are uploaded to it, until Ctrl-C or SIGTERM stops it.

    A pipeline is a program of the person who uploads it. It runs with your rights: it can read and write everything
    that you can. So this command starts only with a token that you give it, and accepts no other.
    """
    from filestore.system.own_process import keep_heap  # heavy

    # Not `tune_process`: the processes of pipelines inherit the environment, and may need the threads of numpy.
    keep_heap()
    settings = context.settings
    refuse_objects(context.objects(unless=("root",)), "runtime serve")
    if settings.token is None:
        raise click.ClickException(
            "everyone who has the token of a runtime can run code on it, so it does not make one; "
            "give one by FILESTORE_TOKEN, such as the output of `openssl rand -hex 32`"
        )
    check_listening(settings)
    from filestore.backends import open_backend  # heavy
    from filestore.cache import Cache  # heavy
    from filestore.http.server import serve as serve_forever  # heavy
    from filestore.repository.stores.disk_space import kept_free  # heavy
    from filestore.runtime.environments import find_environments  # heavy
    from filestore.runtime.process import ProcessLimits  # heavy
    from filestore.runtime.routes import runtime_extension  # heavy
    from filestore.runtime.server import RuntimeLimits  # heavy

    # A pipeline must not get our secrets.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FILESTORE_", "PIPELINE_API_"))}
    environments = find_environments(dict(settings.environment), environ=environ)
    root = settings.root.absolute()
    created = False
    given = {token_digest(settings.token): DEFAULT_NAMESPACE}

    def prepare(_: object) -> None:
        nonlocal created
        created, _ = open_served(context, root, create=create, given=given)

    warn_if_short(settings.token)

    def announce(url: str) -> None:
        context.show(
            {"url": url, "root": str(root), "repository_created": created},
            f"folder  {folder_words(root, created=created)}",
            f"URL     {url}",
            "",
            "To run a pipeline, type in another terminal:",
            *client_lines(
                settings,
                url,
                variable="PIPELINE_API_URL",
                access_line="export PIPELINE_API_TOKEN=...  # the token that this runtime was given",
            ),
            *hub_lines(settings, url, None),
            "",
            f"listening on {url}",
            otherwise=NOT_SERVED,
        )

    limits = ProcessLimits(seconds=settings.run_seconds, memory=settings.run_memory_limit)
    serve_forever(
        lambda: open_backend(root, min_free=settings.min_free),
        # The runs and the processes of pipelines belong to one process.
        workers=1,
        tokens=given,
        # The tokens of the folder were made to read and store files, and not to run code.
        knows_tokens=False,
        announce=announce,
        announce_stop=stop_announcement(context),
        prepare=prepare,
        extension=runtime_extension(
            root,
            lambda repository: Cache(
                settings.cache.absolute(),
                repository,
                limits=settings.zip_limits,
                downloads=settings.download_limits,
                size_limit=settings.cache_size_limit,
                # A peer fills the cache by the URLs that its runs name.
                min_free=max(settings.cache_min_free, kept_free(root, settings.min_free)),
            ),
            environ=environ,
            environments=environments,
            limits=RuntimeLimits(
                pipelines=settings.loaded_pipelines,
                process=limits,
                processes_per_pipeline=settings.processes_per_pipeline
                or max(1, min(core_count(), memory_size() // settings.run_memory_limit)),
                run_kept_seconds=settings.run_results_seconds,
                output_seconds=settings.run_files_seconds,
                public_outputs=settings.public_run_files,
                public_url=settings.public_url,
            ),
            signed_seconds=settings.signed_seconds,
        ),
        **server_arguments(settings, root),
    )
