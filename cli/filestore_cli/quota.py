"""The commands for the quotas of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from filestore.core.names import DEFAULT_NAMESPACE, checked_namespace
from filestore.core.quotas import EVERYBODY, KEPT, LEAST_RATE, LIMIT, NO_QUOTA, Quota
from filestore_cli.auditing import audit
from filestore_cli.context import CommandContext, takes
from filestore_cli.folders import maintained_place, with_index
from filestore_cli.settings import parse_size
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display, in_units
from filestore_cli.tokens import all_tokens

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from filestore.core.digest import Digest
    from filestore.repository.index.protocol import Index, NamespaceUsage, QuotaRow

    F = TypeVar("F", bound=Callable[..., Any])

_NONE = "none"
_WORDS = {
    "stored_size": "stored",
    "size": "size",
    "name_count": "names",
    "uploads": "uploads",
    "connections": "connections",
    "requests_per_second": "requests",
    "bytes_per_second": "bandwidth",
}
"""The option for each limit. The lists name it so too."""
_EVERYBODY = "every other namespace"


class _Limit(click.ParamType):  # type: ignore[type-arg]  # older versions of click have no argument
    """A limit: a number of something or of bytes, perhaps followed by /s. The word none removes it."""

    def __init__(self, *, is_size: bool = False, is_rate: bool = False, least: int = 1) -> None:
        self.name = ("size" if is_size else "count") + ("/s" if is_rate else "")
        self._is_size = is_size
        self._is_rate = is_rate
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == _NONE or isinstance(value, int):
            return value
        text = value.removesuffix("/s").strip() if self._is_rate else value
        try:
            number = parse_size(text, minimum=self._least) if self._is_size else int(text)
        except ValueError as error:
            self.fail(str(error) if self._is_size else f"{value!r} is not a whole number, and not the word {_NONE}", param, ctx)
        if not self._least <= number <= LIMIT:
            self.fail(f"{value!r} cannot be used; the least limit here is {self._least}", param, ctx)
        return number


@click.group(short_help="Set, list and remove quotas.")
def quota() -> None:
    """Set, list and remove the limits of namespaces and tokens. Servers obey a change within about a second."""


def _of_one(function: F) -> F:
    """Add the options that say whose quota it is."""
    for option in (
        click.option("--everybody", is_flag=True, help="The quota of each namespace that has none of its own."),
        click.option("--token", "which", metavar="DIGEST", help="The token, by the first 8 or more digits of its digest."),
        click.option("--namespace", help=f"The namespace. The default is {DEFAULT_NAMESPACE}."),
    ):
        function = option(function)
    return function


@quota.command("set", short_help="Set limits.")
@_of_one
@click.option("--stored", type=_Limit(is_size=True), metavar="SIZE", help="Stored bytes, each content once, such as 500GB.")
@click.option("--size", type=_Limit(is_size=True), metavar="SIZE", help="Bytes of all files and their versions, such as 2TB.")
@click.option("--names", type=_Limit(), metavar="COUNT", help="Different names of files.")
@click.option("--uploads", type=_Limit(), metavar="COUNT", help="Uploads in parts in progress.")
@click.option("--connections", type=_Limit(), metavar="COUNT", help="Connections at the same time.")
@click.option("--requests", type=_Limit(is_rate=True), metavar="COUNT", help="Requests a second, such as 100/s.")
@click.option(
    "--bandwidth",
    type=_Limit(is_size=True, is_rate=True, least=LEAST_RATE),
    metavar="SIZE",
    help="Bytes of bodies a second, such as 200MB/s.",
)
@takes("url", "root")
def set_quota(
    context: CommandContext, namespace: str | None, which: str | None, *, everybody: bool, **given: int | str | None
) -> None:
    """Set limits of a namespace or of a token. Limits that are not given stay. The word none removes a limit.

    A token has only the limits --connections, --requests and --bandwidth: what is stored belongs to its namespace.
    """
    changes: dict[str, int | None] = {}
    for limit, option in _WORDS.items():
        value = given[option]
        if value is not None:
            changes[limit] = None if isinstance(value, str) else value
    if not changes:
        raise click.UsageError("give at least one limit, such as --stored 500GB")
    if which is not None and (refused := [f"--{_WORDS[limit]}" for limit in changes if limit in KEPT]):
        raise click.UsageError(f"a token has no limit {', '.join(refused)}: what is stored belongs to its namespace")
    folder = maintained_place(context, "quota set")
    row = run_to_end(
        with_index(
            context, folder, lambda index: _change(index, (namespace, which, everybody), lambda old: old._replace(**changes))
        )
    )
    audit(context.settings, "quota-set", _result(row, {}))
    context.show({**_result(row, {}), "root": str(folder)}, _title(row), *_lines(row.quota, {}))


@quota.command("rm", short_help="Remove a quota.")
@_of_one
@takes("url", "root")
def remove_quota(context: CommandContext, namespace: str | None, which: str | None, *, everybody: bool) -> None:
    """Remove all limits of a namespace or of a token."""
    folder = maintained_place(context, "quota rm")
    row = run_to_end(with_index(context, folder, lambda index: _change(index, (namespace, which, everybody), lambda _: NO_QUOTA)))
    audit(context.settings, "quota-rm", _result(row, {}))
    context.show({**_result(row, {}), "root": str(folder)}, f"{_title(row)} has no quota of its own")


@quota.command("ls", short_help="List quotas, and what is used.")
@takes("url", "root")
def list_quotas(context: CommandContext) -> None:
    """List the limits of namespaces and tokens, and what namespaces use of them. Namespaces without limits are listed too."""
    folder = maintained_place(context, "quota ls")
    rows, usages = run_to_end(with_index(context, folder, _list, read_only=True))
    lines = []
    for row in rows:
        lines += [_title(row), *_lines(row.quota, {} if row.token else usages.get(row.namespace, {}))]
    context.show(
        {
            "quotas": [_result(row, {} if row.token else usages.get(row.namespace, {})) for row in rows],
            "root": str(folder),
        },
        *lines,
        f"in {for_display(folder)}",
    )


async def _list(index: Index) -> tuple[list[QuotaRow], dict[str, dict[str, int]]]:
    """Return all quotas, with one for each namespace, and what each namespace uses."""
    from filestore.repository.index.protocol import QuotaRow  # heavy

    rows = await index.quotas()
    quotas = {row.namespace: row.quota for row in rows if row.token is None}
    usages = {namespace: _used(await index.usage(namespace)) for namespace in await index.namespaces()}
    others = quotas.get(EVERYBODY, NO_QUOTA)
    rows += [QuotaRow(namespace, None, others) for namespace in usages if namespace not in quotas]
    return sorted(rows, key=lambda row: (row.namespace, row.token or b"")), usages


async def _change(index: Index, whose: tuple[str | None, str | None, bool], change: Callable[[Quota], Quota]) -> QuotaRow:
    from filestore.repository.index.protocol import QuotaRow  # heavy

    namespace, token = await _whose(index, *whose)
    async with index.transaction() as transaction:
        found = [row.quota for row in await index.quotas() if (row.namespace, row.token) == (namespace, token)]
        changed = change(found[0] if found else NO_QUOTA)
        await transaction.set_quota(namespace, changed, token=token)
    return QuotaRow(namespace, token, changed)


async def _whose(index: Index, namespace: str | None, which: str | None, is_everybody: bool) -> tuple[str, Digest | None]:  # noqa: FBT001  # of one tuple
    if (namespace is not None) + (which is not None) + is_everybody > 1:
        raise click.UsageError("give one of --namespace, --token and --everybody")
    if is_everybody:
        return EVERYBODY, None
    if which is None:
        return checked_namespace(DEFAULT_NAMESPACE if namespace is None else namespace), None
    found = [row for row in await all_tokens(index) if len(which) >= 8 and str(row.digest).startswith(which)]
    if len(found) != 1:
        raise click.ClickException(
            f"{len(found)} tokens match; `filestore token ls` lists them, and 8 or more digits of the digest of one are needed"
        )
    return found[0].namespace, found[0].digest


def _title(row: QuotaRow) -> str:
    from filestore.repository.index.protocol import TOKEN_ID_LENGTH  # heavy

    return f"token {str(row.token)[:TOKEN_ID_LENGTH]} of {row.namespace}" if row.token else row.namespace or _EVERYBODY


def _lines(quota: Quota, used: dict[str, int]) -> list[str]:
    return quota_lines(quota, used, indent="  ") or ["  no limits"]


def _used(usage: NamespaceUsage) -> dict[str, int]:
    return {"stored_size": usage.whole_stored_size, "size": usage.size, "name_count": usage.name_count}


def _result(row: QuotaRow, used: dict[str, int]) -> dict[str, object]:
    return {
        "namespace": row.namespace or None,
        "token": str(row.token) if row.token else None,
        "limits": row.quota._asdict(),
        "used": used or None,
    }


def quota_lines(quota: Quota, used: Mapping[str, int], *, indent: str = "") -> list[str]:
    """Return a line for each limit, with what is used of it if that is known."""
    lines = []
    for limit, option in _WORDS.items():
        number, is_size = getattr(quota, limit), limit in {"stored_size", "size", "bytes_per_second"}
        shown = [in_units(each) if is_size else str(each) for each in (used.get(limit, 0), number or 0)]
        if number is not None and limit in used:
            words = f"{shown[0]} of {shown[1]} ({100 * used[limit] // number} %)"
        elif number is not None:
            words = shown[1] + (" a second" if limit.endswith("_per_second") else "")
        elif limit in used:
            words = f"{shown[0]}, no limit"
        else:
            continue
        lines.append(f"{indent}{option:<11}  {words}")
    return lines
