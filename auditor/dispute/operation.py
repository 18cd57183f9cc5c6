"""One disputed operation: which elements differ, and the records that a referee judges them by (protocol §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from auditor.dispute.asking import Asker
from auditor.dispute.difference import Difference, other_results
from auditor.dispute.exact import within
from auditor.dispute.parts import RECORD_BYTES, around, split, words
from auditor.dispute.record import MAX_HASHES, Record, SideProof, unhexes
from auditor.dispute.referee import BENIGN, REFUTED, Finding, judge, parse_site, values_at
from auditor.dispute.rerun import Captured
from auditor.dispute.rules import CHALLENGER, MAX_BLOCKS, RESPONDER, shown_in
from vtrain.commit import keys
from vtrain.commit.blocks import BLOCK_BYTES, Shown, blocks_of, header
from vtrain.commit.trace import Trace, parse_event
from vtrain.errors import UnsupportedError
from vtrain.store import canonical

MAX_OPERATION_BYTES = 48 << 20  # of all arguments of an operation that a record shows in full


class Operation:
    """The first event that differs in a step, as both sides have it.

    Args:
        party: the challenger, who asks and replays.
        step, number: the event.
        mine: the challenger's trace of the step.
    """

    def __init__(self, party: Asker, step: int, number: int, mine: Trace) -> None:
        self._party, self._step, self._number, self._mine = party, step, number, mine
        self._answer = party.ask("event", step=step, event=number)
        self._run, self._own = party.talk.event(step, number), parse_event(mine.events[number])
        self._where = {"step": step, "event": number, "part": "outputs", "name": "value"}

    def judged(self) -> Difference:
        """What the two sides' events come to.

        Raises:
            Forfeit: the responder breaks a rule.
        """
        run, own = self._run, self._own
        if run.unlike(own) is None and run.kind == "op":
            return self._done_again()
        values = run.outputs.get("value"), own.outputs.get("value")
        if run.unlike(own) is not None or None in values or values[0] == values[1]:
            return self._other()
        return self._rounding() if run.args.get("definition") is not None else self._bounded()

    def _other(self) -> Difference:
        """A refutation that no rounding explains."""
        return other_results(self._step, self._number, self._run, self._own)

    def _captured(self) -> Captured:
        return self._party.rerun.capture(self._step, self._number)

    # ---- the ways to judge ----------------------------------------------------------------------------------------
    def _done_again(self) -> Difference:
        """Two results of an operation that has the same bits on every machine."""
        found, captured = self._other(), self._captured()
        sizes = [b.header.nbytes for b in captured.inputs.values()]
        if sum(sizes) > MAX_OPERATION_BYTES or 0 in sizes:
            return replace(found, why=f"{found.why}; no record: {sum(sizes)} bytes of arguments")
        shown = {n: b.show(range(b.header.count)) for n, b in captured.inputs.items()}
        job = self._party.evidence.job.canonical().decode()
        record = Record(
            **self._proved(), operands=shown, outputs={}, elements=(), disputed=0, job_text=job
        ).encode()  # fmt: skip
        try:
            finding = judge(record, self._party.evidence.key)
        except UnsupportedError as error:  # random draws, and operations with logged results inside
            return replace(found, why=f"{found.why}; no record: {error}")
        return replace(found, wrong=finding.wrong, records=(record,), findings=(finding,))

    def _rounding(self) -> Difference:
        """Two outputs of the same operation on the same operands."""
        captured = self._captured()
        if (disputed := self._disputed(captured)) is None:
            return self._other()
        elements, shown = disputed
        made: list[bytes] = []
        findings: list[Finding] = []
        for part, needed in split(elements, captured, self._run):
            made.append(self._record(captured, part, needed, len(elements)))
            findings.append(judge(made[-1], self._party.evidence.key))
            if findings[-1].wrong:
                break  # one element outside refutes; for a benign difference every one is judged
        wrong = tuple(side for side in ("run", "other") if any(side in f.wrong for f in findings))
        why = f"{len(elements)} of {self._run.name} differ; {'outside' if wrong else 'all within'} the certified bound"
        result = REFUTED if wrong else findings[0].result
        found = self._difference(result, wrong, why, elements, shown)
        return replace(found, records=tuple(made), findings=tuple(findings))

    def _bounded(self) -> Difference:
        """Two outputs of an operation without an exact definition: within the auditor's own certified bound, or not.

        There is no record: what the operation gives exactly can't be told from a few elements.
        """
        captured = self._captured()
        assert captured.doubt is not None
        if (disputed := self._disputed(captured)) is None:
            return self._other()
        elements, shown = disputed
        fmt, (y, w) = parse_site(self._run.name)[1], captured.doubt
        values = values_at(shown, elements)
        inside = [
            within(float(v), around(float(y[e]), float(w[e])), fmt, self._run.args["signed"])
            for v, e in zip(values, elements.tolist(), strict=True)
        ]
        outside = inside.count(False)
        why = f"{len(inside)} of {self._run.name} differ, {outside} outside the certified bound around this side's"
        result, wrong = (REFUTED, ("run",)) if outside else (BENIGN, ())
        return self._difference(result, wrong, why, elements, shown)

    def _difference(
        self, result: str, wrong: tuple[str, ...], why: str, elements: np.ndarray, shown: Shown
    ) -> Difference:
        repairs = {} if wrong else {self._run.args["seq"]: words(shown, elements)}
        return Difference(result, wrong, self._step, self._number, self._run.name, why, repairs=repairs)

    # ---- the elements ---------------------------------------------------------------------------------------------
    def _disputed(self, captured: Captured) -> tuple[np.ndarray, Shown] | None:
        """Flat indices of the elements that differ, and the run's blocks that hold them, without their proofs.

        None if the run's output has another dtype or shape, which both signed events show.

        Raises:
            UnsupportedError: the output is larger than a message's hashes can cover.
        """
        own = captured.outputs["value"]
        if own.header.count > MAX_HASHES:
            raise UnsupportedError(f"{self._run.name}: {own.header.nbytes} bytes; a dispute shows {MAX_HASHES} blocks")
        said = self._party.ask("hashes", **self._where)
        if header(said["dtype"], said["shape"]) != own.header:
            return None
        theirs = unhexes(said["hashes"])
        blocks = [i for i, (a, b) in enumerate(zip(own.hashes, theirs, strict=True)) if a != b]
        parts = [self._blocks(blocks[i : i + MAX_BLOCKS]) for i in range(0, len(blocks), MAX_BLOCKS)]
        shown = replace(parts[0], blocks={i: data for part in parts for i, data in part.blocks.items()}, proof=())
        width = own.header.width
        found = []
        for i in blocks:
            a, b = (np.frombuffer(x, f"<u{width}") for x in (own.block(i), shown.blocks[i]))
            found.append(np.flatnonzero(a != b) + i * (BLOCK_BYTES // width))
        return np.concatenate(found), shown

    def _blocks(self, blocks: list[int]) -> Shown:
        """Blocks of the run's output."""
        return shown_in(self._party.ask("blocks", **self._where, blocks=blocks), blocks)

    # ---- the record -----------------------------------------------------------------------------------------------
    def _record(
        self, captured: Captured, elements: Sequence[int], needed: Mapping[str, list[int]], disputed: int
    ) -> bytes:
        blocks = blocks_of(elements, captured.outputs["value"].header.width)
        theirs = self._blocks(blocks)
        return Record(
            **self._proved(),
            operands={n: captured.inputs[n].show(b) for n, b in needed.items()},
            outputs={"run": theirs, "other": captured.outputs["value"].show(blocks)},
            elements=[int(e) for e in elements], disputed=disputed, log=self._columns(),
        ).encode()  # fmt: skip

    def _proved(self) -> dict[str, Any]:
        """What every record has: the run, both sides, and that they agree up to the event."""
        party, step, number, tree = self._party, self._step, self._number, self._mine.tree
        evidence, signed = party.evidence, party.talk.signed
        sides = {
            "run": SideProof(
                signed[(RESPONDER, step)], self._answer["event"].encode(), unhexes(self._answer["inclusion"]),
                unhexes(self._answer["consistency"]),
            ),
            "other": SideProof(
                signed[(CHALLENGER, step)], self._mine.events[number], tree.inclusion_proof(number),
                tree.consistency_proof(number),
            ),
        }  # fmt: skip
        held = {"trainer": evidence.key, "run": party.talk.responder, "other": party.key.public_key()}
        return {
            "job": party.talk.job, "step": step, "event": number, "note": evidence.notes[-1],
            "leaf": canonical.dumps(evidence.leaves[step].to_json()), "leaf_proof": evidence.tree.inclusion_proof(step),
            "keys": {name: keys.public_text(key) for name, key in held.items()}, "sides": sides,
            "prefix": tree.root(number),
        }  # fmt: skip

    def _columns(self) -> Mapping[str, str] | None:
        """The run's decisions there, unless they are too large for a record."""
        if "log" not in self._run.outputs:
            return None
        own = self._party.rerun.columns(self._step, self._run.args["seq"])
        if own is None or sum(map(len, own.values())) > RECORD_BYTES // 8:
            return None
        return self._party.ask("columns", step=self._step, event=self._number)
