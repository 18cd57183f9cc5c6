"""Looking at decisions as they are replayed: how near an edge each was, and which departed (numerics §9)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from auditor.verdict.freedom import Freedom, histogram
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.rounding import generic
from vtrain.rounding.accumulators import sampled
from vtrain.rounding.bounds import TENSOR_CORE, U
from vtrain.rounding.formats import Format
from vtrain.rounding.scale import Scale
from vtrain.rounding.threshold import LAMBDA, calibration_key

ZERO = ":zero"
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
# Decisions examined of one result, at random where there are more; differences measured at one result.
_MOST = 2048
# Every result of one operation is looked at up to this number, one in so many at random from there on.
_ALL, _ONE_IN = 32, 8
_BATCH = 1 << 14  # decisions that are judged in one go
# Sums up to this length have no order that shows what fused and unfused arithmetic would.
_SHORT = 3


class DecisionStatistics:
    """Counts for one replay. What it looks at, the trainer can't foresee: the draw is the auditor's own.

    Args:
        seed: decides the draw; empty for one that nobody knows.

    Attributes:
        freedom: what was counted; complete after ``flush``.
    """

    def __init__(self, seed: bytes = b"") -> None:
        self.freedom = Freedom()
        self._random = np.random.default_rng(list(hashlib.sha256(seed).digest() if seed else os.urandom(16)))
        self._seen: dict[str, int] = {}
        self._met: dict[str, int] = {}
        self._waiting: dict[tuple[str, Format], list[Floats]] = {}

    def examine(
        self, site: Site, y: torch.Tensor, out: torch.Tensor, scale: ScaleFn, vary: Vary | None,
        decided: Callable[[], npt.NDArray[np.int64]],
    ) -> None:  # fmt: skip
        """Count a settled result with decisions.

        Args:
            site: the result.
            y: the auditor's value in C; overwritten by ``vary`` if that is called.
            out: what it was settled to.
            scale: its error scale.
            vary: computes y in another order.
            decided: flat indices of its decisions.
        """
        seen = self._seen[site.name] = self._seen.get(site.name, 0) + 1
        if seen > _ALL and self._random.integers(_ONE_IN):
            return
        index, s = decided(), scale()
        key = calibration_key(s.kind, s.length, s.compute)
        if index.size > _MOST:
            index = np.unique(index[self._random.integers(0, index.size, _MOST)])
        where = torch.from_numpy(index).to(y.device)
        mine, taken = y.reshape(-1)[where].double(), out.reshape(-1)[where].double()
        columns = torch.stack([mine, taken, scale_at(s, where, mine)]).cpu().numpy()
        waiting = self._waiting.setdefault((key, site.fmt), [])
        waiting.append(columns)
        for tally in (self.freedom.at(key), self.freedom.at(key + ZERO)):
            tally.unit = max(tally.unit, unit_of(s))
        if sum(c.shape[1] for c in waiting) > _BATCH:
            self._judge(key, site.fmt)
        if (
            vary is not None
            and s.length > _SHORT
            and self._due(key, bool(((columns[0] == 0) & (columns[2] > 0)).any()))
        ):
            self._measure(key, s, y, vary, where)

    def _due(self, key: str, zero: bool) -> bool:
        """Whether to measure: at the first result of a kind, the 8th, the 64th, ...: a vanishing share of an audit."""
        due = False
        for name in (key, key + ZERO)[: 1 + zero]:
            met = self._met[name] = self._met.get(name, 0) + 1
            due |= met & (met - 1) == 0 and met.bit_length() % 3 == 1
        return due

    def repaired(self, site: Site, y: torch.Tensor, out: torch.Tensor, scale: ScaleFn, index: Integers) -> None:
        """Count elements in which the run's value was taken though no decision says so.

        Args:
            site, y, scale: as for ``examine``.
            out: the result with the run's values.
            index: flat indices of those.
        """
        s, where = scale(), torch.from_numpy(index).to(y.device)
        mine, taken = y.reshape(-1)[where].double(), out.reshape(-1)[where].double()
        unit = (unit_of(s) * scale_at(s, where, mine)).cpu().numpy()
        value, chosen, rounded = mine.cpu().numpy(), taken.cpu().numpy(), _rounded(mine, site.fmt)
        departed = np.isfinite(rounded) & np.isfinite(chosen) & (chosen != rounded)
        far = _apart(value[departed], chosen[departed], rounded[departed], site.fmt)
        self.freedom.repaired += histogram(_ratio(far, unit[departed]))

    def flush(self) -> None:
        """Judge what is still waiting."""
        for key, fmt in list(self._waiting):
            self._judge(key, fmt)

    def _judge(self, key: str, fmt: Format) -> None:
        waiting = self._waiting.pop((key, fmt))
        y, taken, s = np.concatenate(waiting, axis=1)
        mine = _rounded(torch.from_numpy(y), fmt)
        keep = np.isfinite(mine) & np.isfinite(taken)
        y, taken, s, mine = y[keep], taken[keep], s[keep], mine[keep]
        low, high = edges(mine, fmt)
        departed = taken != mine
        apart = _apart(y[departed], taken[departed], mine[departed], fmt)
        below, above = _ratio(y - low, s), _ratio(high - y, s)
        beyond = _ratio(apart, s[departed])
        for name, part in ((key, y != 0), (key + ZERO, y == 0)):
            tally = self.freedom.at(name)
            tally.sides += histogram(below[part]) + histogram(above[part])
            tally.extents += histogram(beyond[part[departed]])
            tally.entries += int(part.sum())
            tally.departures += int((part & departed).sum())

    def _measure(self, key: str, s: Scale, y: torch.Tensor, vary: Vary, decided: torch.Tensor) -> None:
        where = torch.cat([sampled(y.numel(), y.device), decided])
        mine = y.reshape(-1)[where].double()  # a copy: y may live in scratch memory that `vary` uses too
        scale = scale_at(s, where, mine)
        other = vary().reshape(-1)[where].double()
        used = (scale > 0) & scale.isfinite() & mine.isfinite() & other.isfinite()
        ratio = ((mine - other).abs()[used] / scale[used]).cpu().numpy()
        zero = (mine[used] == 0).cpu().numpy()
        self.freedom.at(key).differences += histogram(ratio[~zero])
        self.freedom.at(key + ZERO).differences += histogram(ratio[zero])


def unit_of(s: Scale) -> float:
    """2 sqrt(kappa) u: the model's unit for the difference of two executions, in units of the error scale.

    On matrix units, whose errors have a direction, no such model holds: a sixth of the certified width.
    """
    if s.compute == TENSOR_CORE:
        return 2.0 * float(s.kappa) * U[s.compute] / LAMBDA
    return 2.0 * float(s.kappa) ** 0.5 * U[s.compute]


def _rounded(y: torch.Tensor, fmt: Format) -> Floats:
    return generic.round_to(y, fmt).double().cpu().numpy()


def _apart(y: Floats, taken: Floats, mine: Floats, fmt: Format) -> Floats:
    """How far y is from the interval of what rounds to ``taken``, which is not ``mine``, what y rounds to."""
    low, high = edges(taken, fmt)
    return np.where(taken > mine, low - y, y - high)


def _ratio(distance: Floats, s: Floats) -> Floats:
    """distance / s; infinite where s is 0, so that nothing honest could differ."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(distance, 0.0) / s
    return np.where(s > 0, ratio, np.inf)


def edges(value: Floats, fmt: Format) -> tuple[Floats, Floats]:
    """Ends of the interval of numbers that round to each finite value of a format; exact in float64."""
    a = np.abs(value)
    exponent = np.where(a > 0, np.frexp(a)[1] - 1, fmt.emin)
    exponent = np.maximum(exponent, fmt.emin)
    half = np.ldexp(0.5, exponent - fmt.p + 1)
    # Below a power of two values lie twice as close, unless they are subnormal.
    power = (a == np.ldexp(1.0, exponent)) & (exponent > fmt.emin)
    inner, outer = a - np.where(power, half / 2, half), a + half
    return np.where(value < 0, -outer, inner), np.where(value < 0, -inner, outer)


def scale_at(scale: Scale, where: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """s of the elements with flat indices ``where`` and values ``y``, float64: ``Scale.dense`` for a few."""
    if scale.relative:
        return y.abs()
    if scale.full is not None:
        return scale.full.reshape(-1)[where]
    _, rows, cols = scale.shape
    column = where % cols
    s = torch.ones_like(y)
    if scale.row is not None:
        s = s * scale.row.reshape(-1)[where // cols]
    if scale.col is not None:
        s = s * scale.col.reshape(-1)[where // (rows * cols) * cols + column]
    return s if scale.bias is None else s + scale.bias.reshape(-1)[column]
