"""Threshold policies: how wide an interval counts as in doubt (numerics §3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vtrain.errors import JobError
from vtrain.rounding.bounds import INFLATE, TENSOR_CORE, U, eta_certified, tau_certified

KINDS = ("certified", "mixed", "adaptive", "statistical", "fixed", "off")
ADAPTING = ("mixed", "adaptive")  # those that calibrate
LAMBDA = 6.0  # Higham and Mary 2019: probability of a miss below 2 exp(-lambda^2 / 2) a value
SAFETY = 4.0  # on the largest difference that calibration saw


def calibration_key(kind: str, length: int, compute: str) -> str:
    """Name under which an adaptive threshold is calibrated: kind of operation, binade of its length, and C.

    C is part of it because one operation may have two: what float64 was seen to differ by says nothing about float32.
    """
    return f"{kind}:2^{max(0, length - 1).bit_length()}:{compute}"


@dataclass(frozen=True)
class Threshold:
    """A policy for tau.

    Attributes:
        kind: one of KINDS.
        value: tau itself for ``fixed``; unused otherwise.
        table: calibrated tau by calibration_key, for ``adaptive`` and ``mixed``.
    """

    kind: str
    value: float = 0.0
    table: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise JobError(f"threshold is {self.kind!r}, want one of {', '.join(KINDS)} or a number")
        if self.kind == "fixed" and not (math.isfinite(self.value) and self.value >= 0):
            raise JobError(f"threshold is {self.value!r}, want a finite number >= 0")

    def adapts(self, container: str) -> bool:
        """Whether results in tensors of this dtype have adaptive widths: ``mixed`` certifies those of float32."""
        return self.kind == "adaptive" or (self.kind == "mixed" and container != "float32")

    def width(
        self, kind: str, length: int, kappa: float, compute: str, container: str = "float32"
    ) -> tuple[float, float] | None:
        """``(tau, eta)`` of an operation, or None if nothing is to be logged.

        Args:
            kind: kind of operation, as in calibration_key.
            length: length of its sums; 1 for an elementwise function.
            kappa: its certified constant.
            compute: dtype name of C.
            container: dtype name of the result's tensor.
        """
        if self.kind == "off":
            return None
        if self.kind == "fixed":
            return self.value, 0.0
        certified = tau_certified(kappa, compute)
        eta = eta_certified(kappa, compute)
        if self.kind == "certified" or (self.kind == "mixed" and not self.adapts(container)) or length <= 1:
            return certified, eta
        # Errors of cutting have a direction: on matrix units no model makes the certified width smaller.
        modelled = math.inf if compute == TENSOR_CORE else 2.0 * LAMBDA * math.sqrt(kappa) * U[compute] * INFLATE
        statistical = min(certified, modelled)
        if self.kind == "statistical":
            return statistical, eta
        # A kind that calibration never met falls back to the statistical width: wider, never narrower.
        return min(statistical, self.table.get(calibration_key(kind, length, compute), statistical)), eta


def parse_threshold(value: str | float | int) -> Threshold:
    """A threshold from what a user writes: a policy's name, or a number for a fixed tau.

    Raises:
        JobError: neither.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise JobError(f"threshold is {value!r}, want one of {', '.join(KINDS)} or a number")
    if isinstance(value, str):
        if value == "fixed":
            raise JobError("threshold is 'fixed' without a number; write the number itself")
        return Threshold(value)
    return Threshold("fixed", float(value))
