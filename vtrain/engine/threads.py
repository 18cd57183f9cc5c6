"""Threads that a step starts: what they compute would run natively and unseen, in an order that nobody fixed.

A dispatch mode holds for one thread. So within a step, threads that the step starts, and calls that it gives to thread
pools, run under a guard that refuses whatever may round; what only moves values is let through, and so are the threads
of others, such as a loader of the next batch. A queue of the user's own to a thread that was there before is not seen.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from vtrain.engine.callsite import user_line
from vtrain.engine.mode import is_exact
from vtrain.errors import UnsupportedOperation


class StepThreads:
    """The other threads of one step.

    Attributes:
        found: the first operation that one of them wanted to compute; None if there was none.
    """

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._members = {self._owner}
        self.over = False
        self.found: UnsupportedOperation | None = None

    def guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` under the guard, if a thread of the step asks."""
        if threading.get_ident() not in self._members:
            return call
        line = user_line()

        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            me = threading.get_ident()
            if me in self._members:
                return call(*args, **kwargs)
            self._members.add(me)
            try:
                with _Guard(self, line):
                    return call(*args, **kwargs)
            finally:
                self._members.discard(me)

        return run

    def check(self) -> None:
        """Check, at the step's end, that nothing was computed elsewhere, whatever became of the error there.

        Raises:
            UnsupportedOperation: something was.
        """
        if self.found is not None:
            raise self.found


class _Guard(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, step: StepThreads, line: str) -> None:
        super().__init__()
        self._step, self._line = step, line

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self._step.over and not is_exact(func):
            error = UnsupportedOperation(
                f"{func}: computed in another thread of a step (torch.nn.parallel, a thread pool), where it would be "
                f"neither logged nor canonical; call it in the step's own thread\n  given to the thread at {self._line}"
            )
            self._step.found = self._step.found or error
            raise error
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def guarded_threads() -> Iterator[StepThreads]:
    """Within: threads begun by this one, and what it gives to thread pools, are guarded."""
    step = StepThreads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(threading.Thread, "start", functools.partial(_start, step)))
        stack.enter_context(_replaced(ThreadPoolExecutor, "submit", functools.partial(_wrap_second, step)))
        pool: Any = getattr(sys.modules.get("multiprocessing.pool"), "ThreadPool", None)
        for name in ("apply_async", "_map_async", "imap", "imap_unordered") if pool is not None else ():
            stack.enter_context(_replaced(pool, name, functools.partial(_wrap_second, step)))
        try:
            yield step
        finally:
            step.over = True


def _start(step: StepThreads, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start(thread: threading.Thread) -> None:
        thread.run = step.guarded(thread.run)  # type: ignore[method-assign]
        original(thread)

    return start


def _wrap_second(step: StepThreads, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(pool: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return original(pool, step.guarded(call), *args, **kwargs)

    return submit


@contextlib.contextmanager
def _replaced(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within: a method is what ``make`` makes of it."""
    own = name in vars(owner)
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
