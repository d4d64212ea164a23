"""Commands that take several arguments: what fails for one of them does not stop the others."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from filestore.errors import FilestoreError, Interrupted, ScopeMissing, Stalled, Unauthorized, Unreachable
from filestore_cli.context import CommandContext, Result
from filestore_cli.hints import explained
from filestore_cli.start import say, sentence
from filestore_cli.text import for_display, table

T = TypeVar("T")

_NOT_TRIED = "it was not tried"


class Failure(NamedTuple):
    """Why one of several arguments could not be handled."""

    given: str
    """The argument."""
    error: str
    """The message for the user."""
    slug: str | None
    """What names the error for a program. None if it did not come from the library."""


class Failures:
    """The failures of a command with several arguments. Each is one line on standard error."""

    def __init__(self, tell: Callable[[str], None] = say) -> None:
        """`tell` prints a line."""
        self.found: list[Failure] = []
        self.tell = tell
        self._has_ended = False

    @classmethod
    def raised(cls) -> Failures:
        """Return what notes nothing: a command with one argument ends with its failure."""
        return _Raised()

    def each(self, items: Iterable[T], name_of: Callable[[T], str]) -> Iterator[T]:
        """Yield the items, until the server cannot be used any more. Those that are left then fail too, which is one line."""
        left: list[str] = []
        for item in items:
            if self._has_ended:
                left.append(name_of(item))
            else:
                yield item
        self.found += [Failure(given, _NOT_TRIED, None) for given in left]
        if len(left) == 1:
            self.tell(f"Error: {left[0]}: {_NOT_TRIED}")
        elif left:
            self.tell(f"Error: {left[0]} and {len(left) - 1:,} more were not tried")

    @contextmanager
    def of(self, given: str) -> Iterator[None]:
        """Note what goes wrong in the block as the failure of this argument."""
        try:
            yield
        except FilestoreError as error:
            # The next argument would wait for the same server again.
            self._has_ended |= isinstance(error, Unreachable | Interrupted | Stalled | Unauthorized | ScopeMissing)
            self._note(given, explained(error), error.slug)
        except click.UsageError:
            raise
        except click.ClickException as error:
            # It may explain an error of the library to a person.
            cause = error.__cause__
            self._note(given, error.message, cause.slug if isinstance(cause, FilestoreError) else None)
        except BrokenPipeError:
            raise
        except OSError as error:
            self._note(given, sentence(error), None)

    def _note(self, given: str, error: str, slug: str | None) -> None:
        self.found.append(Failure(given, error, slug))
        self.tell(f"Error: {error if given in error else f'{given}: {error}'}")

    def as_json(self, argument: str) -> list[dict[str, object]]:
        """Return the failures as JSON. `argument` is the name of the member that has the argument."""
        return [{argument: failure.given, "error": failure.error, "slug": failure.slug} for failure in self.found]

    def exit(self) -> None:
        """End the command with the exit status of a failure, if there is one."""
        if self.found:
            click.get_current_context().exit(1)


class _Raised(Failures):
    @contextmanager
    def of(self, given: str) -> Iterator[None]:  # noqa: ARG002  # nothing is noted
        yield


def show_blocks(
    context: CommandContext, results: Result, blocks: Sequence[Sequence[str]], *, place: str, failures: Failures, **more: str
) -> None:
    """Print the results of several arguments, a block of lines for each, and end the command if one of them failed.

    `place` has words that name the repository. `more` is as in `CommandContext.show`.
    """
    lines = [line for block in blocks for line in (*block, "")]
    if context.json or lines:
        context.show(results, *lines, *table(repository=place), **more)
    failures.exit()


def expand_patterns(paths: Sequence[Path]) -> tuple[list[Path], bool]:
    """Replace each path that is a pattern, such as 'ckpt-*', by the files and folders that match it, in the order of their names.

    A path that exists is not a pattern. Return the paths, and whether the user may have meant several. Raises ClickException
    for a pattern that nothing matches.
    """
    expanded: list[Path] = []
    has_pattern = False
    for path in paths:
        if os.path.lexists(path) or not glob.has_magic(str(path)):
            expanded.append(path)
            continue
        has_pattern = True
        found = sorted(glob.glob(str(path)))  # noqa: PTH207  # it takes the whole path
        if not found:
            raise click.ClickException(f"nothing matches the pattern {for_display(path)}")
        expanded += map(Path, found)
    return expanded, has_pattern or len(paths) > 1


def refuse_equal(made: Iterable[tuple[str, str]], problem: str) -> None:
    """Raise ClickException if two of the arguments would make the same thing.

    `made` has what is made of each argument, and the argument. `problem` is the message, in which both are named.
    """
    by_made: defaultdict[str, list[str]] = defaultdict(list)
    for thing, given in made:
        by_made[thing].append(given)
    for thing, arguments in by_made.items():
        if len(arguments) > 1:
            both = " and ".join(map(for_display, arguments[:2]))
            raise click.ClickException(problem.format(given=both, made=for_display(thing)))
