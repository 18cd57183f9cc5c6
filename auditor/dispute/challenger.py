"""The side that asks: finds the first step and operation that differ, and has them judged (protocol §8)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from auditor.dispute.asking import Asker
from auditor.dispute.commitment import CHALLENGER, Commitment
from auditor.dispute.difference import NOT_COMMITTED, Difference
from auditor.dispute.operation import Operation
from auditor.dispute.referee import REFUTED
from auditor.evidence.decimal import metric
from vtrain.commit import merkle
from vtrain.commit.trace import Trace


def common_prefix(mine: int, theirs: int, same: Callable[[int], bool]) -> int:
    """Length of the longest common prefix of two sequences, by O(log n) comparisons of prefixes.

    Args:
        mine, theirs: lengths.
        same: whether the prefixes of a length are equal; true for 0, and not again true once it was false.
    """
    low, high = 0, min(mine, theirs)
    if same(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if same(middle) else (low, middle)
    return low


class Challenger(Asker):
    """Disputes a run with the party that answers on a channel; arguments and attributes are those of ``Asker``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._agreed: dict[int, int] = {}  # a step, and how many of its events both sides have alike

    # ---- the first step -------------------------------------------------------------------------------------------
    def first_step(self, first: int, last: int) -> Difference | int | None:
        """The first step of ``first`` to ``last`` after which the two states differ.

        Returns:
            Its number; None if none does; a Difference where the run's own replay is not what the run commits to.
        """
        mine = self.rerun.states(first, last)
        tree = merkle.Tree(merkle.leaf_hash(s.encode()) for s in mine)
        self.ask("states", first=first, last=last, root=tree.root().hex())

        def same(size: int) -> bool:
            found = self.ask("stateprefix", first=first, last=last, size=size)
            return bool(found["root"] == tree.root(size).hex())

        ends = [leaf.step for leaf in self.evidence.leaves[first : last + 1] if leaf.state]
        if ends and (broken := self._not_committed(first, last, ends[-1])):
            return broken
        equal = common_prefix(len(mine), len(mine), same)
        if equal == len(mine):
            return None
        after = [step for step in ends if step >= first + equal]
        return (self._not_committed(first, last, after[0]) if after else None) or first + equal

    def _not_committed(self, first: int, last: int, step: int) -> Difference | None:
        """Whether the run's replay gives another state at a checkpoint than the run's leaf commits to."""
        found = self.ask("state", first=first, last=last, step=step)["state"]
        wanted = self.evidence.leaves[step].state
        if found == wanted:
            return None
        why = f"the run's own replay gives state {found}; its leaf commits to {wanted}"
        return Difference(REFUTED, ("run",), step, -1, NOT_COMMITTED, why)

    # ---- the first operation --------------------------------------------------------------------------------------
    def first_event(self, step: int) -> tuple[Trace, int] | None:
        """My trace of a step, and the number of the first event that differs; None if none does."""
        mine = self.rerun.trace(step, self._agreed.get(step, 0))
        about = (self.talk.job, self.talk.head, self.session, CHALLENGER)
        own = Commitment(*about, step, len(mine), mine.tree.root().hex(), self._repairs())
        self.ask("trace", step=step, commitment=own.sign(self.key))
        theirs = self.talk.traces[step]

        def same(size: int) -> bool:
            return bool(self.ask("prefix", step=step, size=size)["root"] == mine.tree.root(size).hex())

        equal = common_prefix(len(mine), theirs.size, same)
        self._agreed = {step: equal}
        return None if equal == len(mine) == theirs.size else (mine, equal)

    def _repairs(self) -> str:
        """What distinguishes one's commitments before and after a repair; 64 zeros without repairs."""
        if not self.rerun.repairs:
            return "0" * 64
        parts = [(step, seq, i.tolist(), w.tolist()) for (step, seq), (i, w) in sorted(self.rerun.repairs.items())]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def dispute(self, step: int) -> Difference | None:
        """The first difference in a step, judged; None if its traces are the same.

        Raises:
            Forfeit: the responder breaks a rule.
        """
        found = self.first_event(step)
        if found is None:
            return self._against_leaf(step)
        mine, number = found
        theirs = self.talk.traces[step]
        if number >= theirs.size or number >= len(mine):
            why = f"the step has {theirs.size} operations and results in the run, {len(mine)} here"
            return Difference(REFUTED, ("run",), step, number, "the sequence of operations", why)
        return Operation(self, step, number, mine).judged()

    def _against_leaf(self, step: int) -> Difference | None:
        """Where both traces agree: the leaf must be what they end with."""
        size = self.talk.traces[step].size
        self.ask("event", step=step, event=size - 1)
        end, leaf = self.talk.event(step, size - 1), self.evidence.leaves[step]
        committed = {"sites": leaf.sites, **{f"metric:{n}": v for n, v in leaf.metrics.items()}}
        if leaf.state:
            committed["state"] = leaf.state
        for name, value in committed.items():
            if end.outputs.get(name) != value:
                given = metric(end.outputs.get(name, "nothing"))
                why = f"{name}: both replays give {given}; the run's leaf commits to {metric(value)}"
                return Difference(REFUTED, ("run",), step, size - 1, "the step's end", why)
        return None

    def close(self, difference: Difference | None) -> None:
        """End the dispute, naming its result and its first record."""
        record = difference.records[0] if difference and difference.records else b""
        result = "same" if difference is None else difference.result
        self.ask("close", result=result, record=hashlib.sha256(record).hexdigest())
