"""A training loop's steps, whoever listens: one path for trainer and auditor (architecture, "The seam")."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from vtrain.data.digest import batch_digests
from vtrain.engine import state
from vtrain.engine.backend import check_devices
from vtrain.engine.listener import Listener
from vtrain.engine.loops.arguments import check_one_process
from vtrain.engine.loops.metrics import one_number
from vtrain.engine.session import Session, bits
from vtrain.engine.state.extra import Extra, objects
from vtrain.engine.state.snapshot import PARTS, Snapshot
from vtrain.errors import StateError, UsageError
from vtrain.kernels.failures import told
from vtrain.policy import Policy

EVALUATION = "#evaluation"
"""The part of a batch that makes a step an evaluation, which changes no state."""
_EVALUATION_DIGEST = hashlib.sha256(b"vtrain-evaluation-v1").hexdigest()
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
        keeps: whether to keep a copy of the state after each step: for a loop with somebody's code between steps.

    Attributes:
        model: the model, once initialised.
        optimizer: the optimizer, once initialised; None if there is none.
        extra: other objects of the loop by name, once initialised.
        steps_done: number of the last finished step, evaluations counted.
        evaluations: how many of them were evaluations.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer | None

    def __init__(self, role: Role, policy: Policy, seed: int | str, *, keeps: bool = False) -> None:
        self._role = role
        self.session = Session(role, policy, seed)
        self.extra: dict[str, Any] = {}
        self.steps_done = -1
        self.evaluations = 0
        self._active = False
        self._versions: tuple[int, ...] = ()
        self._kept = Snapshot() if keeps else None
        self._failed = ""
        self._metrics: dict[str, str] = {}
        self._values: dict[str, float] = {}

    def initialise(self, model: Model, optimizer: Optimizer, extra: Extra = None, *, count: bool = True) -> None:
        """Step 0: make what is given as a factory, with auditable random numbers.

        Args:
            model: a module, or a function without arguments that makes one.
            optimizer: an optimizer, a function that makes one for the model, or None.
            extra: objects by name, or a function that makes them for the model and the optimizer.
            count: False makes the objects without a step of the run, for a state that is restored afterwards.

        Raises:
            UsageError: neither, or a model that is spread over processes.
        """

        def make() -> None:
            built = model if isinstance(model, torch.nn.Module) or not callable(model) else model()
            if not isinstance(built, torch.nn.Module):
                raise UsageError(
                    f"model is a {type(built).__name__}; want a torch.nn.Module or a function that makes one"
                )
            check_one_process(built)
            check_devices([*built.parameters(), *built.buffers()])
            self.model = built
            made = optimizer
            if made is not None and not isinstance(made, torch.optim.Optimizer) and callable(made):
                made = made(self.model)
            if made is not None and not isinstance(made, torch.optim.Optimizer):
                raise UsageError(f"optimizer is a {type(made).__name__}; want a torch.optim.Optimizer")
            self.optimizer = made
            self.extra = objects(extra, self.model, self.optimizer)

        if count:
            with self._counted(0, {}):
                make()
        else:
            make()

    def resume_at(self, step: int) -> None:
        """Go on after ``step``, the state having been restored."""
        self._keep()
        self._at(step)

    def _at(self, step: int) -> None:
        self.steps_done = step
        if self._kept is None:
            self._versions = state.versions(self.model, self.optimizer)

    def _keep(self) -> None:
        if self._kept is not None:
            self._kept.take(state.collect(self.model, self.optimizer))

    def files(self) -> state.Files:
        """The state after the last step: all tensors that the next one depends on."""
        return state.collect(self.model, self.optimizer) if self._kept is None else self._kept.files

    @told(lambda: "going back to the last step's end")
    def rollback(self) -> None:
        """Put model and optimizer back as the last finished step left them.

        Raises:
            DeviceMemoryError: there is not enough for it; it can be called again.
            UsageError: inside a step, or before the initialisation.
        """
        if self._active or self.steps_done < 0 or self._kept is None:
            raise UsageError("rollback() belongs between steps: after the `with run.step(...)` that failed")
        state.restore(state.as_bytes(self._kept.files), self.model, self.optimizer)
        self._failed = ""

    @contextlib.contextmanager
    def step(self, batch: Any = None, *, indices: Sequence[int] | None = None) -> Iterator[None]:
        """One optimizer step: everything inside is recorded, or replayed.

        Args:
            batch: any nest of tensors, arrays, numbers and texts: what the step is trained on.
            indices: numbers of its samples in the data set, if there is one.

        Raises:
            BatchError: the batch holds a NaN or something that can't be committed to.
            StateError: model or optimizer were changed since the last step, in any bit; names the tensors.
            UsageError: a step within a step, or before the initialisation.
        """
        with self._counted(self.steps_done + 1, self._digests(batch, indices)):
            yield

    @contextlib.contextmanager
    def evaluation(self, batch: Any = None, *, indices: Sequence[int] | None = None) -> Iterator[None]:
        """A step that changes no state, for metrics of held-out data: recorded, or replayed, like any other.

        Args:
            batch, indices: as for ``step``.

        Raises:
            StateError: it changed something; names the tensors.
            UsageError: the loop keeps no copy of its state, and as ``step``.
        """
        if self._kept is None:
            raise UsageError("evaluation(...) belongs into a loop of one's own: with record(...) as run")
        digests = self._digests(batch, indices) | {EVALUATION: _EVALUATION_DIGEST}
        with self._counted(self.steps_done + 1, digests, evaluation=True):
            yield
        self.evaluations += 1

    def _digests(self, batch: Any, indices: Sequence[int] | None) -> dict[str, str]:
        """The batch's digests, where a step may begin."""
        if self._active or self.steps_done < 0:
            raise UsageError("a step was begun inside another step" if self._active else "the run is not open")
        self._check_unchanged()
        digests = batch_digests(batch)
        if indices is not None:
            digests["#indices"] = _index_digest(indices)
        return digests

    @told(lambda: "comparing the state with that of the last step's end")
    def _check_unchanged(self) -> None:
        if self._kept is None:
            changed = ["model or optimizer"] if state.versions(self.model, self.optimizer) != self._versions else []
        else:
            whole = self._failed or getattr(self._role, "due", False)
            turn = None if whole else self.steps_done % PARTS
            changed = self._kept.changed(state.collect(self.model, self.optimizer), turn)
        if changed and self._failed:
            raise StateError(
                f"{self._failed} and left {_some(changed)} changed: call run.rollback() to go back to the end of step "
                f"{self.steps_done}, then begin a step again"
            )
        if changed:
            raise StateError(
                f"{_some(changed)} changed after step {self.steps_done} and outside run.step(...): an auditor could "
                "not repeat that; do it inside a step"
            )

    def _check_evaluated(self) -> None:
        assert self._kept is not None
        if changed := self._kept.changed(state.collect(self.model, self.optimizer)):
            raise StateError(
                f"the evaluation after step {self.steps_done} changed {_some(changed)}: call model.eval() and use "
                "torch.no_grad() before, or make it a run.step(...)"
            )

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
    def _counted(self, number: int, batch: dict[str, str], *, evaluation: bool = False) -> Iterator[None]:
        self._metrics, self._values, self._active = {}, {}, True
        try:
            with told(lambda: f"at the beginning of step {number}"):
                self._role.begin_step(number, batch)
            started = time.perf_counter()
            with self.session.step(number):
                yield
            seconds = time.perf_counter() - started
            with told(lambda: f"at the end of step {number}"):
                self._check_evaluated() if evaluation else self._keep()
        except BaseException as error:
            self._failed = f"step {number} failed half-way ({type(error).__name__})"
            raise
        finally:
            self._active = False
        self._failed = ""
        sites, program = self.session.sites()
        done = StepEnd(number, batch, self._metrics, self._values, sites, program, seconds)
        self._role.end_step(done, self.files)
        self._at(number)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _index_digest(indices: Sequence[int]) -> str:
    """Digest of sample indices as one int64 array."""
    return batch_digests(torch.tensor([int(i) for i in indices], dtype=torch.int64))[""]
