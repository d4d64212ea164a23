"""The help of a command: its options in groups.

Each command and each group gets it from `with_help`, so the modules of the commands say nothing of it.
"""

from __future__ import annotations

import click

OPTIONS, REPOSITORY, TUNING = "Options", "Repository", "Tuning"
_REPOSITORY = frozenset({"url", "root", "store", "index", "token", "token_file", "insecure", "peers"})
"""The settings that say which repository a command works on, and who asks for it."""
_TUNED = frozenset({"codec", "presigned_reads", "push_cache"})
"""The settings without a number that change how fast a command is, or what it takes, and not what it does."""
_NUMBERS = ("bytes", "count", "days", "hours", "ratio", "seconds", "time")
"""What the unit of a setting begins with whose value is a number."""


class HelpContext(click.Context):
    """The context of a command whose help has its options in groups."""

    def get_help(self) -> str:
        formatter = self.make_formatter()
        self.command.format_usage(self, formatter)
        self.command.format_help_text(self, formatter)
        for title, options in grouped_options(self).items():
            with formatter.section(title):
                formatter.write_dl(options)
        if isinstance(self.command, click.Group):
            self.command.format_commands(self, formatter)
        return formatter.getvalue().rstrip("\n")


def with_help(command: click.Command) -> click.Command:
    """Return `command`, after it and all commands below it were given this help."""
    command.context_class = HelpContext
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        with_help(below)
    return command


def grouped_options(context: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return the options of a command as lines of its help, by the title of their group. No group is empty."""
    groups: dict[str, list[tuple[str, str]]] = {OPTIONS: [], REPOSITORY: [], TUNING: []}
    for parameter in context.command.get_params(context):
        line = parameter.get_help_record(context)
        # Newer versions of click have a line for an argument too, with nothing in it.
        if line is not None and isinstance(parameter, click.Option):
            groups[group_of(parameter)].append(line)
    return {title: lines for title, lines in groups.items() if lines}


def group_of(parameter: click.Parameter) -> str:
    """Return the title of the group of an option. Only options of settings are in another one than `OPTIONS`."""
    from filestore_cli.parameters import SettingOption  # heavy: the settings, which the help of all commands can do without

    if not isinstance(parameter, SettingOption):
        return OPTIONS
    name, unit = parameter.setting_name, parameter.setting.unit
    if name in _REPOSITORY:
        return REPOSITORY
    return TUNING if name in _TUNED or unit.startswith(_NUMBERS) else OPTIONS
