"""Replaying segments by any ``concurrent.futures.Executor``: processes of this machine, or a Ray cluster (protocol §7).

Results come in the order of the plan, whatever the order in which they are finished, and what follows the first
difference is given up; so a verdict does not depend on who replayed. A worker that dies takes nothing with it: what it
was replaying is tried again by another, ``TRIES`` times in all.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from typing import Any, Protocol

from auditor.audit.segment import Found
from auditor.audit.worker import Work, replay_in_worker
from auditor.evidence.segments import Segment
from vtrain.children import safe_environment
from vtrain.errors import WorkerError

TRIES = 3


class Crew(Protocol):
    """Makes executors; a broken one is replaced by another."""

    @property
    def size(self) -> int:
        """Segments replayed at a time."""

    def start(self) -> Executor:
        """A fresh executor."""


@dataclass(frozen=True)
class Processes:
    """``size`` processes of this machine. They are spawned: torch's threads don't survive a fork."""

    size: int

    def start(self) -> Executor:
        """A pool whose processes end with this one, even if it is killed."""
        return _Spawned(self.size)


class _Spawned(ProcessPoolExecutor):
    """Processes that don't import from the current directory; they are started when there is work for them."""

    def __init__(self, size: int) -> None:
        with safe_environment():  # multiprocessing has a process of its own to watch over semaphores
            super().__init__(size, get_context("spawn"), _end_with_parent)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``Executor.submit``."""
        with safe_environment():
            return super().submit(fn, *args, **kwargs)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass
class _Pool:
    """An executor and whether it still takes work."""

    executor: Executor
    broken: bool = False


@dataclass
class Replays:
    """The replays of some segments, in their order.

    Args:
        crew: who replays.
        plan: the segments.
        work: what workers open.
        on_found: hears of each segment without a difference as soon as it is finished, in any order.
    """

    crew: Crew
    plan: Sequence[Segment]
    work: Work
    on_found: Callable[[Found], None]
    _running: dict[Future[Found], tuple[int, _Pool]] = field(default_factory=dict)
    _again: list[int] = field(default_factory=list)
    _tries: Counter[int] = field(default_factory=Counter)
    _results: dict[int, Found | BaseException] = field(default_factory=dict)
    _submitted: int = 0

    def results(self) -> Generator[Found, None, None]:
        """What was found in each segment. Whoever stops here gives up the others.

        Raises:
            WorkerError: workers died ``TRIES`` times over a segment.
            VtrainError: what replaying a segment raised, at its turn.
        """
        pool = _Pool(self.crew.start())
        try:
            for number in range(len(self.plan)):
                while number not in self._results:
                    if pool.broken:
                        _leave(pool)
                        pool = _Pool(self.crew.start())
                    self._fill(pool)
                    for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                        self._take(future)
                result = self._results.pop(number)
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            _leave(pool)

    def _fill(self, pool: _Pool) -> None:
        """Keep every worker busy; but begin nothing that a difference or an error may make needless."""
        while len(self._running) < self.crew.size:
            stopping = any(isinstance(r, BaseException) or r.difference for r in self._results.values())
            if self._again:
                number = self._again.pop(0)
            elif self._submitted < len(self.plan) and not stopping:
                number = self._submitted
                self._submitted += 1
            else:
                return
            try:
                future = pool.executor.submit(replay_in_worker, self.plan[number], self.work)
            except BrokenExecutor:  # an idle worker died
                pool.broken = True
                self._once_more(number)
                return
            self._running[future] = number, pool

    def _take(self, future: Future[Found]) -> None:
        number, pool = self._running.pop(future)
        error = future.exception()
        if isinstance(error, BrokenExecutor):
            pool.broken = True
            self._once_more(number)
        elif error is not None:
            self._results[number] = error
        else:
            found = self._results[number] = future.result()
            if found.difference is None:
                self.on_found(found)

    def _once_more(self, number: int) -> None:
        self._tries[number] += 1
        if self._tries[number] < TRIES:
            self._again.append(number)
            return
        segment = self.plan[number]
        self._results[number] = WorkerError(
            f"steps {segment.first}-{segment.last}: {TRIES} workers died replaying them (killed, or out of memory?); "
            "want one that lives; no verdict"
        )


def _leave(pool: _Pool) -> None:
    with suppress(BrokenExecutor):
        pool.executor.shutdown(wait=not pool.broken, cancel_futures=True)
