"""Charts as inline SVG: no script, no style of their own, text that stays readable at any width. Imports no torch.

Sizes are percentages of the drawing's box, which ``report.css`` gives its padding for the labels; only lines live in a
nested drawing that stretches. Whatever the numbers are, a chart has a bounded size, and says what it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from auditor.report.sanitised import plain

Point = tuple[int, float]
_MOST_POINTS = 1200  # above it, points are grouped
_GROUPS = 300
_MOST_DOTS = 60  # up to so many points, each has a dot
_LOW, _HIGH = 4.0, 96.0  # percent of the height that values take
_MOST_RANGES = 400
_MOST_MARKS = 200
_NOTHING = Markup('<text class="nothing" x="50%" y="50%">no finite values</text>')
_WIDEST_LABEL = 11  # characters; report.css leaves room for them


@dataclass(frozen=True)
class Mark:
    """A step to point at.

    Attributes:
        step: which.
        label: what it says.
        bad: whether it is what refutes the run.
    """

    step: int
    label: str
    bad: bool = False


def line(name: str, title: str, points: Sequence[Point], last: int, marks: Sequence[Mark] = ()) -> Markup:
    """A line over steps.

    Args:
        name: of the chart, unique on the page: ASCII letters and hyphens.
        title: for people; may be hostile.
        points: (step, value), ascending steps; any floats.
        last: the axis goes from step 0 to this one.
        marks: steps to point at.
    """
    finite = [v for _, v in points if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    groups = _grouped(points, last)
    body = Markup("").join(
        [_grid(low, high) if finite else _NOTHING, _steps_axis(last), _curve(groups, low, high, last)]
        + [_mark(mark, last) for mark in marks[:_MOST_MARKS]]
    )
    return _svg(name, title, _described(points, finite), body, "chart")


def coverage(name: str, ranges: Sequence[tuple[int, int]], checkpoints: Sequence[int], last: int,
             marks: Sequence[Mark] = ()) -> Markup:  # fmt: skip
    """A strip of all steps: the ranges that were replayed are filled, checkpoints are ticks.

    Args:
        name: as in :func:`line`.
        ranges: first and last steps, ascending.
        checkpoints: steps.
        last: the run's last step.
        marks: steps to point at.
    """
    every = -(-len(checkpoints) // _MOST_MARKS) or 1
    cells = [_cell(a, b, share, last) for a, b, share in _shares(ranges, last)]
    ticks = [
        Markup('<line class="tick" x1="{0}" x2="{0}" y1="62%" y2="80%"/>').format(_percent((s + 0.5) / (last + 1)))
        for s in checkpoints[::every]
    ]
    frame = Markup('<rect class="strip" x="0" y="30%" width="100%" height="32%"/>')
    replayed = sum(b - a + 1 for a, b in ranges)
    text = f"{replayed:,} of {last + 1:,} steps replayed, in {len(ranges):,} ranges; {len(checkpoints):,} checkpoints."
    body = [frame, *cells, *ticks, _steps_axis(last, cell=True), *(_mark(m, last, cell=True) for m in marks)]
    return _svg(name, "Steps replayed", text, Markup("").join(body), "chart low")


def bar(share: float) -> Markup:
    """A small bar in a table, for a share from 0 to 1; the number stands beside it."""
    width = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    return Markup(
        '<svg class="bar" aria-hidden="true" width="64" height="8"><rect class="strip" width="64" height="8"/>'
        '<rect class="filled" width="{}" height="8"/></svg>'
    ).format(f"{64 * width:.1f}")


def _svg(name: str, title: str, text: str, body: Markup, kind: str) -> Markup:
    return Markup(
        '<svg class="{kind}" role="img" aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{title}</title>'
        '<desc id="{name}-d">{text}</desc>{body}</svg>'
    ).format(kind=kind, name=name, title=plain(title, 200), text=text, body=body)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


def _across(step: int, last: int, cell: bool = False) -> float:
    """Where a step is from 0 to 1: a point of an axis, or the middle of its cell in a strip."""
    if cell:
        return (step + 0.5) / (last + 1)
    return step / last if last else 0.5


def _up(value: float, low: float, high: float) -> float:
    """Where a value is, in percent from the top. Halves: the difference of two large floats is no float."""
    span = high / 2 - low / 2
    fraction = (value / 2 - low / 2) / span if span > 0 else 0.5
    return _HIGH - (_HIGH - _LOW) * fraction


def _grouped(points: Sequence[Point], last: int) -> list[list[Point]]:
    """Each point alone, or the points of each of some equal parts of the axis."""
    if len(points) <= _MOST_POINTS:
        return [[p] for p in points]
    groups: list[list[Point]] = [[] for _ in range(_GROUPS)]
    for p in points:
        groups[min(p[0] * _GROUPS // (last + 1), _GROUPS - 1)].append(p)
    return groups


def _curve(groups: list[list[Point]], low: float, high: float, last: int) -> Markup:
    """The line, broken where there is nothing to show, with dots where points stand alone; crosses at no numbers."""
    runs: list[list[str]] = [[]]
    crosses: list[str] = []
    for group in groups:
        kept = _extremes([p for p in group if math.isfinite(p[1])])
        if len(kept) < len(group) and (lost := [s for s, v in group if not math.isfinite(v)]):
            crosses.append(f"{1000 * _across(lost[0], last):.1f}")
        if not kept:
            runs.append([])
        runs[-1] += [f"{1000 * _across(s, last):.1f} {10 * _up(v, low, high):.1f}" for s, v in kept]
    drawn = [run for run in runs if run]
    lines = "".join("M" + "L".join(run) for run in drawn if len(run) > 1)
    few = sum(map(len, drawn)) <= _MOST_DOTS
    dots = "".join(f"M{at}h0" for run in drawn if few or len(run) == 1 for at in run)
    return Markup(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" overflow="visible" width="100%" height="100%">'
        '<path class="curve" d="{}"/><path class="dots" d="{}"/><path class="lost" d="{}"/></svg>'
    ).format(lines, dots, "".join(f"M{x} 0v40" for x in crosses))


def _extremes(points: list[Point]) -> list[Point]:
    """First, least, greatest and last of a group, in the order of steps: what a narrow column shows of it."""
    if len(points) <= 2:
        return points
    by_value = sorted(points, key=lambda p: p[1])
    return sorted({points[0], by_value[0], by_value[-1], points[-1]})


def _grid(low: float, high: float) -> Markup:
    ticks = _ticks(low, high)
    rows = [
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text x="-8" y="{0}" dy="4" class="end">{1}</text>'
        ).format(f"{_up(value, low, high):.2f}%", label)
        for value, label in zip(ticks, _labels(ticks), strict=True)
    ]
    return Markup("").join(rows)


def _ticks(low: float, high: float) -> list[float]:
    """Up to six round numbers from ``low`` to ``high``; the two ends where floats allow no better."""
    if low == high:
        return [low]
    rough = high / 5 - low / 5
    unit = 10.0 ** math.floor(math.log10(rough)) if rough > 1e-300 else 0.0
    steps = [unit * k for k in (1, 2, 5, 10) if unit and unit * k >= rough]
    if not steps or not math.isfinite(steps[0]):
        return [low, high]
    first, most = math.ceil(low / steps[0]), math.floor(high / steps[0])
    made = [k * steps[0] for k in range(first, most + 1)] if most - first < 10 else []
    return made if len(set(made)) > 1 else [low, high]


def _labels(values: list[float]) -> list[str]:
    """As many digits as there is room for and as tell the values apart; nothing where a label would say the same."""
    made: list[str] = []
    for digits in (3, 4, 6, 8):
        finer = [f"{value + 0.0:.{digits}g}" for value in values]
        if made and max(map(len, finer)) > _WIDEST_LABEL:
            break
        made = finer
    return [label if label not in made[:i] else "" for i, label in enumerate(made)]


def _steps_axis(last: int, cell: bool = False) -> Markup:
    unit = 10 ** max(0, len(str(last)) - 2)
    every = next(unit * k for k in (1, 2, 5, 10, 20, 50) if last <= 6 * unit * k)
    ticks = [s for s in range(0, last, every) if s == 0 or last - s > 0.6 * every] + ([last] if last else [0])
    made = []
    for step in ticks:
        side = "" if cell or last == 0 else " start" if step == 0 else " end" if step == last else ""
        made.append(
            Markup('<text class="step{}" x="{}" y="100%" dy="18">{}</text>').format(
                side, _percent(_across(step, last, cell)), f"{step:,}"
            )
        )
    return Markup("").join(made)


def _mark(mark: Mark, last: int, cell: bool = False) -> Markup:
    at = _across(mark.step, last, cell)
    side = "start" if at < 0.5 else "end"
    return Markup(
        '<line class="mark{3}" x1="{0}" x2="{0}" y1="0" y2="100%"/>'
        '<text class="marked {1}{3}" x="{0}" y="0" dy="-4">{2}</text>'
    ).format(_percent(at), side, plain(mark.label, 60), " bad" if mark.bad else "")


def _cell(first: float, end: float, share: float, last: int) -> Markup:
    left, width = first / (last + 1), (end - first) / (last + 1)
    return Markup('<rect class="filled" x="{}" y="30%" width="{}" height="32%" fill-opacity="{}"/>').format(
        _percent(left), _percent(width), f"{share:.2f}"
    )


def _shares(ranges: Sequence[tuple[int, int]], last: int) -> list[tuple[float, float, float]]:
    """Parts of the strip (from, to, share replayed); many ranges are added up, so that none looks larger than it is."""
    if len(ranges) <= _MOST_RANGES:
        return [(a, b + 1, 1.0) for a, b in ranges]
    width = (last + 1) / _MOST_RANGES
    found = [0.0] * _MOST_RANGES
    for a, b in ranges:
        for cell in range(int(a / width), min(int((b + 1) / width), _MOST_RANGES - 1) + 1):
            found[cell] += max(0.0, min(b + 1, (cell + 1) * width) - max(a, cell * width))
    return [(i * width, (i + 1) * width, min(1.0, n / width)) for i, n in enumerate(found) if n]


def _described(points: Sequence[Point], finite: list[float]) -> str:
    """What a reader who sees no picture should know."""
    if not points:
        return "No values."
    lost = len(points) - len(finite)
    note = f" {lost:,} of {len(points):,} values are no finite numbers, marked at the top." if lost else ""
    if not finite:
        return f"No finite values.{note}"
    first, final = points[0], points[-1]
    return (
        f"{len(points):,} values, from {first[1]:.6g} at step {first[0]:,} to {final[1]:.6g} at step {final[0]:,}; "
        f"least {min(finite):.6g}, greatest {max(finite):.6g}.{note}"
    )
