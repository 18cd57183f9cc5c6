"""Every float32 through a canonical function, against the exact values (numerics §3).

``python -m benchmarks.exhaust [--parts N] [function ...]``; all of a function's 2^32 inputs take from one to five
minutes on two cores.

Three kinds of inputs, by the kernel's float64 result w, which errs by less than ``UNITS`` units in its last place:

- w is further than that from every number of at most 25 significant bits. Between those no format of up to 24 bits
  changes its value, so the rounding of w is the rounding of f(x).
- f(x) lies so near to x, or to a number such as 1, that all formats are decided by an inequality (``Near``).
- What is left, the hard cases, mpmath decides.

The float32 result, which need not have been computed from w, must be what they say in every bit. So must w, rounded to
every other format: results for those are made from it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from vtrain import kernels
from vtrain.kernels import canonical
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format, target_in_float32
from vtrain.rounding.functions import CORRECT, value
from vtrain.rounding.naive import round_fraction

ALL = 1 << 32
BLOCK = 1 << 17  # inputs at once: what the caches hold
UNITS = 4  # the kernels promise 1 (math/)
BITS = 28  # that a double has behind the 25th significant one
FORMATS = (*(target_in_float32("float32", p) for p in range(8, 25)), BFLOAT16, FLOAT16)


@dataclass(frozen=True)
class Near:
    """Inputs whose f(x) is within 2^-26 of ``limit``, relatively: what float32 rounds to it.

    Attributes:
        where: the inputs, of magnitudes.
        limit: the number; None means x itself.
        above: of x itself: whether |f(x)| > |x|, for x > 0 and for x < 0. No format may take f(x) for x where x lies
            half-way between two of its values. The other limits are numbers of one bit, which do so in no format.
    """

    where: tuple[float, float]
    limit: float | None
    above: tuple[bool, bool] = (False, False)

    def holds(self, x: torch.Tensor) -> torch.Tensor:
        """Which of float32 inputs are meant."""
        return (x >= self.where[0]) & (x <= self.where[1])

    def wrong(self, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Which results y (float32) and w (float64) are not as they must be."""
        wide = x.double()
        near = wide if self.limit is None else torch.full_like(wide, self.limit)
        bad = (y.double() != near) | ((w - near).abs() > near.abs() * 2.0**-26)
        if self.limit is not None:
            return bad
        away = torch.where(x > 0, *(torch.tensor(2.0 * side - 1, dtype=torch.float64) for side in self.above))
        return (bad | ((w.abs() - wide.abs()) * away <= 0)) & (x != 0)


def _around(limit: float | None, width: float, above: tuple[bool, bool] = (False, False)) -> Near:
    return Near((-width, width), limit, above)


_OUT, _IN, INF = (True, True), (False, False), math.inf
# e^x - 1 = x + x^2/2 + ...; sin x = x - x^3/6 + ...; 1 - erf 4.2 = 2.9e-9; 2^-26 is 1.5e-8.
NEAR: dict[str, tuple[Near, ...]] = {
    "exp": (_around(1, 2.0**-27),),
    "exp2": (_around(1, 2.0**-27),),
    "expm1": (_around(None, 2.0**-26, (True, False)), Near((-INF, -19), -1)),
    "log1p": (_around(None, 2.0**-26, (False, True)),),
    "tanh": (_around(None, 2.0**-13, _IN), Near((10, INF), 1), Near((-INF, -10), -1)),
    "sigmoid": (_around(0.5, 2.0**-26), Near((19, INF), 1)),
    "erf": (Near((4.2, INF), 1), Near((-INF, -4.2), -1)),
    "erfc": (_around(1, 2.0**-28), Near((-INF, -4.2), 2)),
    "sin": (_around(None, 2.0**-13, _IN),),
    "cos": (_around(1, 2.0**-13),),
    "tan": (_around(None, 2.0**-13, _OUT),),
    "asin": (_around(None, 2.0**-13, _OUT),),
    "atan": (_around(None, 2.0**-13, _IN),),
    "sinh": (_around(None, 2.0**-13, _OUT),),
    "cosh": (_around(1, 2.0**-13),),
    "asinh": (_around(None, 2.0**-13, _IN),),
    "atanh": (_around(None, 2.0**-13, _OUT),),
}


@dataclass
class Found:
    """What a sweep found.

    Attributes:
        name: the function.
        inputs: how many were tried.
        hard: inputs that mpmath decided.
        differences: inputs and what is wrong there.
    """

    name: str
    inputs: int = 0
    hard: int = 0
    differences: list[str] = field(default_factory=list)


def blocks(parts: int = 1) -> Iterator[torch.Tensor]:
    """All float32 numbers, or a ``parts``-th of them: blocks evenly spread over signs, binades and mantissas."""
    step = max(1, parts)
    for start in range(0, ALL, BLOCK * step):
        yield torch.arange(start, start + BLOCK * step, step).to(torch.int32).view(torch.float32)


def sweep(name: str, parts: int = 1) -> Found:
    """Try a function on all inputs, or on every ``parts``-th one (an odd number, so that no bits are left out)."""
    found = Found(name)
    for x in blocks(parts):
        tried(found, x)
    return found


def tried(found: Found, x: torch.Tensor) -> None:
    """Try a function on float32 inputs and add what is found."""
    y, w = (canonical.function(found.name, x, to) for to in (torch.float32, torch.float64))
    found.inputs += x.numel()
    unlike = y.view(torch.int32) != w.float().view(torch.int32)
    hard = ((w.view(torch.int64) + UNITS) & ((1 << BITS) - 1)) <= 2 * UNITS
    hard &= w.isfinite() & (w != 0)
    if not bool((hard | unlike).any()):
        return
    for near in NEAR.get(found.name, ()):
        decided = near.holds(x) & hard
        for number in x[decided & near.wrong(x, y, w)][:8].tolist():
            found.differences.append(f"{number.hex()}: not as near to {near.limit or 'x'} as it is")
        hard &= ~decided
    for number in x[unlike & ~hard][:8].tolist():
        found.differences.append(f"{number.hex()}: no rounding of the float64 result")
    found.hard += int(hard.sum())
    for number, single, double in zip(*(t[hard].tolist() for t in (x, y, w)), strict=True):
        found.differences += _differences(found.name, number, single, double)


def _differences(name: str, x: float, y: float, w: float) -> Iterator[str]:
    exact = value(name, x)
    for fmt, got in [(FLOAT32, y), *((fmt, round_fraction(w, fmt)) for fmt in FORMATS)]:
        want = round_fraction(exact, fmt)
        if got.hex() != want.hex():
            yield f"{x.hex()}: {got.hex()} in {_called(fmt)}; want {want.hex()}"


def _called(fmt: Format) -> str:
    return f"{fmt.name} ({fmt.p} bits)"


def main() -> None:
    """Measure and print a table for numerics §3."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("functions", nargs="*", default=sorted(CORRECT))
    parser.add_argument("--parts", type=int, default=1, help="try a part of the inputs: every N-th, N odd")
    arguments = parser.parse_args()
    print(f"kernels: {kernels.variant()}")
    print("| function | inputs | hard cases | differences | seconds |\n| --- | --- | --- | --- | --- |")
    for name in arguments.functions:
        start = time.perf_counter()
        found = sweep(name, arguments.parts)
        seconds = time.perf_counter() - start
        print(f"| {name} | {found.inputs:,} | {found.hard:,} | {len(found.differences)} | {seconds:.0f} |", flush=True)
        for line in found.differences[:20]:
            print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
