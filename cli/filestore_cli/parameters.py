"""The types of what a user gives on the command line."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import click

from filestore.errors import InvalidSetting
from filestore.system.files import EMPTY_PATH
from filestore_cli.settings import Setting, option_of, parse_age, parse_setting, parse_size, setting_definitions


class NonemptyPath(click.Path):
    """A path. An empty text is refused: it would mean the current folder, and comes from a variable that is not set."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as `click.Path` does. An empty text is wrong usage."""
        if value == "":
            self.fail(EMPTY_PATH, param, ctx)
        return super().convert(value, param, ctx)


STANDARD_INPUT = Path("/dev/stdin")
"""What a path means that is `-`."""


class PathOrInput(NonemptyPath):
    """A path, or `-` for standard input. `./-` is the path of a file that is called so."""

    def convert(self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as `NonemptyPath` does, and `-` to `STANDARD_INPUT`."""
        return STANDARD_INPUT if value == "-" else super().convert(value, param, ctx)


class Age(click.ParamType):  # type: ignore[type-arg]  # older versions of click have no argument
    """A time such as 24h or 7d."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_age(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Rate(click.ParamType):  # type: ignore[type-arg]  # as above
    """A number of bytes per second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value, minimum=1)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Count(click.IntRange):
    """A whole number from 1."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} cannot be used; a whole number from 1 is expected", param, ctx)


class SettingOption(click.Option):
    """The option of a setting. Its value is that of the setting, or None if it was not given."""

    def __init__(self, *arguments: Any, setting_name: str, **more: Any) -> None:
        self.setting_name = setting_name
        super().__init__(*arguments, callback=_parsed, **more)

    @property
    def setting(self) -> Setting:
        """The definition of the setting."""
        return setting_definitions()[self.setting_name]


def _parsed(ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...] | None) -> Any:
    # A bad value of an option is wrong usage. A bad value from the environment or the file is a failure.
    assert isinstance(param, SettingOption)  # noqa: S101  # it is the callback of this class only
    name = param.setting_name
    try:
        return None if not value and value != "" else parse_setting(name, value, source=option_of(name))
    except InvalidSetting as error:
        raise click.BadParameter(error.reason, ctx, param) from error
