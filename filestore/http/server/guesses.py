"""Count the wrong tokens and signatures of each client address, and refuse more of them after a limit.

A request with the right token passes, whatever its address has sent before. Each process counts for itself.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from filestore.errors import TooManyGuesses
from filestore.system.metrics import Event, count

logger = logging.getLogger("filestore.access")

ADDRESSES_LIMIT = 10_000
"""How many addresses are remembered. The one that was seen longest ago is forgotten first."""
WINDOW_SECONDS = 60


@dataclass(slots=True)
class _Window:
    ends_at: float
    count: int = 0


class Guesses:
    """The wrong tokens and signatures of one server process."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit` is how many of an address are answered as what they are, in each minute."""
        self._limit = limit
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def note(self, address: str, what: str) -> None:
        """Count a wrong token or signature, and write it to the log. `what` names the request, without the token.

        Raises TooManyGuesses if the address has sent too many in this minute.
        """
        now = self._clock()
        window = self._windows.pop(address, None)
        if window is None or window.ends_at <= now:
            window = _Window(now + WINDOW_SECONDS)
        self._windows[address] = window
        if len(self._windows) > ADDRESSES_LIMIT:
            self._windows.popitem(last=False)
        window.count += 1
        count(Event.WRONG_CREDENTIALS)
        if window.count <= self._limit:
            logger.info("%s sent a wrong token or signature: %s", address, what)
            return
        if window.count == self._limit + 1:
            logger.warning(
                "%s has sent more than %d wrong tokens or signatures in a minute; further ones of this minute are not logged",
                *(address, self._limit),
            )
        count(Event.GUESSES_REFUSED)
        raise TooManyGuesses("the server", self._limit)
