"""Adaptive thresholds: how far executions that differ as hardware differs come apart (numerics §3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vtrain.rounding.scale import Scale
from vtrain.rounding.threshold import SAFETY, calibration_key


class Calibration:
    """Largest difference seen, in units of the error scale, by kind of operation and length of its sums.

    The paper searches, by bisection, the smallest threshold that misses no divergence. A divergence needs a rounding
    boundary between two executions' values, so a threshold of the largest |y - y'| / s misses none; it is reached
    directly, without a search, and does not depend on where the boundaries happened to lie.

    Args:
        seen: differences to start with.
    """

    def __init__(self, seen: Mapping[str, float] | None = None) -> None:
        self._largest: dict[str, float] = dict(seen or {})

    def observe(self, scale: Scale, y: torch.Tensor, other: torch.Tensor) -> None:
        """Compare two executions of one operation, in C."""
        self.merge(calibration_key(scale.kind, scale.length, scale.compute), largest_difference(scale, y, other))

    def merge(self, key: str, difference: float) -> None:
        """Take in a difference seen elsewhere, such as under another instruction set."""
        self._largest[key] = max(self._largest.get(key, 0.0), difference)

    def seen(self) -> dict[str, float]:
        """Largest differences by key; only kinds that differed at all."""
        return {key: value for key, value in sorted(self._largest.items()) if value > 0.0}


def thresholds(seen: Mapping[str, float], safety: float = SAFETY) -> dict[str, float]:
    """tau by key: the largest difference times a safety factor."""
    return {key: value * safety for key, value in seen.items()}


def largest_difference(scale: Scale, y: torch.Tensor, other: torch.Tensor) -> float:
    """max |y - other| / s over elements with a positive, finite scale."""
    return largest_ratio(y.reshape(-1).double() - other.reshape(-1).double(), scale.dense(y).reshape(-1))


def largest_ratio(d: torch.Tensor, s: torch.Tensor) -> float:
    """max |d| / s where s is positive and both are finite; 0 where there is none."""
    ratio = torch.where((s > 0) & s.isfinite() & d.isfinite(), d.abs() / s, torch.zeros_like(d))
    return float(ratio.max()) if ratio.numel() else 0.0
