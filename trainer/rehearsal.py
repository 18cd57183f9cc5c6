"""Whether a checkpoint holds all that the next step depends on: found while training, not by an auditor (protocol §3).

A segment begins with the checkpoint before it, in objects that are made anew. So the first step behind a checkpoint is
done once more in that way, by its own log, and compared. What it lacks - a number in an attribute, a second network in
a closure, the mode of a layer, a counter in the program's file - would have got an honest trainer refuted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from trainer.stepwriter import StepWriter
from vtrain.commit.leaf import Leaf
from vtrain.engine import state
from vtrain.engine.decisions import Decisions
from vtrain.engine.jobs.task import Task
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.engine.loops.loop import Loop, StepEnd
from vtrain.engine.state import attributes
from vtrain.errors import DeviceMemoryError, StateError, StorageError
from vtrain.kernels.failures import told
from vtrain.store.layout import Layout
from vtrain.store.steplog import StepLog
from vtrain.store.writer import last_checkpoint


class _Again:
    """A listener that does a step again by its log, and keeps how it ends."""

    def __init__(self, log: StepLog) -> None:
        self._decisions = Decisions(log)
        self.done: StepEnd | None = None

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        return self._decisions.settle(site, y, scale)[0]

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        pass

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        return value

    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        pass

    def end_step(self, done: StepEnd, files: object) -> None:
        self.done = done


class Rehearsals:
    """Tries checkpoints of a run while it is made.

    The first one that this process reaches is tried (the one that it began with lacks nothing), and of a model that
    changes its Python attributes as it trains also the 2nd, 4th, 8th, ..., as what they lead to may show late.

    Args:
        task: the job.
        layout: of the run.
        loop: the training, where it begins or goes on.
        steps: its listener.
        every: whether to try each checkpoint.
    """

    def __init__(self, task: Task, layout: Layout, loop: Loop, steps: StepWriter, every: bool = False) -> None:
        self._task, self._layout = task, layout
        self._loop, self._steps, self._every = loop, steps, every
        self._begun = loop.steps_done
        self._at_start = attributes.snapshot(loop.model)
        self._seen = 0
        kind = task.job.policy.parsed_threshold.kind
        # Without a full log, not even this machine promises itself the same bits.
        self._off = kind in ("off", "fixed") and task.job.policy.matmul == "logged"

    def after(self, step: int) -> None:
        """To be called when a step is done.

        Raises:
            StateError: the step depends on what the checkpoint before it does not hold.
        """
        checkpoint = step - 1
        if self._off or checkpoint <= self._begun or checkpoint % self._task.job.train.checkpoint_every:
            return
        self._seen += 1
        if self._due():
            self._rehearse(checkpoint)

    def _due(self) -> bool:
        if self._every or self._seen == 1:
            return True
        power_of_two = self._seen & (self._seen - 1) == 0
        return power_of_two and bool(self._changed())

    def _changed(self) -> list[str]:
        return attributes.changed(self._at_start, attributes.snapshot(self._loop.model))

    def _rehearse(self, checkpoint: int) -> None:
        leaf, log = self._steps.last
        differs = self._differences(checkpoint, leaf, log)
        if not differs:
            return
        changed = self._changed()
        more = " ..." if len(changed) > 8 else ""
        where = f"; changed since the start: {', '.join(changed[:8])}{more}" if changed else ""
        raise StateError(
            f"step {checkpoint + 1} can't be repeated from the checkpoint before it: {differs}. It depends on "
            "something that is neither a parameter nor a buffer, and that an auditor who begins there would not have"
            f"{where}. Keep it in a buffer (register_buffer), make it a submodule, or derive it from a step counter in "
            "a buffer"
        )

    def _differences(self, checkpoint: int, leaf: Leaf, log: StepLog) -> str:
        again = _Again(log)
        try:
            loop = self._do_again(again, checkpoint)
        except StorageError:
            raise
        except DeviceMemoryError as error:  # which the training itself has: nothing is said against the program
            warnings.warn(
                f"the checkpoint after step {checkpoint} was not tried; a second model and optimizer must fit: {error}",
                stacklevel=2,
            )
            return ""
        except Exception as error:  # the program's own, where it misses what it kept
            return f"{type(error).__name__}: {error}"
        assert again.done is not None
        for what, mine, theirs in (
            ("its batch", again.done.batch, leaf.batch), ("its metrics", again.done.metrics, leaf.metrics),
            ("its sequence of results", again.done.sites, leaf.sites),
        ):  # fmt: skip
            if mine != theirs:
                return f"{what} would be otherwise"
        names = [*_differing(loop.files(), self._loop.files())]
        return f"{len(names)} tensors would end otherwise, first {names[0]}" if names else ""

    @told(lambda: "repeating a step")
    def _do_again(self, again: _Again, checkpoint: int) -> Loop:
        job, fresh = self._task.job, self._task.anew()
        loop = Loop(again, job.policy, job.train.seed)
        loop.initialise(fresh.model, fresh.optimizer, count=False)
        state.restore(last_checkpoint(self._layout, checkpoint)[0], loop.model, loop.optimizer)
        loop.resume_at(checkpoint)
        fresh.run_step(loop, checkpoint + 1)
        return loop


def _differing(mine: state.Files, theirs: state.Files) -> list[str]:
    """Names of tensors that differ in a bit; any NaN equals any NaN."""
    pairs = {f"{file}/{name}": t for file, tensors in mine.items() for name, t in tensors.items()}
    others = {f"{file}/{name}": t for file, tensors in theirs.items() for name, t in tensors.items()}
    return sorted(n for n in {*pairs, *others} if not _same(pairs.get(n), others.get(n)))


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None or a.shape != b.shape or a.dtype is not b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return bool(((a.contiguous().view(kind) == b.contiguous().view(kind)) | (a.isnan() & b.isnan())).all())
