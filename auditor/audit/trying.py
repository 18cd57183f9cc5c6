"""Steps of a loop that may come to nothing: begun, failed, and begun again with another batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from auditor.audit.listener import Replayer
from vtrain.engine import state
from vtrain.engine.listener import Listener, Plain, ScaleFn, Site, Vary
from vtrain.engine.loops.loop import StepEnd


class Trying:
    """Replays a loop whose script leaves out a batch that fails in its step, such as one whose loss is not finite.

    A run says nothing of such a step. So one that begins otherwise than the run's is computed without the log, and is
    a difference when it ends; where it fails, as it did for the trainer, it is none.

    Args:
        replayer: compares what counts.
        may_fail: whether a step may; else what differs where one begins ends the replay there.
    """

    def __init__(self, replayer: Replayer, may_fail: bool) -> None:
        self._replayer, self._may_fail = replayer, may_fail
        self._now: Listener = replayer
        self._begun: tuple[int, Mapping[str, str]] = -1, {}

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """By the log, or by this machine alone."""
        return self._now.settle(site, y, scale, vary)

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """Compare the site, where the step is the run's."""
        self._now.canonical(site, out)

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """Compare the number, where the step is the run's."""
        return self._now.scalar(step, position, value, plain)

    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        """Begin the run's step, or one that may fail."""
        self._begun = step, batch
        if not self._may_fail or self._replayer.has(step, batch):
            self._now = self._replayer
            self._replayer.begin_step(step, batch)
        else:
            self._now = Plain()

    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        """Compare; a step that is not the run's, and did not fail, is the difference."""
        self.compare()
        self._replayer.end_step(done, files)

    def compare(self) -> None:
        """Say how the step begun last differs from the run's: it ended, or its failure ended the loop.

        Raises:
            Refuted: it does.
        """
        if self._now is not self._replayer:
            self._replayer.begin_step(*self._begun)
