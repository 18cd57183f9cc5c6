"""Recording somebody's own training loop: ``with record(...) as run: ... with run.step(batch): ...``."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trainer.again import Again
from trainer.carried import Carried
from trainer.keys import trainer_key
from trainer.stepwriter import StepWriter
from vtrain.engine.loops.arguments import (
    check_function,
    check_model,
    check_optimizer,
    check_path,
    check_policy,
    check_private_key,
    check_resume,
    check_seed,
)
from vtrain.engine.loops.auxiliary import AuxiliaryState
from vtrain.engine.loops.facts import loop_facts
from vtrain.engine.loops.loop import Loop, Model, Optimizer, StepEnd
from vtrain.engine.loops.openrun import OpenRun
from vtrain.engine.optable import table_digest
from vtrain.engine.state.extra import Extra
from vtrain.errors import JobError, UsageError, VtrainError
from vtrain.job import Job, LoopJob, job_digest
from vtrain.kernels import scalars
from vtrain.kernels.failures import told
from vtrain.policy import Policy
from vtrain.store import canonical
from vtrain.store.identity import LoopFacts
from vtrain.store.layout import Layout
from vtrain.store.writer import RunWriter, create


class Recording(OpenRun):
    """A run being recorded; what ``record`` gives to the body of its ``with``."""

    def __init__(self, loop: Loop, auxiliary: AuxiliaryState, kept: dict[str, torch.Tensor]) -> None:
        super().__init__(loop, auxiliary)
        self._put_back = kept
        self._looked = False
        self._carried = Carried(loop, auxiliary)

    @contextlib.contextmanager
    def step(self, batch: Any = None, *, indices: Sequence[int] | None = None) -> Iterator[None]:
        """As ``OpenRun.step``."""
        self._mark()
        self._prepare()
        if not self._looked:
            self._looked = True
            if self._auxiliary.schedule_left_out():
                warnings.warn(_SCHEDULE_LEFT_OUT, stacklevel=4)
        self._auxiliary.before_step()
        with self._carried.watching(self.steps_done + 1), super().step(batch, indices=indices):
            yield

    def _prepare(self) -> None:
        """A program may do before its step what the checkpoint holds already, such as a schedule's step."""
        if self._put_back:
            kept, self._put_back = self._put_back, {}
            if self._auxiliary.set_otherwise(kept):
                warnings.warn(_SET_OTHERWISE.format(step=self.steps_done + 1), stacklevel=5)
            self._auxiliary.put(kept)


class record:
    """Record a training run into directory ``path``.

    On leaving the body without an exception the run is completed and attested; with one (Ctrl-C included) it keeps
    its last checkpoint, from which ``resume=True`` goes on.

    Args:
        path: run directory; must not exist, unless resuming.
        model: the model, or a function without arguments that makes it: then the initial weights are part of what an
            audit repeats.
        optimizer: the optimizer, a function that makes it for the model, or None.
        policy: precision and thresholds; float32 certified by default.
        seed: of all random numbers drawn inside steps, below 2^128.
        checkpoint_every: steps between checkpoints.
        key: the trainer's private key or its file; made once per user where it is not given.
        resume: go on with the run at ``path``. Steps that were done before and not kept are compared with what they
            were; not with ``"anew"``, for a loop that is meant to go on otherwise.
        extra: objects with ``state_dict`` and ``load_state_dict`` to restore on resuming, such as schedulers, second
            optimizers, averages of weights: a dict by name, or a function that makes it for model and optimizer.

    Raises:
        RunExistsError: there is something at ``path``.
        UsageError: a bad argument; nothing was written.
    """

    _waits = True  # with a checkpoint until the next step begins, for what the program does in between

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: Model,
        optimizer: Optimizer = None,
        policy: Policy | None = None,
        seed: int | str = 0,
        checkpoint_every: int = 10,
        key: Ed25519PrivateKey | str | os.PathLike[str] | None = None,
        resume: bool | str = False,
        extra: Extra = None,
        on_step: Callable[[StepEnd], None] | None = None,
    ) -> None:
        check_path(path)
        check_model(model)
        check_optimizer(optimizer)
        check_policy(policy)
        check_seed(seed)
        check_private_key(key)
        check_resume(resume)
        check_function("on_step", on_step)
        self._path = Path(path)
        self._model, self._optimizer = model, optimizer
        self._policy = policy or Policy()
        self._seed = seed
        self._every = checkpoint_every
        self._key = key
        self._resume = resume
        self._extra = extra
        self._on_step = on_step

    def __enter__(self) -> Recording:
        job = self._job()
        data = job.canonical()
        scalars.hold()  # until the body is left: schedulers compute between steps
        try:
            return self._open(job, data)
        except BaseException:
            scalars.release()
            raise

    def _job(self) -> LoopJob | Job:
        if isinstance(self._every, bool) or not isinstance(self._every, int) or self._every < 1:
            raise UsageError(f"checkpoint_every is {self._every!r}; want an integer from 1")
        return LoopJob(seed=str(self._seed), policy=self._policy, checkpoint_every=self._every, optable=table_digest())

    @told()
    def _open(self, job: LoopJob | Job, data: bytes) -> Recording:
        key = trainer_key(self._key)
        digest = job_digest(data)
        if self._resume:
            _check_same(Layout(self._path), data)
            self._writer = RunWriter(Layout(self._path), data, digest, key)
        else:
            self._writer = create(self._path, data, digest, key)
        try:
            return self._start()
        except BaseException as error:
            self._writer.close()
            if not self._resume and isinstance(error, Exception):
                self._writer.remove_if_empty()
            raise

    def _start(self) -> Recording:
        writer = self._writer
        self._steps = StepWriter(self._policy, writer, self._every, waits=self._waits)
        if self._waits:
            self._steps.again = Again(self._policy, writer.lost, anew=self._resume == "anew")
        self._steps.on_initial = lambda digest: writer.identify(self._facts(digest))
        if self._on_step is not None:
            self._steps.on_step = self._on_step
        self._loop = Loop(self._steps, self._policy, self._seed, keeps=True)
        self._auxiliary = AuxiliaryState(self._loop, whole=self._waits)
        self._steps.resume, self._steps.meta = self._auxiliary.take, self._meta
        resuming = writer.checkpoint_step >= 0
        self._loop.initialise(self._model, self._optimizer, self._extra, count=not resuming)
        kept: dict[str, torch.Tensor] = {}
        if resuming:
            self._check_same_loop()
            kept, meta = self._steps.go_on(self._loop)
            self._auxiliary.put(kept)
            self._put_meta(meta)
        return Recording(self._loop, self._auxiliary, kept if self._waits and self._loop.steps_done else {})

    def _meta(self) -> dict[str, Any]:
        """Notes in a checkpoint, which differ between a run and its repetition, such as times."""
        return {}

    def _put_meta(self, meta: dict[str, Any]) -> None:
        """Put notes back."""

    def _facts(self, initial: str) -> LoopFacts:
        return loop_facts(self._loop.model, self._loop.optimizer, initial)

    def _check_same_loop(self) -> None:
        """Refuse to go on with a run whose model or optimizer is another one; say which source files are.

        Raises:
            JobError: they have other classes than the run began with.
        """
        begun = self._writer.identity and self._writer.identity.loop
        if not begun:
            raise JobError(f"{self._path}: is the run of a job file; go on with `vtrain resume`")
        now = self._facts(begun.state)
        if differ := now.unlike(begun):
            raise JobError(f"{self._path}: was begun with another loop: {'; '.join(differ[:5])}")
        if files := now.other_sources(begun):
            warnings.warn(
                f"{self._path}: was begun with other files than now: {', '.join(files[:10])}. The run keeps the first "
                "ones' digests, and an auditor has one version of each: what they do in steps must be the same",
                stacklevel=4,
            )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._steps.finish()
            elif self._steps.due and self._auxiliary.settled():
                self._steps.interrupted()
            else:
                with contextlib.suppress(VtrainError):  # what ends the run counts
                    self._steps.given_up()
        finally:
            scalars.release()
            self._writer.close()


_SCHEDULE_LEFT_OUT = (
    "the optimizer has a learning rate schedule that is not in record(..., extra={name: schedule}): no checkpoint "
    "holds it, so that a resumed run would begin it anew and train at other rates than an auditor's loop"
)
_SET_OTHERWISE = (
    "the loop that goes on set another rate or other hyperparameters for step {step} than the interrupted one had; the "
    "step takes those of the interrupted one. If later ones come from a variable of the program's or from a schedule "
    "that is not in record(..., extra={{name: object}}), they began anew, and an auditor's loop will not: compute them "
    "from the step's number, or give the schedule"
)


def _check_same(layout: Layout, data: bytes) -> None:
    """Refuse to go on with a run under another job.

    Raises:
        JobError: it is another job; says the keys that differ.
        UsageError: there is no run.
    """
    if not layout.job.is_file():
        raise UsageError(f"{layout.root}: no run to resume")
    there = layout.job.read_bytes()
    if there == data:
        return
    theirs, mine = (canonical.loads(text, where=str(layout.job), floats=True) for text in (there, data))
    differ = ", ".join(".".join(path) for path, _, _ in canonical.differences(theirs, mine))
    raise JobError(f"{layout.root}: was begun as another job: {differ} differ")
