"""Replaying somebody's own training loop: ``with replay(...) as run: ... with run.step(batch): ...``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.audit import uncaught
from auditor.audit.listener import Replayer
from auditor.audit.table import check_table
from auditor.audit.trying import Trying
from auditor.evidence import open_run
from auditor.verdict import Verdict
from auditor.verdict.verdict import UNFINISHED, VERIFIED, begin
from vtrain.commit import keys
from vtrain.engine import state
from vtrain.engine.backend import environment
from vtrain.engine.loops.arguments import check_model, check_optimizer, check_path, check_public_key
from vtrain.engine.loops.auxiliary import AuxiliaryState
from vtrain.engine.loops.facts import loop_facts
from vtrain.engine.loops.loop import Loop, Model, Optimizer
from vtrain.engine.loops.openrun import OpenRun
from vtrain.engine.state.extra import Extra
from vtrain.errors import CheckpointError, IncompleteRunError, Refuted, UsageError
from vtrain.job import LoopJob
from vtrain.kernels import scalars
from vtrain.store.layout import require_run


class Replaying(OpenRun):
    """A run being replayed; what ``replay`` gives to the body of its ``with``.

    Attributes:
        verdict: what was found; ``unfinished`` until a difference is found or the ``with`` is left.
    """

    def __init__(self, loop: Loop, replayer: Replayer, verdict: Verdict) -> None:
        super().__init__(loop, AuxiliaryState(loop))
        self.verdict = verdict
        self._replayer = replayer

    def _prepare(self) -> None:
        """After a difference the block ends at once."""
        if self._replayer.finding is not None:
            raise self._replayer.finding.again()

    @contextlib.contextmanager
    def step(self, batch: Any = None, *, indices: Sequence[int] | None = None) -> Iterator[None]:
        """As ``OpenRun.step``; after a difference it ends the block at once."""
        try:
            with super().step(batch, indices=indices):
                yield
        finally:
            if self._replayer.finding is not None:  # said at once: a framework may keep the exception from the ``with``
                self.verdict.refute(self._replayer.finding)


class replay:
    """Replay a recorded run at directory ``path`` with the same model, optimizer and loop.

    The body may be the trainer's own, unchanged. Where it first gets another batch, scalar, result or state than the
    run commits to, the body ends there and ``run.verdict`` says so; precision, seed and checkpoints are the run's.

    Args:
        path: run directory; never modified.
        model: the model, or a function that makes it, as given to ``record``.
        optimizer: likewise.
        extra: likewise, where the body asks for ``run.extra``; not compared.
        trainer_key: the trainer's public key or its file; without it the verdict says that the key was not known.
        initial: ``"own"``: the auditor's initial state must be the run's, bit for bit. ``"run"``: take the run's, for
            initial weights that can't be made again; the verdict says so.

    Raises:
        MalformedRunError: (on entry) the run is incomplete or malformed.
        UsageError: a bad argument, or no such run.
    """

    _skips = True  # the body may leave out a batch that fails in its step

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: Model,
        optimizer: Optimizer = None,
        extra: Extra = None,
        trainer_key: Ed25519PublicKey | str | os.PathLike[str] | None = None,
        initial: str = "own",
    ) -> None:
        check_path(path)
        check_model(model)
        check_optimizer(optimizer)
        check_public_key(trainer_key)
        if initial not in ("own", "run"):
            raise UsageError(f"initial is {initial!r}; want 'own' or 'run'")
        self._path, self._model, self._optimizer, self._initial = Path(path), model, optimizer, initial
        self._extra = extra
        is_key = trainer_key is None or isinstance(trainer_key, Ed25519PublicKey)
        self._key = trainer_key if is_key else keys.load_public(trainer_key)  # type: ignore[arg-type]

    def __enter__(self) -> Replaying:
        scalars.hold()  # until the body is left: schedulers compute between steps
        try:
            return self._open()
        except BaseException:
            scalars.release()
            raise

    def _open(self) -> Replaying:
        require_run(self._path)
        evidence = open_run(self._path, self._key)  # type: ignore[arg-type]
        job = evidence.job
        if not isinstance(job, LoopJob):
            raise UsageError(f"{self._path}: is the run of a job file; audit it with `vtrain audit`")
        evidence.require_complete()
        check_table(job.optable)
        self._evidence = evidence
        self._replayer = Replayer(evidence, job.policy.scalar_ulps)
        self._trying = Trying(self._replayer, self._skips)
        self._loop = Loop(self._trying, job.policy, job.seed, keeps=True)
        self._verdict = begin(evidence, environment())
        self._verdict.result = UNFINISHED
        try:
            self._begin()
        except Refuted as found:
            # A body can't be skipped: it gets a model, and its first step ends it.
            self._replayer.finding = found
            if found.what == "state" and isinstance(self._model, torch.nn.Module):
                self._verdict.notes.append(_OTHER_WEIGHTS)
            self._loop.initialise(self._model, self._optimizer, self._extra, count=False)
        self._verdict.notes += self._unlike()
        self._undo = uncaught.show(lambda: str(self._verdict))
        return Replaying(self._loop, self._replayer, self._verdict)

    def _unlike(self) -> list[str]:
        """How the loop here differs from what the run says of the trainer's, for people: its bits are what decides."""
        theirs = self._evidence.identity.loop
        assert theirs is not None
        mine = loop_facts(self._loop.model, self._loop.optimizer, theirs.state)
        notes = []
        if differ := mine.unlike(theirs):
            notes.append(f"not the classes that the run names: {'; '.join(differ[:5])}{' ...' if differ[5:] else ''}")
        if files := mine.other_sources(theirs):
            names = ", ".join(repr(name) for name in files[:10])
            notes.append(f"source files that are not the trainer's: {names}{' ...' if files[10:] else ''}")
        return notes

    def _begin(self) -> None:
        if self._initial == "own":
            self._loop.initialise(self._model, self._optimizer, self._extra)
            return
        self._loop.initialise(self._model, self._optimizer, self._extra, count=False)
        files = self._evidence.checkpoint(0)
        try:
            state.restore(files, self._loop.model, self._loop.optimizer)
        except CheckpointError as error:  # it is what the trainer committed to, and not of this model
            raise Refuted(0, "state", str(error)) from error
        self._loop.resume_at(0)
        self._verdict.notes.append("the initial state was taken from the run, not made again")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        scalars.release()
        self._undo()
        if isinstance(value, Exception):
            with contextlib.suppress(Refuted):  # which is the replayer's finding then
                self._trying.compare()
        found, verdict, done = self._replayer.finding, self._verdict, self._loop.steps_done
        verdict.replayed = [(0, done)] if done >= 0 else []
        verdict.count(self._replayer.counts)
        if found is not None:
            verdict.refute(found)
            verdict.doubt()
            # whatever came of it in the loop, an exit included; but not somebody's Ctrl-C
            return not isinstance(value, KeyboardInterrupt)
        if kind is not None:
            return False
        if done < self._evidence.last_step:
            last = self._evidence.last_step
            raise IncompleteRunError(
                f"the loop ended after step {done}; the run has {last}: it was not audited to its end"
            )
        verdict.result = VERIFIED
        return False


_OTHER_WEIGHTS = (
    "torch's own initialisation differs between processors: build the model with `vtrain.seeded(seed)`, give a "
    "function that makes it, or take the run's initial state with initial='run'"
)
