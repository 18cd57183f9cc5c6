"""Disputes without the other party: its run is replayed here, from what it wrote (protocol §8).

A run's log, states and leaves say much of what its trainer would answer. What it can't say is how its own hardware
rounds where nothing was logged; so a difference is only held against a run whose thresholds are certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditor.dispute.challenger import Challenger, common_prefix
from auditor.dispute.rerun import Rerun
from auditor.dispute.responder import Responder
from auditor.dispute.tracing import Tracer, doubt_of
from auditor.evidence import Evidence
from vtrain.engine.decisions import Decisions
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.errors import UnsupportedError, UsageError
from vtrain.rounding.naive import decode, from_ordered, ordered, round_fraction

_SHORT_BITS = 2
_LEGIBLE = (4, 6)  # faults of a value; the others are of the log's own form (engine.decisions.FAULTS)


class Believer(Tracer):
    """Replays a run as its log says, without asking whether a decision lies within the certified bound."""

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Round y, and take every decision."""
        log = self._decisions.columns(site.seq)
        out, found, _ = self._decisions.settle(site, y, scale)
        if found is not None and found.fault in _LEGIBLE and log is not None:
            out = _believed(site, y, Decisions.empty().settle(site, y, scale)[0], self._decisions, log)
        if self.sink is not None and self.sink.wants():
            self._site(site, out, log, lambda: doubt_of(y, scale()))
        return out


def _believed(
    site: Site, y: torch.Tensor, out: torch.Tensor, decisions: Decisions, log: dict[str, bytes]
) -> torch.Tensor:
    """One's own rounding, with every decision of a sparse log put in, near or far."""
    _, _, encoding, narrow, _, _ = memoryview(log["row"]).cast("Q")
    if encoding:
        raise UnsupportedError(f"{site}: a ternary log outside its bound; ask the trainer itself")
    flat, values = out.reshape(-1), y.reshape(-1).double()
    words = memoryview(log["values"]).cast("I")
    for position, index in enumerate(decisions.taken().tolist()):
        if position < narrow:
            code = log["codes"][position // 4] >> _SHORT_BITS * (position % 4) & 3
            mine = ordered(round_fraction(float(values[index]), site.fmt), site.fmt)
            place = min((k for k in range(mine - 3, mine + 4) if k % 4 == code), key=lambda k: abs(k - mine))
        else:
            found = decode(words[position - narrow], site.fmt)
            place = 0 if found is None else found
        flat[index] = from_ordered(place, site.fmt)
    return out


def replayed(evidence: Evidence, directory: Path, believe: bool = True) -> Responder:
    """A party that answers for a run from its directory alone, with a key of its own."""
    rerun = Rerun(evidence, directory, make_tracer=Believer if believe else Tracer)
    return Responder(rerun, Ed25519PrivateKey.generate())


@dataclass(frozen=True)
class Compared:
    """Two runs of one job.

    Attributes:
        checkpoint: the last step whose committed state both have; -1 where none is.
        following: the next checkpoint, where they differ; None where all are the same.
        comparisons: how many checkpoints were looked at.
    """

    checkpoint: int
    following: int | None
    comparisons: int


def compare(run: Evidence, other: Evidence) -> Compared:
    """Binary search for the first committed checkpoint that differs; nothing is replayed.

    Raises:
        UsageError: the runs are not of one job, or have different checkpoints.
    """
    if run.digest != other.digest:
        raise UsageError("the two runs are of different jobs")
    steps: Sequence[int] = run.checkpoints
    if steps != other.checkpoints[: len(steps)]:
        raise UsageError("the two runs have different checkpoints")
    count = 0

    def same(size: int) -> bool:
        nonlocal count
        count += 1
        return size == 0 or run.leaves[steps[size - 1]].state == other.leaves[steps[size - 1]].state

    equal = common_prefix(len(steps), len(steps), same)
    if equal == len(steps):
        return Compared(steps[-1], None, count)
    return Compared(steps[equal - 1] if equal else -1, steps[equal], count)


def challenge(run: Evidence, mine: Rerun, directory: Path, key: Ed25519PrivateKey) -> Challenger:
    """Dispute a run, answered from its directory, with a computation of one's own."""
    responder = replayed(run, directory)
    return Challenger(mine, key, responder.answer, responder.talk.responder, run)
