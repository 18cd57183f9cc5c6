"""Segments: what of a run can be replayed by itself, as a checkpoint stands before it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from auditor.evidence.run import Evidence


@dataclass(frozen=True)
class Segment:
    """Steps to replay from a checkpoint.

    Attributes:
        start: step of the checkpoint to begin from; -1 begins with the initialisation.
        first: first step to compare.
        last: last step to compare.
    """

    start: int
    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many steps it compares, the initialisation counting as one."""
        return self.last - self.first + 1


def segments(evidence: Evidence) -> list[Segment]:
    """All segments of a run: the initialisation, then one between each two checkpoints."""
    ends = evidence.checkpoints
    return [Segment(-1, 0, 0)] + [Segment(a, a + 1, b) for a, b in zip(ends, ends[1:], strict=False)]
