"""The step that is under way in this process: there is one at a time, as steps pin settings of the whole process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from vtrain.engine.core import Engine
from vtrain.errors import UsageError

_ONE_STEP = threading.Lock()
_active: Engine | None = None


def active_engine() -> Engine | None:
    """The engine of the step that is under way in this process, if there is one."""
    return _active


@contextlib.contextmanager
def only_step(engine: Engine) -> Iterator[None]:
    """Within: the engine is that of the step under way.

    Raises:
        UsageError: another step is.
    """
    global _active
    if not _ONE_STEP.acquire(blocking=False):
        raise UsageError(
            "a step was begun while another one (or vtrain.seeded) is under way in this process; want one at a time"
        )
    _active = engine
    try:
        yield
    finally:
        _active = None
        _ONE_STEP.release()
