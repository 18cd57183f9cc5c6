"""What a loop has beyond its model and optimizer, and what going on from a checkpoint takes (protocol §3).

Hyperparameters that a schedule changed, ``extra`` objects (schedules, second optimizers, averages, scalers), and what
the model keeps in Python: counters in attributes, modes of layers, frozen parameters.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vtrain.engine.loops.loop import Loop
from vtrain.engine.state import attributes, nest
from vtrain.engine.state.snapshot import differing
from vtrain.errors import CheckpointError, StateError
from vtrain.kernels.failures import told

Tensor = torch.Tensor
UNKEPT = "unkept"  # in a checkpoint: whether the loop was seen to depend on something that is in none


def _keeping() -> str:
    return "keeping the extra objects' state"


class AuxiliaryState:
    """What one loop has beyond its model and optimizer.

    Args:
        loop: looked at when something is asked for; initialised by then.
        whole: whether to keep more than objects and hyperparameters; not for a program that sets up the rest itself.

    Attributes:
        unkept: whether the loop was seen to depend on something else.
        asked: called before it is said whether it was.
    """

    def __init__(self, loop: Loop, whole: bool = True) -> None:
        self._loop, self._whole = loop, whole
        self.unkept = False
        self.asked: Callable[[], None] = lambda: None
        self._begun: dict[str, dict[str, Any]] | None = None
        self._frozen: dict[str, bool] = {}
        self._marked: dict[str, Tensor] = {}
        self._before: set[str] = set()
        self._between: set[str] = set()
        self._inside: set[str] = set()

    # ---- all of it --------------------------------------------------------------------------------------------------
    def take(self) -> dict[str, Tensor]:
        """All of it as named tensors; those of ``extra`` objects are references.

        Raises:
            StateError: something in an ``extra`` object can't be kept; names it.
        """
        self._begin()
        self.asked()
        found = self.objects()
        parts: dict[str, Any] = {UNKEPT: self.unkept}
        if self._whole:
            parts |= {"attributes": self._changed(), "requires_grad": self._thawed(), "cleared": self._cleared()}
        for name, value in parts.items():
            found.update(nest.flatten(name, value))
        return found

    def _begin(self) -> None:
        """Remember how the model's Python attributes begin: only what changes is kept."""
        if self._begun is None:
            model = self._loop.model
            self._begun = {path: attributes.print_of(value) for path, value in attributes.values(model)}
            self._frozen = {name: p.requires_grad for name, p in model.named_parameters()}

    def objects(self) -> dict[str, Tensor]:
        """``extra`` objects and hyperparameters as named tensors, which are references.

        Raises:
            StateError: something in an ``extra`` object can't be kept; names it.
        """
        found: dict[str, Tensor] = {}
        for name, o in self._loop.extra.items():
            try:
                found.update(nest.flatten(_name(name), o.state_dict()))
                if numbers := _numbers(o):
                    found.update(nest.flatten(f"numbers.{nest.quote(name)}", numbers))
            except StateError as error:
                kind = type(o)
                raise StateError(
                    f"the state_dict() of extra[{name!r}], a {kind.__module__}.{kind.__qualname__}: {error}"
                ) from error
        groups = [{k: v for k, v in g.items() if k != "params" and nest.keepable(v)} for g in self._groups()]
        return found | dict(nest.flatten("groups", groups))

    def _groups(self) -> list[dict[str, Any]]:
        optimizer = self._loop.optimizer
        return [] if optimizer is None else optimizer.param_groups

    def _changed(self) -> dict[str, Any]:
        assert self._begun is not None
        own = attributes.own(self._loop.model, self._loop.optimizer)
        names = {id(t): name for name, t in own.items()}
        memory = {t.untyped_storage()._cdata for t in own.values() if attributes.has_memory(t)}
        found = {}
        for path, value in attributes.values(self._loop.model):
            if attributes.print_of(value) == self._begun.get(path):
                continue
            with contextlib.suppress(StateError):
                stands = attributes.with_references(value, names, memory)
                if nest.keepable(stands):
                    found[path] = stands
        return found

    def _thawed(self) -> dict[str, bool]:
        now = {name: p.requires_grad for name, p in self._loop.model.named_parameters()}
        return {name: flag for name, flag in now.items() if flag != self._frozen.get(name)}

    def _cleared(self) -> dict[str, bool]:
        """Gradients that the step left and that the program dropped (True) or zeroed (False) since."""
        left, parameters = self._loop.files().get("gradients", {}), dict(self._loop.model.named_parameters())
        grads = {name: parameters[name].grad for name in left if name in parameters}
        return {name: grad is None for name, grad in grads.items() if grad is None or not bool(grad.any())}

    def put(self, kept: Mapping[str, Tensor]) -> None:
        """Put back what ``take`` found.

        Raises:
            CheckpointError: it does not fit.
            StateError: it is not all that the loop depended on.
        """
        self._begin()
        if UNKEPT in {nest.root(name) for name in kept} and nest.rebuild(UNKEPT, kept):
            raise StateError(_UNKEPT)
        self._put_objects(kept)
        if not self._whole:
            return
        model = self._loop.model
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        self._put_attributes(nest.rebuild("attributes", kept), modules)
        for name, flag in nest.rebuild("requires_grad", kept).items():
            if name in parameters:
                parameters[name].requires_grad_(flag)
        for name, dropped in nest.rebuild("cleared", kept).items():
            p = parameters.get(name)
            if p is not None and p.grad is not None:
                p.grad = None if dropped else torch.zeros_like(p.grad)

    def set_otherwise(self, kept: Mapping[str, Tensor]) -> bool:
        """Whether hyperparameters are not those of ``kept``, by nobody's doing who is kept, such as a schedule's."""
        differ = _differing(kept, self.objects())
        return "groups" in differ and not differ & {_name(name) for name in self._loop.extra}

    def schedule_left_out(self) -> bool:
        """Whether one of torch's schedules leads the optimizer, and none that is kept."""
        optimizer = self._loop.optimizer
        if not self._whole or not hasattr(getattr(optimizer, "step", None), "_wrapped_by_lr_sched"):
            return False
        held = [v for o in self._loop.extra.values() for v in (o, *getattr(o, "__dict__", {}).values())]
        return not any(isinstance(v, torch.optim.lr_scheduler.LRScheduler) for v in held)

    def _put_attributes(self, found: Mapping[str, Any], modules: Mapping[str, torch.nn.Module]) -> None:
        own = attributes.own(self._loop.model, self._loop.optimizer)
        for path, stands in found.items():
            owner, _, key = path.rpartition(".")
            if owner not in modules:
                continue
            try:
                value = attributes.without_references(stands, own)
            except KeyError as error:
                raise CheckpointError(f"{path}: refers to {error}, which the model does not have") from error
            bound = getattr(getattr(modules[owner], key, None), "maxlen", None)
            setattr(modules[owner], key, deque(value, bound) if isinstance(value, deque) else value)

    def _put_objects(self, kept: Mapping[str, Tensor]) -> None:
        there = {nest.root(name) for name in kept}
        if missing := [name for name in self._loop.extra if _name(name) not in there]:
            raise CheckpointError(f"a checkpoint has no state of extra {', '.join(map(repr, missing))}")
        for name, o in self._loop.extra.items():
            o.load_state_dict(nest.rebuild(_name(name), kept))
            if (numbers := f"numbers.{nest.quote(name)}") in there:
                for key, t in nest.rebuild(numbers, kept).items():
                    setattr(o, key, t.to(getattr(getattr(o, key, None), "device", "cpu")))
        groups, mine = nest.rebuild("groups", kept), self._groups()
        if len(groups) != len(mine):
            raise CheckpointError(f"a checkpoint has {len(groups)} parameter groups, the optimizer {len(mine)}")
        for group, stored in zip(mine, groups, strict=True):
            group.update(stored)

    # ---- between steps ----------------------------------------------------------------------------------------------
    @told(_keeping)
    def mark(self) -> None:
        """A step ended: remember how it left things, to go back there and to see what is done after it."""
        now = self.objects()
        self._inside |= _differing(self._marked, now)
        self._marked = {name: _own(name, t) for name, t in now.items()}

    @told(_keeping)
    def before_step(self) -> None:
        """A step begins: what the program did since the last one, it does between steps."""
        now = self.objects()
        since = _differing(self._marked, now)
        if self._loop.steps_done == 0:
            self._before = since
        self._between |= since
        if since:
            self._marked.update({name: _own(name, t) for name, t in now.items() if nest.root(name) in since})

    def settled(self) -> bool:
        """Whether all that the program does after a step seems to be done: a checkpoint now would leave nothing out.

        What follows a step must have changed again. Where it is not to be told - of an object that nothing has changed
        yet, or where something changes before the first step, and so before each - it is not.
        """
        since = _differing(self._marked, self.objects())
        unknown = {_name(name) for name in self._loop.extra} - self._inside - since
        return since >= self._between and not unknown and not self._before

    @told(_keeping)
    def rollback(self) -> None:
        """Put ``extra`` objects and hyperparameters back as the last finished step left them."""
        self._put_objects({name: t.clone() for name, t in self._marked.items()})


_UNKEPT = (
    "the run can't be resumed: its steps depend on a tensor in a variable of the program's, of which record() warned "
    "and that no checkpoint holds; train anew with record(..., extra={name: object}) for the object that it belongs to"
)


def _own(name: str, t: Tensor) -> Tensor:
    """What nobody else writes to: a copy of a tensor; what says the rest of a nest was made for it."""
    return t if "#" in name else t.detach().clone()


def _differing(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> set[str]:
    """Names of the nests that are not as they were."""
    return {nest.root(name) for name in differing(before, now)}


def _name(extra: str) -> str:
    return f"extra.{nest.quote(extra)}"


def _numbers(o: Any) -> dict[str, Tensor]:
    """Single numbers that an object has as tensors: a gradient scaler makes its in the first step, and gives floats."""
    if isinstance(o, torch.nn.Module | torch.optim.Optimizer):
        return {}
    found = getattr(o, "__dict__", {})
    return {key: t for key, t in found.items() if type(t) is Tensor and t.numel() == 1 and not t.requires_grad}
