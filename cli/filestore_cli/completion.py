"""The command completion, and what a shell asks when a user presses the TAB key.

click knows commands, options and the values of choices, and has the scripts for zsh and fish. A shell runs `filestore` with a
variable that names the shell; `register` is called only then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import (
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

from filestore_cli.main import COMPLETION_VARIABLE

SHELLS = ("bash", "zsh", "fish")
COUNT_LIMIT = 100
"""The most candidates that a shell gets."""
_PLAIN = frozenset("%+-./:=@_~,")
"""The characters, beside letters and digits, that mean nothing special to bash inside a word."""
_SPECIAL = {"": frozenset(), "'": frozenset("'"), '"': frozenset('"$`\\!')}
"""The characters that bash does not keep as they are between quotes. Not all of them can be escaped there."""

_REPLACED_BREAK = "@"
"""bash replaces this one of the characters that end a word, because it completes the names of machines after it."""

# In bash, a word ends at ':', '@' and '=', so that only the part behind them may be answered. The variable with these characters
# is therefore sent with the line.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            *) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@click.command(short_help="Print the script of a shell's completion.")
@click.argument("shell", type=click.Choice(SHELLS), metavar="bash|zsh|fish")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options, values, paths, and names of stored files with the TAB key.

    Names and ids are those of the repository that the command line, the environment or the configuration file names.

    For bash, write `source <(filestore completion bash)` into ~/.bashrc; for zsh, the same with zsh into ~/.zshrc, after
    compinit; for fish, write the script to ~/.config/fish/completions/filestore.fish.
    """
    register()
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  # each of the choices has one
    click.echo(kind(ctx.find_root().command, {}, "filestore", COMPLETION_VARIABLE).source(), nl=False)


def register() -> None:
    """Make click use the classes of this module."""
    for kind in (_Bash, _Zsh, _Fish):
        add_completion_class(kind)


class _Silent(ShellComplete):
    """Prints nothing but candidates: a message would stand in the middle of the line that the user is typing."""

    def complete(self) -> str:
        # Warnings and the messages of libraries go there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        return super().complete()

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        try:
            found = super().get_completions(args, incomplete)
        except Exception:  # noqa: BLE001  # no message may reach the user
            return []
        # Another person may have chosen a name, and the form of the answer is lines.
        return [item for item in found if str(item.value).isprintable()][:COUNT_LIMIT]


class _Bash(_Silent):
    name = "bash"
    source_template = _BASH
    _typed = None

    def get_completion_args(self) -> tuple[list[str], str]:
        self._typed = typed_in_bash(os.environ["COMP_LINE"], os.environ["COMP_BREAKS"])
        return list(self._typed.words[1:]), self._typed.last

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        special = _SPECIAL["" if self._typed is None else self._typed.quote]
        found = super().get_completions(args, incomplete)
        return [item for item in found if item.type != "plain" or special.isdisjoint(str(item.value))]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        if item.type != "plain" or self._typed is None:
            return f"{item.type},{item.value}"
        value = str(item.value)[self._typed.kept :]
        if not self._typed.quote:
            value = "".join(letter if letter.isalnum() or letter in _PLAIN else f"\\{letter}" for letter in value)
        return f"plain,{value}"


class _Zsh(_Silent, ZshComplete):
    pass


class _Fish(_Silent, FishComplete):
    pass


class TypedLine(NamedTuple):
    """A command line up to the cursor."""

    words: Sequence[str]
    """The words before the one at the cursor."""
    last: str
    """The word at the cursor, up to it. It may be empty."""
    kept: int
    """How many characters of that word are before the part that bash replaces."""
    quote: str
    """The kind of quotes that the cursor is between. Empty outside quotes."""


def typed_in_bash(line: str, breaks: str) -> TypedLine:
    """Separate a line into words as bash does. `breaks` are the characters at which a word ends for completion."""
    words: list[str] = []
    word, kept, quote, is_escaped = "", 0, "", False
    is_in_word = False
    for letter in line:
        if letter.isspace() and not quote and not is_escaped:
            if is_in_word:
                words.append(word)
            word, kept, is_in_word = "", 0, False
            continue
        is_in_word = True
        if is_escaped:
            word, is_escaped = word + letter, False
        elif letter == "\\" and quote != "'":
            is_escaped = True
        elif letter == quote:
            quote = ""
        elif letter in "'\"" and not quote:
            quote, kept = letter, len(word)
        else:
            word += letter
            if letter in breaks and not quote:
                kept = len(word) - (letter == _REPLACED_BREAK)
    return TypedLine(words, word, kept, quote)
