"""The side that asks: finds the first step, operation and elements that differ, and has them judged (protocol §8)."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from auditor.dispute.commitment import Commitment
from auditor.dispute.difference import NOT_COMMITTED, Difference, other_results
from auditor.dispute.exact import within
from auditor.dispute.messages import Message, seal
from auditor.dispute.parts import RECORD_BYTES, around, split, words
from auditor.dispute.record import Record, SideProof, unhexes
from auditor.dispute.rerun import Captured, Rerun
from auditor.dispute.rules import CHALLENGER, RESPONDER, Conversation, Forfeit, shown_in
from auditor.evidence import Evidence
from auditor.referee import BENIGN, REFUTED, Finding, judge, parse_site, values_at
from vtrain.commit import keys, merkle
from vtrain.commit.blocks import BLOCK_BYTES, Shown, blocks_of
from vtrain.commit.trace import Event, Trace, parse_event
from vtrain.errors import UnsupportedError
from vtrain.store import canonical

Channel = Callable[[bytes], bytes]  # a line there, the answer's line back
MAX_OPERATION_BYTES = 48 << 20  # of all arguments of an operation that a record shows in full


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


class Challenger:
    """Disputes a run with the party that answers on a channel.

    Args:
        rerun: its own computation.
        key: its key.
        channel: sends a line and gives the answer; raises Forfeit(RESPONDER) where none comes.
        responder: the key that answers must be signed with; the trainer's by default.
        run: the run that is disputed; by default the one that ``rerun`` does again.

    Attributes:
        talk: the dispute so far; ``talk.lines`` is the transcript.
    """

    def __init__(
        self, rerun: Rerun, key: Ed25519PrivateKey, channel: Channel, responder: Ed25519PublicKey | None = None,
        run: Evidence | None = None,
    ) -> None:  # fmt: skip
        self._rerun, self._key, self._channel = rerun, key, channel
        self._evidence = evidence = run or rerun.evidence
        self._note = hashlib.sha256(evidence.notes[-1].encode()).hexdigest()
        self.talk = Conversation(evidence.digest.hex(), self._note, responder or evidence.key)
        self._agreed: dict[int, int] = {}  # a step, and how many of its events both sides have alike
        self._session = os.urandom(32).hex()
        self.ask("open", job=self.talk.job, note=self._note, key=keys.public_text(key))

    def ask(self, kind: str, **content: Any) -> dict[str, Any]:
        """One question and its answer.

        Raises:
            Forfeit: the responder breaks a rule.
        """
        message = Message(self._session, len(self.talk.lines), self.talk.previous, kind, content)
        line = seal(message, self._key)
        self.talk.take(line)
        reply = self._channel(line)
        try:
            return self.talk.take(reply).content
        except Forfeit:
            self.talk.lines.append(reply)  # the evidence against its sender
            raise

    # ---- the first step -------------------------------------------------------------------------------------------
    def first_step(self, first: int, last: int) -> Difference | int | None:
        """The first step of ``first`` to ``last`` after which the two states differ.

        Returns:
            Its number; None if none does; a Difference where the run's own replay is not what the run commits to.
        """
        mine = self._rerun.states(first, last)
        tree = merkle.Tree(merkle.leaf_hash(s.encode()) for s in mine)
        self.ask("states", first=first, last=last, root=tree.root().hex())

        def same(size: int) -> bool:
            found = self.ask("stateprefix", first=first, last=last, size=size)
            return bool(found["root"] == tree.root(size).hex())

        ends = [leaf.step for leaf in self._evidence.leaves[first : last + 1] if leaf.state]
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
        wanted = self._evidence.leaves[step].state
        if found == wanted:
            return None
        why = f"the run's own replay gives state {found}; its leaf commits to {wanted}"
        return Difference(REFUTED, ("run",), step, -1, NOT_COMMITTED, why)

    # ---- the first operation --------------------------------------------------------------------------------------
    def first_event(self, step: int) -> tuple[Trace, int] | None:
        """My trace of a step, and the number of the first event that differs; None if none does."""
        mine = self._rerun.trace(step, self._agreed.get(step, 0))
        own = Commitment(self.talk.job, step, len(mine), mine.tree.root().hex(), self._note, self._repairs())
        self.ask("trace", step=step, commitment=own.sign(self._key))
        theirs = self.talk.traces[step]

        def same(size: int) -> bool:
            return bool(self.ask("prefix", step=step, size=size)["root"] == mine.tree.root(size).hex())

        equal = common_prefix(len(mine), theirs.size, same)
        self._agreed = {step: equal}
        return None if equal == len(mine) == theirs.size else (mine, equal)

    def _repairs(self) -> str:
        """What distinguishes one's commitments before and after a repair; 64 zeros without repairs."""
        if not self._rerun.repairs:
            return "0" * 64
        parts = [(step, seq, i.tolist(), w.tolist()) for (step, seq), (i, w) in sorted(self._rerun.repairs.items())]
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
            why = f"{theirs.size} events in the run's trace, {len(mine)} here"
            return Difference(REFUTED, ("run",), step, number, "the sequence of operations", why)
        answer = self.ask("event", step=step, event=number)
        run, own = self.talk.event(step, number), parse_event(mine.events[number])
        alike = run.unlike(own) is None
        if alike and run.kind == "site" and run.args.get("definition") is not None:
            return self._rounding(step, number, mine, answer)
        if alike and run.kind == "site" and "value" in run.outputs:
            return self._bounded(step, number)
        if alike and run.kind == "op":
            return self._done_again(step, number, mine, answer, own)
        return other_results(step, number, run, own)

    def _done_again(self, step: int, number: int, mine: Trace, answer: Mapping[str, Any], own: Event) -> Difference:
        """Two results of an operation that has the same bits on every machine."""
        found = other_results(step, number, self.talk.event(step, number), own)
        captured = self._rerun.capture(step, number)
        job = self._evidence.job
        sizes = [b.header.nbytes for b in captured.inputs.values()]
        if sum(sizes) > MAX_OPERATION_BYTES or 0 in sizes:
            return replace(found, why=f"{found.why}; no record: {sum(sizes)} bytes of arguments")
        shown = {n: b.show(range(b.header.count)) for n, b in captured.inputs.items()}
        record = Record(
            **self._proved(step, number, mine, answer), operands=shown, outputs={}, elements=(), disputed=0,
            job_text=job.canonical().decode(),
        ).encode()  # fmt: skip
        try:
            finding = judge(record, self._evidence.key)
        except UnsupportedError as error:  # random draws, and operations with logged results inside
            return replace(found, why=f"{found.why}; no record: {error}")
        return replace(found, wrong=finding.wrong, records=(record,), findings=(finding,))

    def _proved(self, step: int, number: int, mine: Trace, answer: Mapping[str, Any]) -> dict[str, Any]:
        """What every record has: the run, both sides, and that they agree up to the event."""
        evidence = self._evidence
        sides = {
            "run": SideProof(
                self.talk.signed[(RESPONDER, step)], answer["event"].encode(), unhexes(answer["inclusion"]),
                unhexes(answer["consistency"]),
            ),
            "other": SideProof(
                self.talk.signed[(CHALLENGER, step)], mine.events[number], mine.tree.inclusion_proof(number),
                mine.tree.consistency_proof(number),
            ),
        }  # fmt: skip
        return {
            "job": self.talk.job, "step": step, "event": number, "note": evidence.notes[-1],
            "leaf": canonical.dumps(evidence.leaves[step].to_json()), "leaf_proof": evidence.tree.inclusion_proof(step),
            "keys": self._public(), "sides": sides, "prefix": mine.tree.root(number),
        }  # fmt: skip

    def _against_leaf(self, step: int) -> Difference | None:
        """Where both traces agree: the leaf must be what they end with."""
        size = self.talk.traces[step].size
        self.ask("event", step=step, event=size - 1)
        end, leaf = self.talk.event(step, size - 1), self._evidence.leaves[step]
        committed = {"sites": leaf.sites, **{f"metric:{n}": v for n, v in leaf.metrics.items()}}
        if leaf.state:
            committed["state"] = leaf.state
        for name, value in committed.items():
            if end.outputs.get(name) != value:
                why = f"{name}: both replays give {end.outputs.get(name)}; the run's leaf commits to {value}"
                return Difference(REFUTED, ("run",), step, size - 1, "the step's end", why)
        return None

    # ---- the elements ---------------------------------------------------------------------------------------------
    def _rounding(self, step: int, number: int, mine: Trace, answer: Mapping[str, Any]) -> Difference:
        """Two outputs of the same operation on the same operands."""
        run = self.talk.event(step, number)
        captured = self._rerun.capture(step, number)
        elements, shown = self._disputed(step, number, captured)
        made: list[bytes] = []
        findings: list[Finding] = []
        for part, needed in split(elements, captured, run):
            made.append(self._record(step, number, mine, answer, captured, part, needed, len(elements)))
            findings.append(judge(made[-1], self._evidence.key))
            if findings[-1].wrong:
                break  # one element outside refutes; for a benign difference every one is judged
        wrong = tuple(side for side in ("run", "other") if any(side in f.wrong for f in findings))
        result = REFUTED if wrong else findings[0].result
        repairs = {} if wrong else {run.args["seq"]: words(shown, elements)}
        why = f"{len(elements)} of {run.name} differ; {'outside' if wrong else 'all within'} the certified bound"
        return Difference(result, wrong, step, number, run.name, why, tuple(made), tuple(findings), repairs)

    def _bounded(self, step: int, number: int) -> Difference:
        """Two outputs of an operation without an exact definition: within the auditor's own certified bound, or not.

        There is no record: what the operation gives exactly can't be told from a few elements.
        """
        run, captured = self.talk.event(step, number), self._rerun.capture(step, number)
        assert captured.doubt is not None
        elements, shown = self._disputed(step, number, captured)
        fmt, (y, w) = parse_site(run.name)[1], captured.doubt
        values = values_at(shown, elements)
        inside = [
            within(float(v), around(float(y[e]), float(w[e])), fmt, run.args["signed"])
            for v, e in zip(values, elements.tolist(), strict=True)
        ]
        result, wrong = (BENIGN, ()) if all(inside) else (REFUTED, ("run",))
        why = (
            f"{len(inside)} of {run.name} differ, {inside.count(False)} outside the certified bound around this side's"
        )
        repairs = {} if wrong else {run.args["seq"]: words(shown, elements)}
        return Difference(result, wrong, step, number, run.name, why, repairs=repairs)

    def _disputed(self, step: int, number: int, captured: Captured) -> tuple[np.ndarray, Shown]:
        """Flat indices of the elements that differ, and the run's blocks that hold them."""
        where = {"step": step, "event": number, "part": "outputs", "name": "value"}
        own = captured.outputs["value"]
        theirs = unhexes(self.ask("hashes", **where)["hashes"])
        if len(theirs) != len(own.hashes):
            raise Forfeit(
                RESPONDER, f"an output of {len(theirs)} blocks; {parse_site(captured.event.name)[2]} is wanted"
            )
        blocks = [i for i, (a, b) in enumerate(zip(own.hashes, theirs, strict=True)) if a != b]
        shown = shown_in(self.ask("blocks", **where, blocks=blocks), blocks)
        width = own.header.width
        found = []
        for i in blocks:
            a, b = (np.frombuffer(x, f"<u{width}") for x in (own.block(i), shown.blocks[i]))
            found.append(np.flatnonzero(a != b) + i * (BLOCK_BYTES // width))
        return np.concatenate(found), shown

    def _record(
        self, step: int, number: int, mine: Trace, answer: Mapping[str, Any], captured: Captured,
        elements: Sequence[int], needed: Mapping[str, list[int]], disputed: int,
    ) -> bytes:  # fmt: skip
        run = self.talk.event(step, number)
        blocks = blocks_of(elements, captured.outputs["value"].header.width)
        where = {"step": step, "event": number, "part": "outputs", "name": "value"}
        theirs = shown_in(self.ask("blocks", **where, blocks=blocks), blocks)
        log = self._columns(step, number, run)
        return Record(
            **self._proved(step, number, mine, answer),
            operands={n: captured.inputs[n].show(b) for n, b in needed.items()},
            outputs={"run": theirs, "other": captured.outputs["value"].show(blocks)},
            elements=[int(e) for e in elements], disputed=disputed, log=log,
        ).encode()  # fmt: skip

    def _public(self) -> dict[str, str]:
        held = {"trainer": self._evidence.key, "run": self.talk.responder, "other": self._key.public_key()}
        return {name: keys.public_text(key) for name, key in held.items()}

    def _columns(self, step: int, number: int, run: Event) -> Mapping[str, str] | None:
        if "log" not in run.outputs:
            return None
        found = self.ask("columns", step=step, event=number)
        small = sum(len(base64.b64decode(text)) for text in found.values()) <= RECORD_BYTES // 8
        return found if small else None

    def close(self, difference: Difference | None) -> None:
        """End the dispute, naming its result and its first record."""
        record = difference.records[0] if difference and difference.records else b""
        result = "same" if difference is None else difference.result
        self.ask("close", result=result, record=hashlib.sha256(record).hexdigest())
