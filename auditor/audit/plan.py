"""Which segments an audit replays: all, those of some steps, or as many at random as a budget or certainty asks for.

Imports no torch. How a sample is drawn, and how likely it meets a cheat, ``auditor.verdict.draw`` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from auditor.evidence.segments import Segment
from auditor.verdict.draw import bad_segments, caught, drawn
from vtrain.errors import UsageError

_NUMBER = re.compile(r"(\d{1,9}|\d{0,9}\.\d{1,18})(%?)", re.ASCII)


class Confidence(NamedTuple):
    """How sure a sample is to be.

    Attributes:
        caught: probability wanted of drawing at least one bad segment, in (0, 1].
        cheated: share of the segments that are bad, in (0, 1].
    """

    caught: Fraction
    cheated: Fraction


def share(text: str, option: str) -> Fraction:
    """A share or probability written as ``0.05`` or ``5%``, exactly.

    Raises:
        UsageError: it is no number in (0, 1].
    """
    found = _NUMBER.fullmatch(text.strip())
    value = Fraction(0) if found is None else Fraction(found[1]) / (100 if found[2] else 1)
    if not 0 < value <= 1:
        raise UsageError(f"{option} {text[:40]!r}; want a number above 0 and at most 1, such as 0.05 or 5%")
    return value


def chosen(all_segments: Sequence[Segment], first: int, last: int) -> list[Segment]:
    """The segments that cover steps ``first`` to ``last``, cut to them.

    Raises:
        UsageError: the run has no such steps.
    """
    end = all_segments[-1].last
    if not 0 <= first <= last <= end:
        raise UsageError(f"steps {first}:{last}; want 0 <= A <= B <= {end}")
    return [
        Segment(s.start, max(s.first, first), min(s.last, last))
        for s in all_segments
        if s.first <= last and s.last >= first
    ]


def sample(all_segments: Sequence[Segment], count: int, head: str, nonce: str) -> list[Segment]:
    """``count`` segments at random, from the signed head and the auditor's nonce: nobody could foresee the draw.

    Raises:
        UsageError: as ``drawn``.
    """
    return [all_segments[i] for i in drawn(len(all_segments), count, head, nonce)]


def size_for_budget(all_segments: Sequence[Segment], budget: Fraction) -> int:
    """The largest n such that any n segments have at most a share ``budget`` of all steps; at least 1.

    *Any*: it is the n longest that are counted, so the bound holds whatever is drawn. The initialisation is a step.
    """
    longest = sorted((s.steps for s in all_segments), reverse=True)
    left, count = budget * sum(longest), 0
    for steps in longest:
        left -= steps
        if left < 0:
            break
        count += 1
    return max(1, count)


def size_for_confidence(total: int, wanted: Confidence) -> int:
    """The smallest n that meets, with probability ``wanted.caught``, a trainer who cheated in ``wanted.cheated``.

    Exact, without replacement. Such an n always exists: after ``total`` - bad + 1 draws one bad segment is among them.
    """
    bad = bad_segments(total, wanted.cheated)
    low, high = 0, 1  # `low` is too few; double until `high` is enough, then halve between them
    most = total - bad + 1
    while high < most and caught(total, high, bad) < wanted.caught:
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if caught(total, middle, bad) < wanted.caught:
            low = middle
        else:
            high = middle
    return high
