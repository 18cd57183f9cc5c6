"""What the parts have in common: rows that are printed as they are found, and the time that is left."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_printing = threading.Lock()


def row(**values: Any) -> None:
    """Print what was found: one JSON line."""
    with _printing:
        print(json.dumps(values), flush=True)


class Clock:
    """The time that a part has.

    Args:
        end: when it is killed, by ``time.time``: its processes take seconds to start, and that is of its time too.
    """

    def __init__(self, end: float) -> None:
        self._end = end

    def left(self, kept: float = 2.0) -> float:
        """Seconds that are left, but for those that are kept for what comes after; a little where none are."""
        return max(0.5, self._end - time.time() - kept)


def together(works: Iterable[Callable[[], Any]]) -> list[Any]:
    """What each gives, all at once, each in a thread that waits for a process; an exception is one of those here."""
    with ThreadPoolExecutor(32) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]
