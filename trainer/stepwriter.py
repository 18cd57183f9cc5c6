"""The trainer's role: a recorder whose steps go to a run on disk (protocol §3-6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from trainer.again import NEXT, Again, batch_note, refuse
from trainer.calibration import Calibration
from trainer.listener import Recorder
from trainer.logsize import LogSize
from vtrain.commit.digest import files_digest
from vtrain.commit.leaf import Leaf
from vtrain.engine import state
from vtrain.engine.backend import environment
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.engine.loops.loop import EVALUATION, Loop, StepEnd
from vtrain.engine.state.tensors import to_tensor
from vtrain.errors import CheckpointError
from vtrain.kernels.failures import told
from vtrain.policy import Policy
from vtrain.store.checkpoint import RESUME
from vtrain.store.logformat import step_digest
from vtrain.store.lost import MACHINE
from vtrain.store.steplog import StepLog
from vtrain.store.writer import RunWriter, last_checkpoint, written_leaves


@dataclass(frozen=True)
class _Pending:
    leaf: Leaf
    log: StepLog
    program: bytes
    values: dict[str, Any]
    files: Callable[[], state.Files]
    due: bool


class StepWriter:
    """Records each step and writes it: leaf and log at once, the state at checkpoints.

    The last step's leaf is held back until it is known whether it is the run's last, which carries a state digest.
    Around somebody's own loop a checkpoint is written when the next step begins: then it holds what the program did
    after the step, such as a schedule's step, and going on from it leaves nothing out.

    Args:
        policy: the run's.
        writer: the run.
        checkpoint_every: steps between checkpoints.
        waits: whether a program acts between steps.

    Attributes:
        meta: gives a checkpoint's notes, which no digest covers.
        resume: gives what a checkpoint holds beyond model and optimizer, for the trainer alone; named tensors.
        on_initial: called with the state digest of step 0 before anything of it is signed.
        on_step: called after each step with its values, for progress bars.
        size: how much was logged.
        again: compares steps that are done again with what they were; None where nobody does.
    """

    def __init__(self, policy: Policy, writer: RunWriter, checkpoint_every: int, *, waits: bool = False) -> None:
        self._policy = policy
        self._writer = writer
        self._every = checkpoint_every
        self._waits = waits
        self._recorder = Recorder(policy)
        self.size = LogSize(policy)
        self._pending: _Pending | None = None
        self._trained = -1  # number of the last step that was no evaluation, these not counted
        self._carried = False
        self._last: _Pending | None = None
        self._notes: dict[str, Any] = {}
        self._said = False
        self.again: Again | None = None
        self.meta: Callable[[], dict[str, Any]] = dict
        self.resume: Callable[[], dict[str, torch.Tensor]] = dict
        self.on_initial: Callable[[str], None] = lambda digest: None
        self.on_step: Callable[[StepEnd], None] = lambda done: None

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Round y and log the elements in doubt."""
        return self._recorder.settle(site, y, scale, vary)

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """Nothing to log."""

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """Record a host scalar."""
        return self._recorder.scalar(step, position, value)

    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        """Write the checkpoint of the step before, if one is due; its leaf waits, as this step may come to nothing."""
        self._recorder.take()  # what an abandoned step left behind
        # An evaluation belongs to the step before it: the checkpoint waits until it is done too.
        carries = self.due and EVALUATION in batch
        if self.due and not carries:
            self._notes = {NEXT: batch_note(batch)} if self._waits else {}
            self._flush(True)
            self._notes = {}
        self._carried |= carries
        if self.again is not None:
            self.again.begin(step, batch)

    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        """Commit to the step; a checkpoint where one is due."""
        calibration: dict[str, str] = {}
        calibrating, settled = self._recorder.calibration is not None, self._recorder.values
        if self._recorder.calibration is not None:
            seen = self._recorder.calibration.seen()
            calibration = {key: value.hex() for key, value in seen.items()}
            if done.step >= self._policy.calibration_steps:
                self._recorder.calibrated(seen)
        log = self._recorder.take()
        self.size.add(done.step, log, settled, calibrating)
        leaf = Leaf(done.step, done.batch, done.metrics, step_digest(log).hex(), done.sites, calibration=calibration)
        self._compare(leaf)
        values: dict[str, Any] = {"step": done.step, "seconds": round(done.seconds, 6), **done.values}
        if self.again is not None and not self._said:
            self._said, values[MACHINE] = True, self.again.machine
        evaluation = EVALUATION in done.batch
        self._trained += not evaluation
        due = self._carried if evaluation else self._trained % self._every == 0
        self._carried = False
        self._flush(False)  # the step before, now that it is known not to be the last
        self._pending = self._last = _Pending(leaf, log, done.program, values, files, due)
        if self.due and (done.step == 0 or not self._waits):
            self._flush(True)
        self.on_step(done)

    def _compare(self, leaf: Leaf) -> None:
        """With the step as it was before an interruption; where it differs, that stays on disk for the next try."""
        found = "" if self.again is None else self.again.check(leaf)
        if found:
            self._flush(False)
            self._writer.put_back(leaf.step)
            refuse(found)

    @property
    def due(self) -> bool:
        """Whether a checkpoint of the last step is still to be written."""
        return self._pending is not None and self._pending.due

    @property
    def last(self) -> tuple[Leaf, StepLog]:
        """Leaf, without a state digest, and log of the step that ended last."""
        assert self._last is not None
        return self._last.leaf, self._last.log

    def finish(self) -> None:
        """End the run: a last checkpoint and the trainer's statement."""
        self._flush(True)
        self._writer.attest(environment())

    def interrupted(self) -> None:
        """Write the last step's checkpoint, which is due: what follows the step is done, or nothing does."""
        self._flush(True)

    def given_up(self) -> None:
        """Write the last step without a checkpoint: it will be done again, and compared."""
        self._flush(False)

    def _calibrate(self, leaves: list[Leaf]) -> None:
        """Take up thresholds where the leaves up to the checkpoint left them."""
        seen = next((leaf.calibration for leaf in reversed(leaves) if leaf.calibration), {})
        if self._recorder.calibration is not None:
            differences = {key: float.fromhex(value) for key, value in seen.items()}
            self._recorder.calibration = Calibration(differences)
            if leaves and leaves[-1].step >= self._policy.calibration_steps:
                self._recorder.calibrated(differences)

    def go_on(self, loop: Loop) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Put the last acknowledged checkpoint into ``loop`` and take up where it left off.

        Args:
            loop: initialised, not counted.

        Returns:
            What ``resume`` and ``meta`` had found when it was written.

        Raises:
            CheckpointError: it does not fit, or is not what its leaf commits to.
        """
        writer = self._writer
        step, leaves = writer.checkpoint_step, written_leaves(writer.layout)
        files, meta = last_checkpoint(writer.layout, step)
        beyond = files.pop(RESUME, {})
        if beyond and files_digest({RESUME: beyond}).text != leaves[-1].resume:
            raise CheckpointError(f"{writer.layout.checkpoint(step)}: {RESUME} is not what its leaf commits to")
        state.restore(files, loop.model, loop.optimizer)
        loop.resume_at(step)
        loop.evaluations = sum(EVALUATION in leaf.batch for leaf in leaves)
        self._trained = step - loop.evaluations
        if state.digest(loop.files()).text != leaves[-1].state:
            raise CheckpointError(f"{writer.layout.checkpoint(step)}: not the state that its leaf commits to")
        self._calibrate(leaves)
        if self.again is not None:
            self.again.expect(step + 1, meta)
        return {name: to_tensor(t) for name, t in beyond.items()}, meta

    def _flush(self, whole: bool) -> None:
        """Write the step held back, with a checkpoint if ``whole``."""
        pending = self._pending
        if pending is None:
            return
        # The copies come before anything is written: where memory is not enough for them, the step still waits.
        leaf, files = self._copied(pending) if whole else (pending.leaf, {})
        self._pending = None
        self._writer.metrics(pending.values)  # before what acknowledges the step; resuming drops it otherwise
        if not whole:
            self._writer.step(leaf, pending.log, pending.program)
            return
        if leaf.step == 0:
            self.on_initial(leaf.state)
        self._writer.step(leaf, pending.log, pending.program)
        self._writer.checkpoint(leaf.step, files, self.meta() | self._notes)

    @told(lambda: "copying a checkpoint to the host")
    def _copied(self, pending: _Pending) -> tuple[Leaf, dict[str, Any]]:
        """A step's leaf with its state's digest, and that state in the host's memory."""
        files = state.as_bytes(pending.files())
        leaf = replace(pending.leaf, state=files_digest(files).text)
        if beyond := self.resume():
            kept = state.as_bytes({RESUME: beyond})
            leaf, files = replace(leaf, resume=files_digest(kept).text), files | kept
        return leaf, files
