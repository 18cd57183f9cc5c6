"""The verdict instead of a traceback, where a difference ends a program that could not leave ``with replay(...)``.

Frameworks that own the loop (Lightning's ``fit``) open the run in one callback and would close it in another; the
exception that ends their loop then passes both. Python exits with 1 all the same, which is ``Refuted``'s exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from vtrain.errors import Refuted


def show(text: Callable[[], str]) -> Callable[[], None]:
    """From now on an uncaught ``Refuted`` prints ``text()`` on stderr.

    Returns:
        What undoes it.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(value, Refuted):
            print(text(), file=sys.stderr)
        else:
            before(kind, value, traceback)

    def undo() -> None:
        if sys.excepthook is hook:
            sys.excepthook = before

    sys.excepthook = hook
    return undo
