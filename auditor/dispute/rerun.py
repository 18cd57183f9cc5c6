"""A party's own computation: it does steps of a run again, as often as a dispute asks (protocol §8.1, §8.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from auditor.dispute.tracing import Sink, Tensors, Tracer, blocks_of_tensor
from auditor.evidence import Evidence
from auditor.replayer import Repairs
from auditor.replaying import check_table
from vtrain.commit.blocks import Blocks
from vtrain.commit.trace import Event, Trace
from vtrain.engine import state
from vtrain.engine.loop import Loop
from vtrain.engine.task import Task
from vtrain.errors import CheckpointError, ProofError, Refuted, UsageError
from vtrain.job import Job

Snapshot = dict[str, dict[str, torch.Tensor]]


class _Collect:
    def __init__(self) -> None:
        self.trace = Trace()

    def event(self, event: Event, inputs: Tensors, outputs: Tensors) -> None:
        self.trace.append(event.encode())


@dataclass
class Captured:
    """One event's tensors.

    Attributes:
        event: the event.
        inputs, outputs: blocks by name.
    """

    event: Event
    inputs: dict[str, Blocks] = field(default_factory=dict)
    outputs: dict[str, Blocks] = field(default_factory=dict)


class _Capture:
    def __init__(self, number: int) -> None:
        self._left = number
        self.found: Captured | None = None

    def event(self, event: Event, inputs: Tensors, outputs: Tensors) -> None:
        if self._left == 0:
            # clones: the tensors' memory goes on being used
            held = [{n: blocks_of_tensor(t.clone()) for n, t in part.items()} for part in (inputs, outputs)]
            self.found = Captured(event, *held)
        self._left -= 1


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
        self._kept: tuple[int, Snapshot] | None = None

    def states(self, first: int, last: int) -> list[str]:
        """State digests after steps ``first`` to ``last``."""
        found: list[str] = []

        def after(step: int, loop: Loop) -> None:
            if step >= first:
                found.append(state.digest(loop.files()).text)

        self._run(first, last, None, after)
        return found

    def trace(self, step: int) -> Trace:
        """The trace of a step."""
        collect = _Collect()
        self._run(step, step, collect)
        return collect.trace

    def capture(self, step: int, number: int) -> Captured:
        """The tensors of event ``number`` of a step.

        Raises:
            ProofError: the step has no such event.
        """
        capture = _Capture(number)
        self._run(step, step, capture)
        if capture.found is None:
            raise ProofError(f"step {step} has no event {number}")
        return capture.found

    def columns(self, step: int, seq: int) -> dict[str, bytes] | None:
        """The run's decisions at a site."""
        from vtrain.engine.decisions import Decisions

        return Decisions(self.evidence.log(step)).columns(seq)

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
