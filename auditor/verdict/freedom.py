"""Whether a trainer's decisions look like rounding errors, or like choices (numerics §9). Imports no torch.

Every logged value that lies within the certified bound is accepted. An honest trainer's value departs from the
auditor's own rounding only where the edge of a rounding interval lies between the two computed values y and y'. So the
auditor measures, for the decisions it examines, the distance d from y' to the edge on either side, and, in units of the
error scale s, how far two executions that differ as hardware differs come apart.

The null hypothesis, by kind of operation. An execution elsewhere differs from the auditor's by e. Its sign is
independent of where the edges lie, |e| / s is distributed as measured by the auditor, or SAFETY times that at most, and
decisions are independent of each other. Then a decision departs over an edge at distance d with probability

    1/2 P(|e| >= d) <= 1/2 G(d / (SAFETY s)),   G(x) = (1 + measured differences >= x and > 0) / (1 + all measured)

and the number of departures is a sum of independent 0-1 variables, whose upper tail is at most that of a Poisson
variable of the same mean from one above the mean on (Hoeffding 1956; Anderson and Samuels 1967). Where there is no
other order of summation to measure with, or sums are too short for one to show anything, G is the bound of Higham and
Mary (2019) for two executions: min(1, 4 exp(-x^2 / 2)), x = d / (2 sqrt(kappa) u s). What is measured bounds rare large
differences only by one over the number of measurements, which leaves room for a few choices among many decisions; the
model, which is part of the hypothesis, does not.

Three tails are taken: of the departures beyond _SURE units of the model, of those beyond SAFETY times the largest
difference seen, and of the others; a kind's p-value is three times the smallest, and the whole's the smallest of the
kinds' times their number (Bonferroni).

The tails that use what was measured take it for the true distribution, with one more difference added; so their
p-values are approximate, and too small where rare large differences are all of one size. The model's tail needs no
measurement.

Repairs are choices too, of a trainer that logs less than it should. They are known because they departed, so there is
no number of near ones to compare with. But few may lie far: of all values settled, each does with the model's
probability.

What a trainer says does not enter: neither calibrations in leaves, nor how many decisions it logged, since entries far
from any edge add nothing to the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vtrain.rounding.threshold import SAFETY

Histogram = npt.NDArray[np.int64]

# Ratios to the error scale are counted in bins of a quarter of an octave.
_PER_OCTAVE, _LEAST, _MOST = 4, -96, 16
BINS = (_MOST - _LEAST) * _PER_OCTAVE
_WIDER = math.ceil(math.log2(SAFETY) * _PER_OCTAVE)
FAR_REPAIRS = "far repairs"
EXCESS = 1e-6  # p-values below it are worth a note
_SURE = 6.0  # multiples of the model's unit beyond which, from the next bin on, a departure is no rounding error
_SURE_REPAIR = 8.0  # the same for repairs: all values settled could have departed, not only those in doubt


def bins(ratio: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Number of the bin that each ratio >= 0 falls into; the first bin is for 0 alone."""
    with np.errstate(divide="ignore"):
        place = np.floor((np.log2(ratio) - _LEAST) * _PER_OCTAVE)
    return np.where(ratio > 0, np.clip(place, 1, BINS - 1), 0).astype(np.int64)


def histogram(ratio: npt.NDArray[np.float64]) -> Histogram:
    """How many ratios fall into each bin."""
    return np.bincount(bins(ratio), minlength=BINS)


def _lower_edges() -> npt.NDArray[np.float64]:
    edges: npt.NDArray[np.float64] = np.exp2(_LEAST + np.arange(BINS) / _PER_OCTAVE)
    edges[:2] = 0.0
    return edges


def _none() -> Histogram:
    return np.zeros(BINS, np.int64)


@dataclass
class Tally:
    """What was counted of one kind of operation at one length of sum. Ratios are in units of the error scale.

    Attributes:
        sides: distances from the auditor's value to the edges on both sides, of every decision examined.
        extents: of the decisions that departed, how far the auditor's value was from the interval that was chosen.
        differences: between the auditor's value and another order of summation.
        entries: decisions examined.
        departures: those of them that are not the auditor's own rounding.
        unit: 2 sqrt(kappa) u, the largest met.
    """

    sides: Histogram = field(default_factory=_none)
    extents: Histogram = field(default_factory=_none)
    differences: Histogram = field(default_factory=_none)
    entries: int = 0
    departures: int = 0
    unit: float = 0.0

    def add(self, other: Tally) -> None:
        """Take in another part's."""
        self.sides = self.sides + other.sides
        self.extents = self.extents + other.extents
        self.differences = self.differences + other.differences
        self.entries += other.entries
        self.departures += other.departures
        self.unit = max(self.unit, other.unit)

    def expected(self, wider: int) -> float:
        """Mean number of departures if differences are ``wider`` bins larger than measured."""
        return float(self.sides @ self._tail(wider)) / 2

    def far(self) -> tuple[int, float]:
        """Departures beyond everything measured times SAFETY, and their mean number; 0 where nothing was."""
        measured = np.flatnonzero(self.differences)
        if not measured.size:
            return 0, 0.0
        reach = int(measured[-1]) + _WIDER
        return int(self.extents[reach + 1 :].sum()), self.entries / (1 + int(self.differences.sum()))

    def sure(self) -> tuple[int, float]:
        """Departures beyond _SURE units of the model, and their mean number by it."""
        return int(self.extents[_bin(_SURE * self.unit) + 1 :].sum()), self.entries * float(_model(_SURE))

    def _tail(self, wider: int) -> npt.NDArray[np.float64]:
        """G at each bin's lower edge, which is where it is largest."""
        total = int(self.differences.sum())
        if total:
            above = np.cumsum(self.differences[::-1])[::-1]
            at = np.maximum(np.arange(BINS) - wider, 1)  # executions that agree cross no edge, be it at distance 0
            return np.asarray((above[at] + 1.0) / (total + 1.0), np.float64)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return _model(np.nan_to_num(_lower_edges() / self.unit, nan=0.0))


def _model(x: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    """Bound of Higham and Mary on the probability that two executions differ by x units."""
    return np.asarray(np.minimum(1.0, 4.0 * np.exp(-np.square(x) / 2)), np.float64)


def _bin(ratio: float) -> int:
    return int(bins(np.array([ratio]))[0])


@dataclass(frozen=True)
class Kind:
    """What the decisions of one kind of operation look like.

    Attributes:
        kind: its name; FAR_REPAIRS for repairs that are far from the auditor's value, among all values settled.
        entries: decisions examined.
        departures: those that are not the auditor's own rounding.
        expected: how many the auditor's own differences predict.
        allowed: how many would be if differences were SAFETY times as large: the null hypothesis.
        p_value: how likely as many departures, or as many far ones, are under it.
    """

    kind: str
    entries: int
    departures: int
    expected: float
    allowed: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "kind": self.kind,
            "inDoubt": self.entries,
            "departures": self.departures,
            "expected": round(self.expected, 3),
            "allowed": round(self.allowed, 3),
            "pValue": self.p_value,
        }


class Freedom:
    """Decisions examined, by kind of operation and length of sum (``calibration_key``), and results that are 0 apart.

    A result is 0 where all terms are, as with ReLU; no order changes that, so such results say nothing about others.

    Attributes:
        tallies: by key.
        settled: values settled, in doubt or not.
        repaired: how far repaired values lay from the auditor's, in units of the model.
    """

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.settled = 0
        self.repaired = _none()

    def at(self, key: str) -> Tally:
        """The tally of a key, made where there is none."""
        return self.tallies.setdefault(key, Tally())

    def add(self, other: Freedom) -> None:
        """Take in another part's."""
        for key, tally in other.tallies.items():
            self.at(key).add(tally)
        self.settled += other.settled
        self.repaired = self.repaired + other.repaired

    def kinds(self) -> list[Kind]:
        """Each kind of operation that had decisions, and repairs if there were any."""
        return [*self._operations(), *self._repairs()]

    def _repairs(self) -> list[Kind]:
        if not self.repaired.any():
            return []
        far = int(self.repaired[_bin(_SURE_REPAIR) :].sum())
        mean = self.settled * float(_model(_SURE_REPAIR))
        return [Kind(FAR_REPAIRS, self.settled, far, mean, mean, poisson_tail(far, mean))]

    def _operations(self) -> list[Kind]:
        grouped: dict[str, list[Tally]] = {}
        for key, tally in sorted(self.tallies.items()):
            if tally.entries:
                grouped.setdefault(key.partition(":")[0], []).append(tally)
        return [_kind(name, tallies) for name, tallies in grouped.items()]

    def to_json(self) -> dict[str, Any]:
        """For machines: totals over operations, the combined p-value, and each kind."""
        by, operations = self.kinds(), self._operations()
        return {
            "inDoubt": sum(k.entries for k in operations),
            "departures": sum(k.departures for k in operations),
            "expected": round(sum(k.expected for k in operations), 3),
            "allowed": round(sum(k.allowed for k in operations), 3),
            "pValue": combined(by),
            "by": [k.to_json() for k in by],
        }

    def __str__(self) -> str:
        found = self.to_json()
        return (
            f"{found['inDoubt']:,} decisions examined: {found['departures']:,} departed, {found['expected']:,.1f} "
            f"expected, {found['allowed']:,.1f} allowed for; p = {found['pValue']:.2g}"
        )


def _kind(name: str, tallies: list[Tally]) -> Kind:
    allowed = sum(t.expected(_WIDER) for t in tallies)
    far, far_mean = (sum(column) for column in zip(*(t.far() for t in tallies), strict=True))
    sure, sure_mean = (sum(column) for column in zip(*(t.sure() for t in tallies), strict=True))
    departures = sum(t.departures for t in tallies)
    near = poisson_tail(departures - int(far), allowed)
    least = min(near, poisson_tail(int(far), far_mean), poisson_tail(int(sure), sure_mean))
    return Kind(
        name, sum(t.entries for t in tallies), departures, sum(t.expected(0) for t in tallies), allowed,
        min(1.0, 3.0 * least),
    )  # fmt: skip


def combined(by: list[Kind]) -> float:
    """The kinds' p-values as one: Bonferroni's, which needs no independence; 1 where there are none."""
    return min([1.0, *(len(by) * k.p_value for k in by)])


def excess(by: list[Kind]) -> str:
    """A note on kinds whose decisions depart more often than rounding explains; empty if none does."""
    if combined(by) >= EXCESS:
        return ""
    odd = [k for k in by if len(by) * k.p_value < EXCESS]
    what = "; ".join(f"{k.kind} {k.departures:,} of {k.entries:,}, {k.allowed:,.1f} allowed for" for k in odd)
    return (
        f"decisions depart from the auditor's rounding more often, or further, than rounding errors explain (p = "
        f"{combined(by):.1e}): {what}. Each lies within the bound, so none is a violation; either the trainer chose "
        "them, or its arithmetic errs more than the auditor's"
    )


def poisson_tail(count: int, mean: float) -> float:
    """P(X >= count) of a Poisson variable; 0.0 below the least float."""
    if count <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    if count <= mean:
        return 1.0 - _series(count - 1, mean, -1)
    return _series(count, mean, 1)


def _series(start: int, mean: float, step: int) -> float:
    """Sum of the probabilities of start, start + step, ..., which must fall; until they add nothing."""
    k = start
    term = math.exp(k * math.log(mean) - mean - math.lgamma(k + 1.0))
    total = 0.0
    while k >= 0 and term > total * 1e-17:
        total += term
        term *= mean / (k + 1) if step > 0 else k / mean
        k += step
    return min(1.0, total)
