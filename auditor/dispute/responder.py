"""The side that answers: usually the trainer, who replays its run and shows what it is asked for (protocol §8)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditor.dispute.commitment import RESPONDER, Commitment
from auditor.dispute.messages import Message, seal
from auditor.dispute.rerun import Captured, Rerun
from auditor.dispute.rules import Conversation, Forfeit, encode_blocks
from vtrain.commit import heads, merkle
from vtrain.commit.blocks import Blocks
from vtrain.commit.trace import Trace
from vtrain.errors import UsageError, VtrainError


class Responder:
    """Answers one challenger.

    Args:
        rerun: its own computation.
        key: the key that signed the run.

    Attributes:
        talk: the dispute so far.
    """

    def __init__(self, rerun: Rerun, key: Ed25519PrivateKey) -> None:
        self._rerun, self._key = rerun, key
        self._trace: tuple[int, Trace] | None = None
        self._captured: tuple[int, int, Captured] | None = None
        self._states: tuple[int, int, list[str]] | None = None
        evidence = rerun.evidence
        head = heads.head_digest(evidence.notes[-1])
        self.talk = Conversation(evidence.digest.hex(), head, key.public_key())

    def answer(self, line: bytes) -> bytes:
        """The answer to a challenger's line.

        Raises:
            Forfeit: the challenger broke a rule.
        """
        try:
            asked = self.talk.take(line)
        except Forfeit:
            self.talk.lines.append(line)  # the evidence against its sender
            raise
        answers: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "open": lambda c: {"job": self.talk.job, "head": self.talk.head},
            "states": self._commit_states, "stateprefix": self._state_prefix, "state": self._state,
            "trace": self._commit_trace, "prefix": self._prefix, "event": self._event, "hashes": self._hashes,
            "blocks": self._blocks, "columns": self._columns, "close": lambda c: {},
        }  # fmt: skip
        try:
            kind, content = "answer", answers[asked.kind](asked.content)
        except VtrainError as error:
            kind, content = "refused", {"why": str(error)[:500]}
        message = Message(self.talk.session, len(self.talk.lines), self.talk.previous, kind, content)
        reply = seal(message, self._key)
        if kind == "answer":
            self.talk.take(reply)
        else:
            self.talk.lines.append(reply)
        return reply

    # ---- states ---------------------------------------------------------------------------------------------------
    def _state_tree(self, content: Mapping[str, Any]) -> tuple[list[str], merkle.Tree]:
        first, last = content["first"], content["last"]
        if self._states is None or self._states[:2] != (first, last):
            self._states = (first, last, self._rerun.states(first, last))
        states = self._states[2]
        return states, merkle.Tree(merkle.leaf_hash(s.encode()) for s in states)

    def _commit_states(self, content: Mapping[str, Any]) -> dict[str, Any]:
        return {"root": self._state_tree(content)[1].root().hex()}

    def _state_prefix(self, content: Mapping[str, Any]) -> dict[str, Any]:
        tree, size = self._state_tree(content)[1], content["size"]
        return {"root": tree.root(size).hex(), "proof": _hexes(tree.consistency_proof(size))}

    def _state(self, content: Mapping[str, Any]) -> dict[str, Any]:
        (states, tree), at = self._state_tree(content), content["step"] - content["first"]
        return {"state": states[at], "proof": _hexes(tree.inclusion_proof(at))}

    # ---- traces ---------------------------------------------------------------------------------------------------
    def trace(self, step: int) -> Trace:
        """The trace of a step."""
        if self._trace is None or self._trace[0] != step:
            self._trace = (step, self._rerun.trace(step))
        return self._trace[1]

    def _commit_trace(self, content: Mapping[str, Any]) -> dict[str, Any]:
        step, talk = content["step"], self.talk
        trace = self.trace(step)
        about = (talk.job, talk.head, talk.session, RESPONDER)
        made = Commitment(*about, step, len(trace), trace.tree.root().hex())
        return {"commitment": made.sign(self._key)}

    def _prefix(self, content: Mapping[str, Any]) -> dict[str, Any]:
        tree, size = self.trace(content["step"]).tree, content["size"]
        return {"root": tree.root(size).hex(), "proof": _hexes(tree.consistency_proof(size))}

    def _event(self, content: Mapping[str, Any]) -> dict[str, Any]:
        trace, number = self.trace(content["step"]), content["event"]
        return {
            "event": trace.events[number].decode(),
            "inclusion": _hexes(trace.tree.inclusion_proof(number)),
            "consistency": _hexes(trace.tree.consistency_proof(number)),
        }

    # ---- tensors --------------------------------------------------------------------------------------------------
    def _tensor(self, content: Mapping[str, Any]) -> Blocks:
        at = (content["step"], content["event"])
        if self._captured is None or self._captured[:2] != at:
            self._captured = (*at, self._rerun.capture(*at))
        found = self._captured[2]
        return {"inputs": found.inputs, "outputs": found.outputs}[content["part"]][content["name"]]

    def _hashes(self, content: Mapping[str, Any]) -> dict[str, Any]:
        blocks = self._tensor(content)
        head = blocks.header
        return {"dtype": head.dtype, "shape": list(head.shape), "hashes": _hexes(blocks.hashes)}

    def _blocks(self, content: Mapping[str, Any]) -> dict[str, Any]:
        return encode_blocks(self._tensor(content).show(content["blocks"]))

    def _columns(self, content: Mapping[str, Any]) -> dict[str, Any]:
        event = self.talk.event(content["step"], content["event"])
        found = self._rerun.columns(content["step"], event.args["seq"])
        if found is None:
            raise UsageError("the site has no decisions")
        return {name: base64.b64encode(data).decode() for name, data in found.items()}


def _hexes(hashes: list[bytes]) -> list[str]:
    return [h.hex() for h in hashes]
