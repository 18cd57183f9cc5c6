"""A party's own computation: it does steps of a run again, as often as a dispute asks (protocol §8.1, §8.2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from auditor.audit.listener import Repairs
from auditor.audit.table import check_table
from auditor.dispute.tracing import Doubt, Sink, Tensors, Tracer, blocks_of_tensor
from auditor.evidence import Evidence
from vtrain.commit.blocks import Blocks
from vtrain.commit.trace import Event, Trace
from vtrain.engine import state
from vtrain.engine.jobs.task import Task
from vtrain.engine.loops.loop import Loop
from vtrain.errors import CheckpointError, ProofError, Refuted, UsageError, VtrainError
from vtrain.job import Job
from vtrain.kernels import scalars

Snapshot = dict[str, dict[str, torch.Tensor]]


@dataclass
class Captured:
    """One event's tensors.

    Attributes:
        event: the event.
        inputs, outputs: blocks by name.
        doubt: of a settled result, before rounding, and its certified half-width; float64, flat.
    """

    event: Event
    inputs: dict[str, Blocks] = field(default_factory=dict)
    outputs: dict[str, Blocks] = field(default_factory=dict)
    doubt: tuple[torch.Tensor, torch.Tensor] | None = None


class _Enough(VtrainError):
    """The event that was wanted is there; the rest of the step need not be done."""


class _Tape:
    """Collects events from number ``first`` on; with ``capture`` only that one, with its tensors.

    Args:
        known: kinds of the events of an earlier replay of the step, alike up to ``first``; empty if ``first`` is 0.
    """

    def __init__(self, first: int = 0, known: Sequence[str] = (), capture: bool = False) -> None:
        self._first, self._known, self.keeps = first, known, capture
        self._count = 0
        self.events: list[bytes] = []
        self.kinds: list[str] = []
        self.found: Captured | None = None

    def wants(self, ahead: bool = False) -> bool:
        if self.found is not None:
            return False  # what contexts do while the replay is being left
        if ahead:  # its own event is the next one of its kind
            return self._count >= self._first or "op" not in self._known[self._count : self._first]
        if self._count >= self._first:
            return True
        self._count += 1
        return False

    def event(self, event: Event, inputs: Tensors, outputs: Tensors, doubt: Doubt | None = None) -> None:
        self._count += 1
        if self.keeps:
            # clones: the tensors' memory goes on being used
            given, made = ({n: blocks_of_tensor(t.clone()) for n, t in part.items()} for part in (inputs, outputs))
            self.found = Captured(event, given, made, None if doubt is None else doubt())
            raise _Enough
        self.kinds.append(event.kind)
        self.events.append(event.encode())


class Rerun:
    """Does steps of a run again on this machine, by the run's log.

    Args:
        evidence: the run, of a job.
        directory: what the job's program is relative to.
        repairs: see ``Tracer``; may grow.
        make_tracer: makes the listener; for tests of dishonest parties.

    Raises:
        UsageError: the run was recorded around a loop, which can't be called from here.
        VersionError: it was made with another operation table.
    """

    def __init__(
        self, evidence: Evidence, directory: Path, repairs: Repairs | None = None,
        make_tracer: Callable[..., Tracer] = Tracer,
    ) -> None:  # fmt: skip
        job = evidence.job
        if not isinstance(job, Job):
            raise UsageError(f"{evidence.layout.root}: was recorded around a loop; a dispute needs a job")
        check_table(job.optable)
        self.evidence, self.job = evidence, job
        self.task = Task(job, directory)
        self.repairs: Repairs = {} if repairs is None else repairs
        self._make_tracer = make_tracer
        self._kept: tuple[int, Snapshot] | None = None  # a step and the state after it
        self._last: tuple[int, Trace, list[str]] | None = None  # a step, its trace, and the kinds of its events

    def states(self, first: int, last: int) -> list[str]:
        """State digests after steps ``first`` to ``last``."""
        found: list[str] = []

        def after(step: int, loop: Loop) -> None:
            if step >= first:
                found.append(state.digest(loop.files()).text)

        self._run(first, last, None, after)
        return found

    def trace(self, step: int, keep: int = 0) -> Trace:
        """The trace of a step.

        Args:
            keep: how many of its events are as in the last trace of this step, a repair having come after them.
        """
        if self._last is None or self._last[0] != step:
            keep = 0
        old, kinds = (self._last[1].events[:keep], self._last[2][:keep]) if self._last and keep else ([], [])
        tape = _Tape(keep, kinds)
        self._run(step, step, tape)
        self._last = (step, Trace([*old, *tape.events]), [*kinds, *tape.kinds])
        return self._last[1]

    def capture(self, step: int, number: int) -> Captured:
        """The tensors of event ``number`` of a step.

        Raises:
            ProofError: the step has no such event.
        """
        if self._last is None or self._last[0] != step:
            self.trace(step)
        assert self._last is not None
        tape = _Tape(number, self._last[2], capture=True)
        with contextlib.suppress(_Enough):
            self._run(step, step, tape)
        if tape.found is None:
            raise ProofError(f"step {step} has no event {number}")
        return tape.found

    def columns(self, step: int, seq: int) -> dict[str, bytes] | None:
        """The run's decisions at a site."""
        from vtrain.engine.decisions import Decisions

        return Decisions(self.evidence.log(step)).columns(seq)

    @scalars.held()
    def _run(self, first: int, last: int, sink: Sink | None, after: Callable[[int, Loop], None] | None = None) -> None:
        """Run up to ``last``; the steps from ``first`` on go to the sink."""
        tracer = self._make_tracer(self.evidence, self.job.policy.scalar_ulps, self.repairs)
        loop = tracer.loop = Loop(tracer, self.job.policy, self.job.train.seed)
        if first == 0:
            tracer.sink = sink
            loop.initialise(self.task.model, self.task.optimizer)
            if after is not None:
                after(0, loop)
        else:
            self._begin(loop, first)
        for step in range(max(1, loop.steps_done + 1), last + 1):
            if step == first:
                self._kept = (step - 1, _snapshot(loop))
            tracer.sink = sink if step >= first else None
            self.task.run_step(loop, step)
            if after is not None:
                after(step, loop)

    def _begin(self, loop: Loop, first: int) -> None:
        """Put the nearest known state before ``first`` into a loop."""
        loop.initialise(self.task.model, self.task.optimizer, count=False)
        start = max(s for s in self.evidence.checkpoints if s < first)
        if self._kept is not None and start <= self._kept[0] < first:
            start, files = self._kept[0], state.as_bytes(self._kept[1])
        else:
            files = self.evidence.checkpoint(start)
        try:
            state.restore(files, loop.model, loop.optimizer)
        except CheckpointError as error:
            raise Refuted(start, "state", str(error)) from error
        loop.resume_at(start)


def _snapshot(loop: Loop) -> Snapshot:
    return {f: {n: t.detach().clone() for n, t in tensors.items()} for f, tensors in loop.files().items()}
