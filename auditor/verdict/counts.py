"""What an audit counts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from auditor.verdict.freedom import Freedom


@dataclass
class Counts:
    """What an audit counts.

    Attributes:
        steps: steps replayed, the initialisation among them.
        canonical: values of canonical operations, which need no log.
        entries: decisions in the log.
        corrections: decisions that departed from the auditor's own rounding.
        by_step: the same by step, where there were any.
        freedom: how far decisions lay from where rounding errors could decide them (numerics §9).
    """

    steps: int = 0
    canonical: int = 0
    entries: int = 0
    corrections: int = 0
    by_step: dict[int, int] = field(default_factory=dict)
    freedom: Freedom = field(default_factory=Freedom)

    @property
    def settled(self) -> int:
        """Values settled."""
        return self.freedom.settled

    def decided(self, step: int, entries: int, corrections: int) -> None:
        """Count a result's decisions."""
        self.entries += entries
        self.corrections += corrections
        if corrections:
            self.by_step[step] = self.by_step.get(step, 0) + corrections

    def add(self, other: Counts) -> None:
        """Take in another part's counts."""
        self.steps += other.steps
        self.canonical += other.canonical
        self.entries += other.entries
        self.corrections += other.corrections
        for step, count in other.by_step.items():
            self.by_step[step] = self.by_step.get(step, 0) + count
        self.freedom.add(other.freedom)
