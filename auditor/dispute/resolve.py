"""From a difference that an audit found to a judged one; benign ones are repaired, and the audit goes on."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from auditor.audit.listener import Repairs
from auditor.dispute.challenger import Challenger
from auditor.dispute.difference import Difference
from auditor.dispute.referee import REFUTED, Finding
from auditor.dispute.rules import Conversation, Forfeit
from vtrain.store.atomic import write_bytes

MAX_SHOWN = 20


@dataclass
class Resolution:
    """What became of the differences in some steps.

    Attributes:
        repairs: benign ones, as a replayer takes them.
        listed: the same for the verdict: step, number of the result, site, elements, SHA-256 of the first record.
        refuted: the difference that was not benign; None if all were.
    """

    repairs: dict[Any, Any] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)
    refuted: Difference | None = None

    @property
    def found(self) -> bool:
        """Whether any difference was found."""
        return bool(self.listed) or self.refuted is not None


class Resolver:
    """Disputes what audits find, with one party, and keeps the records.

    Args:
        challenger: the open dispute; its rerun's ``repairs`` must be ``repairs``.
        repairs: grows with every benign difference.
        directory: where records and the transcript are written; None keeps neither.
        once: end with the first difference, benign or not: two runs that part are two runs from there on.
    """

    def __init__(self, challenger: Challenger, repairs: Repairs, directory: Path | None, once: bool = False) -> None:
        self._challenger, self._directory, self._once = challenger, directory, once
        self._repairs: Any = repairs
        self._transcript = new_transcript(directory)

    def resolve(self, first: int, last: int, suspect: int | None = None) -> Resolution:
        """Judge every difference in steps ``first`` to ``last``, up to the first that is not benign.

        Args:
            suspect: the step in which an audit found one, if no state differs.

        Raises:
            Forfeit: a party broke the rules; the transcript is kept.
        """
        made = Resolution()
        try:
            self._all_steps(made, first, last, suspect)
        finally:
            keep_transcript(self._transcript, self._challenger.talk)
        return made

    def _all_steps(self, made: Resolution, first: int, last: int, suspect: int | None) -> None:
        at, seen = first, False
        while at <= last and made.refuted is None:
            found = self._challenger.first_step(at, last)
            if isinstance(found, Difference):
                made.refuted = found
                return
            if found is None:
                break
            seen = True
            self._step(made, found)
            at = last + 1 if self._once else found + 1
        if not seen and suspect is not None:
            self._step(made, suspect)

    def _step(self, made: Resolution, step: int) -> None:
        while made.refuted is None:
            found = self._challenger.dispute(step)
            if found is None:
                return
            for part, data in enumerate(found.records):
                if self._directory is not None:
                    _keep(self._directory / f"record-{step}-{found.event}-{part}", data)
            if found.result == REFUTED:
                made.refuted = found
            else:
                self._repair(made, found)
                if self._once:
                    return

    def _repair(self, made: Resolution, found: Difference) -> None:
        for seq, repair in found.repairs.items():
            made.repairs[(found.step, seq)] = self._repairs[(found.step, seq)] = repair
            made.listed.append({
                "step": found.step, "seq": seq, "site": found.operation, "elements": len(repair[0]),
                "record": _first(found),
            })  # fmt: skip


def new_transcript(directory: Path | None) -> Path | None:
    """Where a dispute's transcript goes in a directory: what an earlier one left there stays. None keeps nothing."""
    if directory is None:
        return None
    names = itertools.chain(["transcript.jsonl"], (f"transcript-{n}.jsonl" for n in itertools.count(2)))
    return next(directory / name for name in names if not (directory / name).exists())


def keep_transcript(path: Path | None, talk: Conversation) -> None:
    """Write a dispute's lines so far."""
    if path is not None:
        _keep(path, b"".join(line + b"\n" for line in talk.lines))


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)


def to_json(found: Difference) -> dict[str, Any]:
    """A judged difference as a verdict carries it."""
    elements = [e for f in found.findings for e in _elements(f)][:MAX_SHOWN]
    return {
        "step": found.step, "event": found.event, "operation": found.operation.split(" ")[0], "site": found.operation,
        "result": found.result, "wrong": list(found.wrong), "why": found.why, "elements": elements,
        "record": _first(found),
    }  # fmt: skip


def _first(found: Difference) -> str:
    """SHA-256 of the first record, hex; empty where there is none."""
    return hashlib.sha256(found.records[0]).hexdigest() if found.records else ""


def _elements(finding: Finding) -> list[dict[str, Any]]:
    return [
        {
            "index": e.index, "run": repr(e.run), "other": repr(e.other), "exact": repr(e.exact),
            "bound": f"{e.bound:.3g}", "within": e.run_within, "otherWithin": e.other_within,
        }
        for e in finding.elements
    ]  # fmt: skip


def forfeited(lost: Forfeit, step: int) -> Difference:
    """A dispute that ended by a broken rule, as a difference."""
    wrong = ("run",) if lost.side == "responder" else ("other",)
    return Difference(REFUTED, wrong, step, -1, "the dispute itself", str(lost))
