"""What the body of a recorded or replayed loop holds: one interface for both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vtrain.engine.loops.auxiliary import AuxiliaryState
from vtrain.engine.loops.loop import Loop


class OpenRun:
    """What the body of ``with record(...)`` or ``with replay(...)`` gets: one loop serves both."""

    def __init__(self, loop: Loop, auxiliary: AuxiliaryState) -> None:
        self._loop, self._auxiliary = loop, auxiliary
        self._unmarked = True
        self._mark()

    @property
    def model(self) -> torch.nn.Module:
        """The model."""
        return self._loop.model

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, or None."""
        return self._loop.optimizer

    @property
    def extra(self) -> dict[str, Any]:
        """The objects given as ``extra``, or made by it, by name."""
        return self._loop.extra

    @property
    def steps_done(self) -> int:
        """Number of the last finished training step; more than 0 at the start of a resumed run."""
        return self._loop.steps_done - self._loop.evaluations

    @contextlib.contextmanager
    def step(self, batch: Any = None, *, indices: Sequence[int] | None = None) -> Iterator[None]:
        """One optimizer step on ``batch``, any nest of tensors: everything inside is recorded, or replayed.

        A difference found in a replay ends the ``with replay(...)`` block, without an exception for the caller.

        Raises:
            BatchError: the batch holds a NaN or something that can't be committed to.
            StateError: model or optimizer were changed since the last step.
            UnsupportedOperation: (inside) an operation that the table does not know or forbids.
        """
        self._mark()
        self._prepare()
        with self._loop.step(batch, indices=indices):
            yield
        self._unmarked = True
        self._mark()

    @contextlib.contextmanager
    def evaluation(self, batch: Any = None, *, indices: Sequence[int] | None = None) -> Iterator[None]:
        """A step that changes no state, for ``metric`` on held-out data; not counted by ``steps_done``.

        Raises:
            StateError: it changed model or optimizer; names the tensors.
        """
        self._prepare()
        with self._loop.evaluation(batch, indices=indices):
            yield

    def _mark(self) -> None:
        """What the step's end is to the extra objects; done later, where memory was not enough for it."""
        if self._unmarked:
            self._auxiliary.mark()
            self._unmarked = False

    def _prepare(self) -> None:
        """What a role has to do before a step or an evaluation."""

    def rollback(self) -> None:
        """After a step that failed half-way: put everything back as the last finished step left it.

        Model, optimizer with its hyperparameters, and the ``extra`` objects.

        Raises:
            UsageError: inside a step.
        """
        self._mark()
        self._loop.rollback()
        self._auxiliary.rollback()

    def metric(self, **values: torch.Tensor | float | int) -> None:
        """Commit to numbers of this step, such as the loss, which an auditor must get too; inside a step."""
        self._loop.metric(**values)
