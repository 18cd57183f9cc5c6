"""Replaying a job's run, one segment at a time (protocol §7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from auditor.audit.listener import Repairs, Replayer
from auditor.audit.table import check_table
from auditor.evidence import Evidence
from auditor.evidence.segments import Segment
from auditor.verdict.counts import Counts
from vtrain.engine import state
from vtrain.engine.jobs.task import Task, check_data
from vtrain.engine.loops.loop import Loop
from vtrain.errors import CheckpointError, ProgramError, Refuted, UsageError
from vtrain.job import Job
from vtrain.kernels import scalars
from vtrain.kernels.failures import told
from vtrain.store.atomic import storage_errors


@dataclass
class Found:
    """What replaying a segment found.

    Attributes:
        segment: which one.
        counts: what was counted.
        difference: step, what and detail of the first difference, if there was one.
        repairs: differences that disputes found to be benign, as the verdict lists them.
        dispute: how the difference was judged, as the verdict has it; None where nobody was asked.
        unanswered: whether it was not judged, as the trainer fell silent or what came was not signed by it.
    """

    segment: Segment
    counts: Counts = field(default_factory=Counts)
    difference: tuple[int, str, str] | None = None
    repairs: list[dict[str, Any]] = field(default_factory=list)
    dispute: dict[str, Any] | None = None
    unanswered: bool = False


class TaskReplay:
    """A process's evidence and task of one run, opened once and kept between segments.

    Args:
        evidence: the opened run.
        directory: what the program is relative to; None for the working directory.
        nonce: the auditor's, which decides what is looked at where not everything is.

    Attributes:
        evidence: as given.
        directory: likewise.
        job: the run's.
        task: what the job does, its data compared with the job.

    Raises:
        UsageError: the run was recorded around a loop.
        VersionError: it was made with another operation table.
        JobError: the data set is not the job's; a ProgramError where the program is not.
    """

    def __init__(self, evidence: Evidence, directory: Path | None, nonce: str) -> None:
        self.evidence, self.directory = evidence, directory or Path()
        job = evidence.job
        if not isinstance(job, Job):
            raise UsageError(
                f"{evidence.layout.root}: was recorded around a loop; replay it there, with auditor.replay(...)"
            )
        check_table(job.optable)
        self.job = job
        self.task = Task(job, self.directory)
        check_data(self.task)
        self._nonce = nonce

    @scalars.held()
    @told()
    def replay(self, segment: Segment, on_step: Callable[[int], None], repairs: Repairs | None = None) -> Found:
        """Replay one segment, taking the run's values in ``repairs``.

        Raises:
            MalformedRunError: what the run holds there is not what it commits to.
        """
        found = Found(segment)
        # Bound to the segment, so that it is the same whoever replays which one, and to what the trainer can't know.
        place = f"{segment.start}:{segment.last}\n{self.evidence.head_digest}"
        seed = f"vtrain-examine-v2\n{self._nonce}\n{place}".encode()
        replayer = Replayer(self.evidence, self.job.policy.scalar_ulps, repairs, seed)
        found.counts = replayer.counts
        loop = Loop(replayer, self.job.policy, self.job.train.seed)
        difference = self._difference(replayer, lambda: self._steps(loop, segment, on_step))
        if difference is not None:
            self.task.code.check()  # where code was refused and the program went on without it, that differs
            # a verdict does not depend on where the auditor keeps the run
            detail = difference.detail.replace(f"{self.evidence.layout.root}/", "")
            found.difference = (difference.step, difference.what, detail)
        return found

    def _difference(self, replayer: Replayer, steps: Callable[[], None]) -> Refuted | None:
        """What a replay found, however the program took it: it may catch the error, raise another, or exit.

        Raises:
            ProgramError: the program exits without one.
        """
        try:
            with storage_errors(self.evidence.layout.root):
                steps()
        except Refuted as found:  # the finding, or a state that does not fit the model
            return replayer.finding or found
        except BaseException as error:
            if replayer.finding is None:
                if isinstance(error, Exception | KeyboardInterrupt):
                    raise
                what = f"it ended the replay: {type(error).__name__}: {error}"
                raise ProgramError(f"program {self.job.program.entry!r}: {what}") from error
        return replayer.finding

    def _steps(self, loop: Loop, segment: Segment, on_step: Callable[[int], None]) -> None:
        loop.initialise(self.task.model, self.task.optimizer, count=segment.start < 0)
        if segment.start < 0:
            on_step(0)
        else:
            files = self.evidence.checkpoint(segment.start, _state_bound(loop.model))
            try:
                state.restore(files, loop.model, loop.optimizer)
            except CheckpointError as error:  # it is what the trainer committed to, and not of the job's model
                raise Refuted(segment.start, "state", str(error)) from error
            loop.resume_at(segment.start)
        for step in range(max(1, segment.start + 1), segment.last + 1):
            self.task.run_step(loop, step)
            on_step(step)


def _state_bound(model: torch.nn.Module) -> int:
    """Bytes that no file of a checkpoint of this model has: room for an optimizer of many tensors, and a header."""
    tensors = [*model.parameters(), *model.buffers()]
    return 16 * sum(t.numel() * t.element_size() for t in tensors) + (64 << 20)
