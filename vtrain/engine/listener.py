"""The seam between the engine and whoever listens to it: recorder, replayer or nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vtrain.engine.definition import DefinitionFn
from vtrain.engine.workspace import result
from vtrain.kernels import canonical
from vtrain.kernels import round_to as round_on_host
from vtrain.kernels.device import has_kernels
from vtrain.rounding import generic
from vtrain.rounding.formats import Format
from vtrain.rounding.scale import Scale


@dataclass(frozen=True, slots=True)
class Site:
    """A settled result's place in a step (numerics §6).

    Attributes:
        step: step number; 0 is the initialisation.
        seq: number of the settled result within the step.
        name: operation, and what part of it where it settles several results.
        shape: shape of the result.
        fmt: format that it is rounded to.
        signed: whether the sign of a zero is part of the result. A sum's is not: libraries that start it from its first
            term and those that start it from +0 give other signs where all terms are zero; so such a zero is +0.
        canonical: whether its arithmetic has one defined order, so that there is nothing to settle.
        definition: gives what the exact result is a function of, for a dispute; None where it has no such form.
    """

    step: int
    seq: int
    name: str
    shape: tuple[int, ...]
    fmt: Format
    signed: bool = True
    canonical: bool = False
    definition: DefinitionFn | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        kind = " canonical" if self.canonical else ""
        return f"{self.name}{kind} {self.fmt.name}{list(self.shape)}"


Vary = Callable[[], torch.Tensor]


class ScaleFn(Protocol):
    """Computes a scale when somebody needs it: a replayer rarely does."""

    def __call__(self) -> Scale: ...


class Listener(Protocol):
    """What a role does with each varying result. One per run; called in site order."""

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Round y, computed in C, to ``site.fmt``; same shape, contiguous.

        ``vary`` computes y once more in another order of summation, as other hardware would; for calibration.
        """
        ...

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """A canonical result, out, was computed: every machine has the same bits, if it walks the same sites."""
        ...

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """The float64 host scalar to use in place of ``value`` (numerics §2).

        ``plain``: it is an operand of plain arithmetic, which rounds it to float32 first.
        """
        ...


class OperationListener(Listener, Protocol):
    """A listener that also sees whole operations: a party to a dispute, which traces them."""

    def operation(self, name: str, run: Callable[[tuple, dict], Any], args: tuple, kwargs: dict) -> Any:
        """Run an operation, ``run(args, kwargs)``, and give its result."""
        ...


def round_result(y: torch.Tensor, fmt: Format, signed: bool = True) -> torch.Tensor:
    """Round y to ``fmt`` in a new tensor, without a log."""
    if y.is_cpu:
        return round_on_host(y, result(y.shape, generic.container(fmt)), fmt, signed)
    if has_kernels(y.device):
        return canonical.round_to(y, fmt, signed)
    return generic.round_to(y, fmt, signed)


class Plain:
    """Rounds and logs nothing: a run that nobody audits, and the ``off`` threshold's twin."""

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        return round_result(y, site.fmt, site.signed)

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        pass

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        return value
