"""The rules of a dispute: what an answer must prove, and who loses by breaking them (protocol §8). Imports no torch.

A ``Conversation`` is fed every line, by either party while they talk, or by a third person from the transcript
afterwards: all three come to the same end. A party forfeits that

- sends a message out of turn: another number, another session, or not after the line before;
- sends one that is no message, or that its key did not sign;
- answers what was not asked, or with a proof that does not hold against what it committed to;
- answers one question twice, differently; commits twice, differently;
- refuses, or stops answering: the transcript then ends with a question.

A signed line names the hash of the line before it, and so all that went before. Hence what its content breaks is proved
by the transcript; silence and the first two rules are not, and a third person has to ask again.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.dispute.commitment import (
    CHALLENGER,
    COLUMNS,
    RESPONDER,
    Commitment,
    columns_digest,
    decode_columns,
    open_commitment,
)
from auditor.dispute.messages import START, Message, line_digest, peek, unseal
from auditor.dispute.record import unhex, unhexes
from vtrain.commit import keys, merkle
from vtrain.commit.blocks import Shown, header
from vtrain.commit.heads import head_digest, peek_head
from vtrain.commit.trace import Event, parse_event
from vtrain.errors import KeyFileError, MalformedRunError, ProofError, VtrainError

MAX_BLOCKS = 8192  # in one answer: 43 MiB as base64


class Forfeit(VtrainError):
    """A party broke the rules and loses.

    Args:
        side: ``challenger`` or ``responder``.
        why: which rule, one line.
        proved: whether the party's own signature shows it to anybody. Silence, lines that it did not sign and lines
            that follow others than these show it to the other party alone: whoever hands a transcript on can cut it,
            add to it, and change what he said himself.
    """

    exit_code = 1

    def __init__(self, side: str, why: str, proved: bool = False) -> None:
        super().__init__(f"the {side} forfeits: {why}")
        self.side, self.why, self.proved = side, why, proved


class Conversation:
    """A dispute so far; takes lines in order.

    Args:
        job: the job's digest, hex.
        head: digest of the run's last head, hex (``heads.head_digest``).
        responder: the key that answers must be signed with.

    Attributes:
        lines: the transcript.
        challenger: the challenger's key, once it has opened the dispute.
        traces: the responder's trace commitments by step.
        signed: both sides' last commitments as they signed them, by side and step.
        events: the responder's events that were shown, by step and number.
    """

    def __init__(self, job: str, head: str, responder: Ed25519PublicKey) -> None:
        self.job, self.head, self.responder = job, head, responder
        self.challenger: Ed25519PublicKey | None = None
        self.lines: list[bytes] = []
        self.session = ""
        self.traces: dict[int, Commitment] = {}
        self.signed: dict[tuple[str, int], dict[str, Any]] = {}
        self.events: dict[tuple[int, int], Event] = {}
        self._states: dict[tuple[int, int], bytes] = {}
        self._said: dict[bytes, bytes] = {}
        self._request: Message | None = None
        self._committed: dict[tuple[str, int, str], Commitment] = {}
        self._last = -1  # the run's last step
        self._blocks: dict[tuple[int, int, str, str], int] = {}  # of tensors whose hashes were shown: how many

    @property
    def whose_turn(self) -> str:
        """Who has to speak."""
        return CHALLENGER if len(self.lines) % 2 == 0 else RESPONDER

    @property
    def previous(self) -> str:
        """What the next message must name."""
        return line_digest(self.lines[-1]) if self.lines else START

    def take(self, line: bytes) -> Message:
        """The next line of the dispute, by the party whose turn it is.

        Raises:
            Forfeit: it breaks a rule.
        """
        side = self.whose_turn
        try:
            message = unseal(line, self._key(side, line))
            self._in_turn(message)
        except VtrainError as error:
            raise Forfeit(side, str(error)) from error
        try:
            if side == CHALLENGER:
                self._check_request(message)
            else:
                self._check_answer(message)
        except Forfeit:
            raise
        except VtrainError as error:
            raise Forfeit(side, str(error), proved=True) from error
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise Forfeit(side, f"a message of the wrong form: {error!r}"[:300], proved=True) from error
        self.lines.append(line)
        return message

    def _key(self, side: str, line: bytes) -> Ed25519PublicKey:
        if side == RESPONDER:
            return self.responder
        if self.challenger is None:
            try:
                self.challenger = keys.parse_public(peek(line).content.get("key"))
            except KeyFileError as error:
                raise MalformedRunError(f"the first message brings no key: {error}") from error
        return self.challenger

    def _in_turn(self, message: Message) -> None:
        if not self.lines:
            self.session = message.session
        found = (message.session, message.number, message.previous)
        if found != (self.session, len(self.lines), self.previous):
            raise MalformedRunError(f"out of turn: message {message.number} after {len(self.lines)} messages")

    # ---- the challenger's ------------------------------------------------------------------------------------------
    def _check_request(self, message: Message) -> None:
        if message.kind not in REQUESTS:
            raise MalformedRunError(f"request {message.kind!r}; want one of {', '.join(REQUESTS)}")
        if (not self.lines) != (message.kind == "open"):
            raise MalformedRunError("a dispute is opened once, by its first message")
        if message.content.keys() != REQUESTS[message.kind][0]:
            raise MalformedRunError(f"request {message.kind!r}: fields {sorted(message.content)}")
        if message.kind == "trace":
            self._commit(CHALLENGER, message.content["step"], message.content["commitment"])
        if message.kind == "open":
            self._check_open(message.content)
        if message.kind == "states":
            unhex(message.content["root"])
        if not self._sensible(message.kind, message.content):
            raise MalformedRunError(f"request {message.kind!r} about what was not committed to, or out of its range")
        self._request = message

    def _check_open(self, asked: Mapping[str, Any]) -> None:
        head = peek_head(asked["head"])
        found = (asked["job"], head.job_digest.hex(), head_digest(asked["head"]))
        if found != (self.job, self.job, self.head):
            raise ProofError(f"a dispute about another run, whose head has {head.size} leaves")
        self._last = head.size - 1

    def _sensible(self, kind: str, asked: Mapping[str, Any]) -> bool:
        """Whether a request is about something that the responder can be asked about.

        Complete, as whoever can't answer loses: what passes here, an honest responder can answer.
        """
        numbers = [asked[n] for n in ("first", "last", "step", "size", "event") if n in asked]
        if not all(type(n) is int and 0 <= n < 2**53 for n in numbers):
            return False
        if any(asked[n] > self._last for n in ("first", "last", "step") if n in asked):
            return False
        if kind == "states":
            return bool(asked["first"] <= asked["last"])
        if kind in ("state", "stateprefix"):
            known = (asked["first"], asked["last"]) in self._states
            steps = asked["last"] - asked["first"] + 1
            inside = asked["size"] <= steps if "size" in asked else 0 <= asked["step"] - asked["first"] < steps
            return bool(known and inside)
        if kind in ("prefix", "event"):
            trace = self.traces.get(asked["step"])
            return trace is not None and asked.get("size", 0) <= trace.size and asked.get("event", 0) < trace.size
        if kind == "hashes":
            return self._is_tensor(asked)
        if kind == "blocks":
            return self._are_blocks(asked["blocks"], self._blocks.get(_tensor(asked), 0))
        event = self.event(asked["step"], asked["event"]) if kind == "columns" else None
        return event is None or (event.kind == "site" and "log" in event.outputs)

    def _is_tensor(self, asked: Mapping[str, Any]) -> bool:
        """Whether the name is a tensor's, and not that of another digest that an event has."""
        kind = self.event(asked["step"], asked["event"]).kind
        log = kind == "site" and (asked["part"], asked["name"]) == ("outputs", "log")
        return kind in ("op", "site") and not log and bool(_digest_of(self, asked))

    def _are_blocks(self, indices: Any, count: int) -> bool:
        """Whether they are ascending blocks of a tensor that has so many, no more than an answer holds."""
        plain = isinstance(indices, list) and 0 < len(indices) <= MAX_BLOCKS
        plain = plain and all(type(i) is int and 0 <= i < count for i in indices)
        return plain and indices == sorted(set(indices))

    def _commit(self, side: str, step: int, signed: Any) -> None:
        """Take a side's commitment to a step's trace; a second one only after the challenger made repairs."""
        key = self.challenger if side == CHALLENGER else self.responder
        assert key is not None
        found = open_commitment(signed, key)
        if (found.job, found.head, found.step) != (self.job, self.head, step) or type(step) is not int:
            raise ProofError("a commitment about another job, run or step")
        if (found.session, found.side) != (self.session, side):
            raise ProofError("a commitment of another dispute, or of the other side")
        if self._committed.setdefault((side, step, found.repairs if side == CHALLENGER else ""), found) != found:
            raise ProofError(f"two commitments to the trace of step {step}")
        self.signed[(side, step)] = signed
        if side == RESPONDER:
            self.traces[step] = found

    # ---- the responder's -------------------------------------------------------------------------------------------
    def _check_answer(self, message: Message) -> None:
        request = self._request
        assert request is not None
        if message.kind == "refused":
            raise Forfeit(RESPONDER, f"refuses {request.kind!r}: {str(message.content.get('why'))[:200]}", proved=True)
        if message.kind != "answer":
            raise MalformedRunError(f"an answer is wanted, found {message.kind!r}")
        _, fields, check = REQUESTS[request.kind]
        if message.content.keys() != fields:
            raise MalformedRunError(f"answer to {request.kind!r}: fields {sorted(message.content)}")
        question = rfc8785.dumps({"kind": request.kind, "content": _question(request)})
        said = rfc8785.dumps(message.content)
        if self._said.setdefault(question, said) != said:
            raise ProofError(f"two answers to one question ({request.kind!r})")
        check(self, request.content, message.content)

    def event(self, step: int, number: int) -> Event:
        """An event that the responder has shown.

        Raises:
            MalformedRunError: it was not asked for.
        """
        found = self.events.get((step, number))
        if found is None:
            raise MalformedRunError(f"event {number} of step {step} was not shown before")
        return found


def _question(request: Message) -> dict[str, Any]:
    """What of a request decides the answer: not the challenger's own commitments."""
    return {k: v for k, v in request.content.items() if k not in ("root", "commitment")}


def shown_in(content: Mapping[str, Any], indices: Sequence[int]) -> Shown:
    """Blocks from an answer; not checked against a digest.

    Raises:
        ProofError: they are not as many bytes as the blocks have.
    """
    head = header(content["dtype"], content["shape"])
    data, blocks, at = keys.decode_base64(content["data"]), {}, 0
    for index in indices:
        size = head.block_size(index)
        blocks[index] = data[at : at + size]
        at += size
    if at != len(data):
        raise ProofError(f"{len(data)} bytes of blocks; want {at}")
    return Shown(head, blocks, unhexes(content["proof"]))


# ---- what each answer must prove ------------------------------------------------------------------------------------
def _open(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    if (said["job"], said["head"]) != (talk.job, talk.head):
        raise ProofError("a dispute about another run")


def _states(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    talk._states[(asked["first"], asked["last"])] = unhex(said["root"])


def _stateprefix(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    first, last = asked["first"], asked["last"]
    root = talk._states[(first, last)]
    merkle.verify_consistency(asked["size"], last - first + 1, unhex(said["root"]), root, unhexes(said["proof"]))


def _state(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    first, last, step = asked["first"], asked["last"], asked["step"]
    leaf = merkle.leaf_hash(str(said["state"]).encode())
    root = talk._states[(first, last)]
    merkle.verify_inclusion(step - first, last - first + 1, leaf, unhexes(said["proof"]), root)


def _trace(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    talk._commit(RESPONDER, asked["step"], said["commitment"])


def _prefix(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    trace = talk.traces[asked["step"]]
    root, proof = unhex(said["root"]), unhexes(said["proof"])
    merkle.verify_consistency(asked["size"], trace.size, root, bytes.fromhex(trace.root), proof)


def _event(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    trace, data = talk.traces[asked["step"]], str(said["event"]).encode()
    leaf = merkle.leaf_hash(data)
    proof = unhexes(said["inclusion"])
    merkle.verify_inclusion(asked["event"], trace.size, leaf, proof, bytes.fromhex(trace.root))
    talk.events[(asked["step"], asked["event"])] = parse_event(data)


def _tensor(asked: Mapping[str, Any]) -> tuple[int, int, str, str]:
    return asked["step"], asked["event"], asked["part"], asked["name"]


def _digest_of(talk: Conversation, asked: Mapping[str, Any]) -> str:
    event = talk.event(asked["step"], asked["event"])
    part = {"inputs": event.inputs, "outputs": event.outputs}[asked["part"]]
    return part[asked["name"]]


def _hashes(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    head, hashes = header(said["dtype"], said["shape"]), unhexes(said["hashes"])
    if len(hashes) != head.count or head.digest(merkle.root(hashes)) != _digest_of(talk, asked):
        raise ProofError("hashes of blocks that are not those of the event's digest")
    talk._blocks[_tensor(asked)] = len(hashes)


def _blocks(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    shown_in(said, asked["blocks"]).check(_digest_of(talk, asked), "blocks")


def _columns(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    digest = talk.event(asked["step"], asked["event"]).outputs.get("log")
    if digest != columns_digest(decode_columns(said)):
        raise ProofError("decisions that are not those of the event's digest")


def _close(talk: Conversation, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    pass


_Check = Callable[[Conversation, Mapping[str, Any], Mapping[str, Any]], None]
_AT = {"step", "event", "part", "name"}
# request -> its fields, its answer's fields, what the answer must prove
REQUESTS: dict[str, tuple[set[str], set[str], _Check]] = {
    "open": ({"job", "head", "key"}, {"job", "head"}, _open),
    "states": ({"first", "last", "root"}, {"root"}, _states),
    "stateprefix": ({"first", "last", "size"}, {"root", "proof"}, _stateprefix),
    "state": ({"first", "last", "step"}, {"state", "proof"}, _state),
    "trace": ({"step", "commitment"}, {"commitment"}, _trace),
    "prefix": ({"step", "size"}, {"root", "proof"}, _prefix),
    "event": ({"step", "event"}, {"event", "inclusion", "consistency"}, _event),
    "hashes": (_AT, {"dtype", "shape", "hashes"}, _hashes),
    "blocks": (_AT | {"blocks"}, {"dtype", "shape", "data", "proof"}, _blocks),
    "columns": ({"step", "event"}, set(COLUMNS), _columns),
    "close": ({"result", "record"}, set(), _close),
}


def encode_blocks(shown: Shown) -> dict[str, Any]:
    """Blocks as an answer has them."""
    data = b"".join(shown.blocks[i] for i in sorted(shown.blocks))
    return {
        "dtype": shown.header.dtype, "shape": list(shown.header.shape), "data": base64.b64encode(data).decode(),
        "proof": [h.hex() for h in shown.proof],
    }  # fmt: skip


def check_transcript(lines: Sequence[bytes], job: str, head: str, responder: Ed25519PublicKey) -> Forfeit | None:
    """Who loses by a transcript, for a third person, and whether it proves that; None if nobody broke a rule.

    Args:
        lines: all messages in order; hostile input.
        job, head, responder: as for ``Conversation``.
    """
    talk = Conversation(job, head, responder)
    try:
        for line in lines:
            talk.take(line)
    except Forfeit as found:
        return found
    if talk.whose_turn == RESPONDER:
        return Forfeit(RESPONDER, "the last question has no answer")
    return None
