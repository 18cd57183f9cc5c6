"""A training loop's steps, whoever listens: one path for trainer and auditor (architecture, "The seam")."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from vtrain.data.digest import batch_digests
from vtrain.engine import state
from vtrain.engine.listener import Listener
from vtrain.engine.metrics import one_number
from vtrain.engine.session import Session, bits
from vtrain.errors import StateError, UsageError
from vtrain.policy import Policy

Model: TypeAlias = torch.nn.Module | Callable[[], torch.nn.Module]
Optimizer: TypeAlias = torch.optim.Optimizer | Callable[[torch.nn.Module], torch.optim.Optimizer] | None


@dataclass(frozen=True)
class StepEnd:
    """What a finished step gives to its role.

    Attributes:
        step: its number; 0 is the initialisation.
        batch: digest of each part of the batch by path.
        metrics: bits of each metric by name.
        values: the metrics as numbers, for people.
        sites: SHA-256 of the sequence of sites.
        program: that sequence, canonical JSON.
        seconds: how long it took.
    """

    step: int
    batch: dict[str, str]
    metrics: dict[str, str]
    values: dict[str, float]
    sites: str
    program: bytes
    seconds: float


class Role(Listener, Protocol):
    """A listener that also hears of steps."""

    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        """A step begins, with the batch of these digests."""
        ...

    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        """A step ended; ``files`` collects the state after it."""
        ...


class Loop:
    """The steps of a run around a model and an optimizer.

    Args:
        role: who listens.
        policy: precision.
        seed: of all random numbers drawn inside steps.

    Attributes:
        model: the model, once initialised.
        optimizer: the optimizer, once initialised; None if there is none.
        steps_done: number of the last finished step.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer | None

    def __init__(self, role: Role, policy: Policy, seed: int | str) -> None:
        self._role = role
        self.session = Session(role, policy, seed)
        self.steps_done = -1
        self._active = False
        self._versions: tuple[int, ...] = ()
        self._metrics: dict[str, str] = {}
        self._values: dict[str, float] = {}

    def initialise(self, model: Model, optimizer: Optimizer, *, count: bool = True) -> None:
        """Step 0: make what is given as a factory, with auditable random numbers.

        Args:
            model: a module, or a function without arguments that makes one.
            optimizer: an optimizer, a function that makes one for the model, or None.
            count: False makes the objects without a step of the run, for a state that is restored afterwards.

        Raises:
            UsageError: neither.
        """

        def make() -> None:
            built = model if isinstance(model, torch.nn.Module) or not callable(model) else model()
            if not isinstance(built, torch.nn.Module):
                raise UsageError(
                    f"model is a {type(built).__name__}; want a torch.nn.Module or a function that makes one"
                )
            self.model = built
            made = optimizer
            if made is not None and not isinstance(made, torch.optim.Optimizer) and callable(made):
                made = made(self.model)
            if made is not None and not isinstance(made, torch.optim.Optimizer):
                raise UsageError(f"optimizer is a {type(made).__name__}; want a torch.optim.Optimizer")
            self.optimizer = made

        if count:
            with self._counted(0, {}):
                make()
        else:
            make()

    def resume_at(self, step: int) -> None:
        """Go on after ``step``, the state having been restored."""
        self.steps_done = step
        self._versions = state.versions(self.model, self.optimizer)

    def files(self) -> state.Files:
        """The state: all tensors that the next step depends on."""
        return state.collect(self.model, self.optimizer)

    @contextlib.contextmanager
    def step(self, batch: Any = None, *, indices: Sequence[int] | None = None) -> Iterator[None]:
        """One optimizer step: everything inside is recorded, or replayed.

        Args:
            batch: any nest of tensors, arrays, numbers and texts: what the step is trained on.
            indices: numbers of its samples in the data set, if there is one.

        Raises:
            BatchError: the batch holds a NaN or something that can't be committed to.
            StateError: model or optimizer were changed since the last step.
            UsageError: a step within a step, or before the initialisation.
        """
        if self._active or self.steps_done < 0:
            raise UsageError("a step was begun inside another step" if self._active else "the run is not open")
        if state.versions(self.model, self.optimizer) != self._versions:
            raise StateError(
                f"model or optimizer state was changed after step {self.steps_done} and outside run.step(...): "
                "an auditor could not repeat that; do it inside a step"
            )
        digests = batch_digests(batch)
        if indices is not None:
            digests["#indices"] = _index_digest(indices)
        with self._counted(self.steps_done + 1, digests):
            yield

    def metric(self, **values: torch.Tensor | float | int) -> None:
        """Commit to numbers of this step, such as ``loss``: the auditor must get the same bits.

        Raises:
            UsageError: not inside a step, or not one real number.
        """
        if not self._active:
            raise UsageError("metric(...) belongs inside a step")
        for name, given in values.items():
            value = one_number(name, given)
            self._metrics[name] = bits(value)
            self._values[name] = float(value.detach()) if isinstance(value, torch.Tensor) else float(value)

    @contextlib.contextmanager
    def _counted(self, number: int, batch: dict[str, str]) -> Iterator[None]:
        self._metrics, self._values, self._active = {}, {}, True
        self._role.begin_step(number, batch)
        started = time.perf_counter()
        try:
            with self.session.step(number):
                yield
        finally:
            self._active = False
        seconds = time.perf_counter() - started
        sites, program = self.session.sites()
        done = StepEnd(number, batch, self._metrics, self._values, sites, program, seconds)
        self._role.end_step(done, self.files)
        self.resume_at(number)


class OpenRun:
    """What the body of ``with record(...)`` or ``with replay(...)`` gets: one loop serves both."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def model(self) -> torch.nn.Module:
        """The model."""
        return self._loop.model

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, or None."""
        return self._loop.optimizer

    @property
    def steps_done(self) -> int:
        """Number of the last finished step; more than 0 at the start of a resumed run."""
        return self._loop.steps_done

    def step(
        self, batch: Any = None, *, indices: Sequence[int] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """One optimizer step on ``batch``, any nest of tensors: everything inside is recorded, or replayed.

        A difference found in a replay ends the ``with replay(...)`` block, without an exception for the caller.

        Raises:
            BatchError: the batch holds a NaN or something that can't be committed to.
            StateError: model or optimizer were changed since the last step.
            UnsupportedOperation: (inside) an operation that the table does not know or forbids.
        """
        return self._loop.step(batch, indices=indices)

    def metric(self, **values: torch.Tensor | float | int) -> None:
        """Commit to numbers of this step, such as the loss, which an auditor must get too; inside a step."""
        self._loop.metric(**values)


def _index_digest(indices: Sequence[int]) -> str:
    """Digest of sample indices as one int64 array."""
    return batch_digests(torch.tensor([int(i) for i in indices], dtype=torch.int64))[""]
