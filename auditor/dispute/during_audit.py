"""An audit that asks the trainer: differences are disputed, repaired where benign, and judged (protocol §8)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditor.audit.segment import Found, TaskReplay
from auditor.dispute.asking import Channel
from auditor.dispute.challenger import Challenger
from auditor.dispute.rerun import Rerun
from auditor.dispute.resolve import Resolution, Resolver, forfeited, to_json
from auditor.dispute.rules import RESPONDER, Forfeit
from vtrain.errors import BackendError


@dataclass(frozen=True)
class Party:
    """How to reach the trainer.

    Attributes:
        channel: opens a channel to it; its second part is called at the end.
        key: the auditor's, to sign its side with.
        records: where records and the transcript go; None keeps none.
    """

    channel: Callable[[], tuple[Channel, Callable[[], None]]]
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    records: Path | None = None

    @contextlib.contextmanager
    def judging(self, replay: TaskReplay) -> Iterator[Callable[[Found], Found]]:
        """A session that judges what ``replay`` finds, and hangs up at the end."""
        session = DisputeSession(replay, self)
        try:
            yield session
        finally:
            session.close()


# What an audit compares with the run's own records, which no rounding changes.
_OF_THE_RUN = ("data", "log", "scalars", "sites", "steps")


class DisputeSession:
    """Disputes what an audit finds with the trainer: differences in, judged ones out.

    Args:
        replay: the audit's own, of the run.
        party: the trainer.
    """

    def __init__(self, replay: TaskReplay, party: Party) -> None:
        self._replay, self._party = replay, party
        self._repairs: dict[Any, Any] = {}
        self._open: tuple[Resolver, Callable[[], None]] | None = None

    def __call__(self, found: Found) -> Found:
        """What becomes of a segment's replay.

        Raises:
            BackendError: it is this machine that computes outside the certified bound, or that sees a difference which
                it does not see again.
            Forfeit: this side broke a rule of the dispute.
        """
        if found.difference is None:
            return found
        segment, suspect = found.segment, found.difference[0]
        try:
            made = self._resolver().resolve(segment.start + 1, segment.last, suspect)
        except Forfeit as lost:
            if lost.side != RESPONDER:
                raise
            found.unanswered = not lost.proved
            return _refuted(found, Resolution(refuted=forfeited(lost, suspect)))
        if made.refuted is not None:
            if "run" not in made.refuted.wrong:
                raise BackendError(f"the dispute went against this machine: {made.refuted.why}")
            return _refuted(found, made)
        if not made.found:
            # Both replays agree, against what the run itself says of its batches, decisions, scalars or results.
            if found.difference[1] in _OF_THE_RUN:
                return found
            raise BackendError(f"the difference in step {suspect} is not found again: {found.difference[2]}")
        again = self._replay.replay(segment, lambda step: None, self._repairs)
        again.repairs = made.listed
        return again

    def _resolver(self) -> Resolver:
        if self._open is None:
            party = self._party
            channel, close = party.channel()
            rerun = Rerun(self._replay.evidence, self._replay.directory, self._repairs)
            self._open = Resolver(Challenger(rerun, party.key, channel), self._repairs, party.records), close
        return self._open[0]

    def close(self) -> None:
        """Hang up."""
        if self._open is not None:
            self._open[1]()


def _refuted(found: Found, made: Resolution) -> Found:
    assert made.refuted is not None
    found.repairs, found.dispute = made.listed, to_json(made.refuted)
    found.difference = (made.refuted.step, "operation" if made.refuted.event >= 0 else "dispute", made.refuted.why)
    return found
