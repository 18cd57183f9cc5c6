"""Tracing a step: the listener that makes a party to a dispute (protocol §8.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from auditor.audit.listener import Repairs, Replayer
from auditor.dispute.commitment import columns_digest
from auditor.dispute.terms import FUNCTIONS
from vtrain.commit.blocks import Blocks
from vtrain.commit.digest import TensorBytes
from vtrain.commit.trace import Event
from vtrain.engine import state
from vtrain.engine.decisions import Decisions
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.engine.loops.loop import Loop, StepEnd
from vtrain.engine.state.tensors import DTYPES
from vtrain.engine.state.tensors import tensor_bytes as state_tensor_bytes
from vtrain.errors import Refuted
from vtrain.rounding.bounds import eta_certified, tau_certified
from vtrain.rounding.scale import Scale

Tensors = Mapping[str, torch.Tensor]
Doubt = Callable[[], tuple[torch.Tensor, torch.Tensor]]  # y and w, float64, flat


class Sink(Protocol):
    """What becomes of a trace's events.

    Attributes:
        keeps: whether it keeps tensors, and not only their digests.
    """

    keeps: bool

    def wants(self, ahead: bool = False) -> bool:
        """Whether the next event is wanted; one that is not is only counted, which spares its digests.

        Args:
            ahead: asks, before an operation runs, about the operation's own event, which follows those inside it.
        """
        ...

    def event(self, event: Event, inputs: Tensors, outputs: Tensors, doubt: Doubt | None = None) -> None:
        """The next event, with the tensors that its digests are of; they change once this returns.

        Args:
            doubt: for a settled result, computes what it was before rounding and the certified half-width around it.
        """
        ...


class Tracer(Replayer):
    """Replays a run's steps by its log, as an auditor does, and gives every operation of some steps to a sink.

    Nothing is compared with the run's leaves: a party says what it computes. A logged decision that lies outside the
    certified bound is not taken; the party's own rounding stands in its place, and shows as a difference.

    Args:
        evidence, scalar_ulps: as for ``Replayer``.
        repairs: as for ``Replayer``; may grow.

    Attributes:
        loop: whose state the trace begins and ends with; to be set before the first step.
        sink: where events of the current step go; None traces nothing.
        batch: digests of the current step's batch.
    """

    loop: Loop
    judges = False

    def __init__(self, evidence: Any, scalar_ulps: int, repairs: Repairs | None = None) -> None:
        super().__init__(evidence, scalar_ulps, repairs)
        self.sink: Sink | None = None

    # ---- steps ----------------------------------------------------------------------------------------------------
    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        """Open the step's log; the first event."""
        self._open(step)
        if self.sink is not None and self.sink.wants():
            before = {"state": self._state()} if step else {}
            self.sink.event(Event("begin", f"step {step}", outputs={**before, **_prefixed("batch", batch)}), {}, {})

    def _open(self, step: int) -> None:
        if step > self._evidence.last_step:
            raise Refuted(step, "steps", f"the run ends at step {self._evidence.last_step}")
        log = self._evidence.log(step)
        self._sites = self._evidence.sites(step)
        self._decisions = Decisions(log)
        self._scalars, self._used = log.scalars.view("<f8").tolist(), 0

    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        """The last event."""
        if self.sink is not None and self.sink.wants():
            after = {"state": state.digest(files()).text, "sites": done.sites}
            outputs = {**after, **_prefixed("metric", done.metrics)}
            self.sink.event(Event("end", f"step {done.step}", outputs=outputs), {}, {})

    def _state(self) -> str:
        return state.digest(self.loop.files()).text

    # ---- the listener ---------------------------------------------------------------------------------------------
    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """One's own host scalar, whatever the run has."""
        return value

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Round y by the log, with repairs; an event."""
        log = self._decisions.columns(site.seq)
        out, found, _ = self._decisions.settle(site, y, scale)
        if found is not None and found.fault:
            out = Decisions.empty().settle(site, y, scale)[0]
        out = self._repaired(site, out)
        if self.sink is not None and self.sink.wants():
            self._site(site, out, log, lambda: doubt_of(y, scale()))
        return out

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """An event; without tensors, as the operation around it has them, unless elements have a definition."""
        if self.sink is None or not self.sink.wants():
            return
        if site.definition is not None:
            self._site(site, out, None)
        else:
            self.sink.event(Event("site", str(site), {"seq": site.seq, "signed": site.signed}), {}, {})

    def _site(self, site: Site, out: torch.Tensor, log: Mapping[str, bytes] | None, doubt: Doubt | None = None) -> None:
        assert self.sink is not None
        definition = None if site.definition is None else site.definition()
        if definition is not None and definition.kind == "function" and definition.params["name"] not in FUNCTIONS:
            definition = None  # a function that no referee knows
        operands = {} if definition is None else {n: t.detach() for n, t in definition.operands.items()}
        exactly = None if definition is None else {"kind": definition.kind, "params": dict(definition.params)}
        args = {"seq": site.seq, "signed": site.signed, "definition": exactly}
        given = {n: blocks_of_tensor(t).digest for n, t in operands.items()}
        made = {"value": blocks_of_tensor(out).digest, **({} if log is None else {"log": columns_digest(log)})}
        self.sink.event(Event("site", str(site), args, given, made), operands, {"value": out}, doubt)

    def operation(self, name: str, run: Callable[[tuple, dict], Any], args: tuple, kwargs: dict) -> Any:
        """Run an operation; an event with its arguments as they were before it."""
        if self.sink is None:
            return run(args, kwargs)
        given: dict[str, torch.Tensor] = {}
        plain = {"args": plain_arguments(args, given, ""), "kwargs": plain_arguments(kwargs, given, "")}
        wanted = self.sink.wants(ahead=True)
        if wanted and self.sink.keeps:
            given = {n: t.clone() for n, t in given.items()}  # the operation may overwrite them
        inputs = {n: blocks_of_tensor(t).digest for n, t in given.items()} if wanted else {}
        out = run(args, kwargs)
        if ".empty" in name or ".new_empty" in name:
            out.zero_()  # memory that was never written would differ from one replay to the next
        if _moves(name, args, out):
            return out
        if self.sink.wants():
            results: dict[str, torch.Tensor] = {}
            plain_arguments(out, results, "")
            event = Event("op", name, plain, inputs, {n: blocks_of_tensor(t).digest for n, t in results.items()})
            self.sink.event(event, given, results)
        return out


def _moves(name: str, args: tuple, out: Any) -> bool:
    """Whether an operation only took a tensor to another device: no operation where it is there already."""
    return name == "aten._to_copy.default" and out.dtype is args[0].dtype and out.device != args[0].device


def doubt_of(y: torch.Tensor, scale: Scale) -> tuple[torch.Tensor, torch.Tensor]:
    """A result before rounding, and the certified half-width that separates two faithful ones (numerics §5)."""
    if scale.empty is not None:
        scale = scale.refined(y)  # sums of zeros are zero on any hardware
    w = scale.width(y, tau_certified(scale.kappa, scale.compute), eta_certified(scale.kappa, scale.compute))
    return y.reshape(-1).double(), w.reshape(-1)


def blocks_of_tensor(t: torch.Tensor) -> Blocks:
    """A tensor's blocks."""
    return Blocks(tensor_bytes(t))


def tensor_bytes(t: torch.Tensor) -> TensorBytes:
    """A tensor as digests see it; dtypes that no state has are taken as their bytes."""
    if t.dtype not in DTYPES:
        t = torch.view_as_real(t) if t.is_complex() else t.contiguous().view(torch.uint8)
    return state_tensor_bytes(t)


def _prefixed(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}:{name}": value for name, value in values.items()}


def plain_arguments(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """Arguments as JSON without floats; tensors by name, and put into ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, dict):
        return {
            "dict": {str(k): plain_arguments(v, tensors, f"{path}.{k}".strip(".")) for k, v in sorted(value.items())}
        }
    if isinstance(value, list | tuple):
        return [plain_arguments(v, tensors, f"{path}.{i}".strip(".")) for i, v in enumerate(value)]
    if isinstance(value, float):
        return {"float": value.hex() if math.isfinite(value) else repr(value)}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, torch.device):
        return {"text": "cpu"}  # each party has its own, and a referee the CPU
    if isinstance(value, int):
        return {"int": str(value)}
    return {"text": str(value)[:200]}
