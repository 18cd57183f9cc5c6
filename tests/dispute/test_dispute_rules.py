"""Who loses a dispute by breaking its rules, and that the transcript proves it to a third person."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from parties import AUDITOR, challenger, changed, responder, ulps
from run_helpers import HERE, KEY, honest

from auditor.dispute.challenger import Challenger
from auditor.dispute.commitment import Commitment
from auditor.dispute.messages import Message, line_digest, peek, seal, unseal
from auditor.dispute.rerun import Rerun
from auditor.dispute.rules import CHALLENGER, MAX_BLOCKS, RESPONDER, Conversation, Forfeit, check_transcript
from auditor.evidence import open_run
from vtrain.errors import MalformedRunError, SignatureError, StorageError

Content = dict[str, Any]
CHEAT = changed(3, 2, ulps(5, 1000))


def opened(distort: Callable[[Message], Message], key: Ed25519PrivateKey = KEY) -> Challenger:
    """A dispute whose responder's messages are distorted, and signed again."""
    theirs = responder(honest(), CHEAT)

    def channel(line: bytes) -> bytes:
        reply = unseal(theirs.answer(line), KEY.public_key())
        return seal(distort(reply), key)

    return Challenger(Rerun(open_run(honest()), HERE), AUDITOR, channel)


def third_person(talk: Conversation) -> Forfeit | None:
    """What somebody who only has the transcript finds."""
    return check_transcript(talk.lines, talk.job, talk.head, KEY.public_key())


def loses(change: Callable[[str, Content], Content], why: str) -> None:
    """A responder who changes an answer loses, for those who talk and for a third person."""
    theirs = responder(honest(), CHEAT)

    def channel(line: bytes) -> bytes:
        asked = peek(line).kind
        reply = unseal(theirs.answer(line), KEY.public_key())
        return seal(replace(reply, content=change(asked, dict(reply.content))), KEY)

    heard: list[Conversation] = []
    with pytest.raises(Forfeit, match=why) as caught:
        dispute = _Heard(Rerun(open_run(honest()), HERE), AUDITOR, channel, heard)
        dispute.first_step(1, 3)
        dispute.dispute(3)
    assert caught.value.side == RESPONDER
    found = third_person(heard[0])
    assert found is not None and (found.side, found.why) == (RESPONDER, caught.value.why)
    assert found.proved and caught.value.proved


class _Heard(Challenger):
    """Keeps its conversation where opening it fails."""

    def __init__(self, rerun: Rerun, key: Ed25519PrivateKey, channel: Any, heard: list[Conversation]) -> None:
        self._heard = heard
        super().__init__(rerun, key, channel)

    def ask(self, kind: str, **content: Any) -> Content:
        self._heard.append(self.talk)
        return super().ask(kind, **content)


def only(kind: str, change: Callable[[Content], Any]) -> Callable[[str, Content], Content]:
    def apply(asked: str, content: Content) -> Content:
        if asked == kind:
            change(content)
        return content

    return apply


def flip(text: str) -> str:
    return ("1" if text[0] != "1" else "2") + text[1:]


def flipped(name: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[name] = flip(content[name])

    return change


def all_flipped(name: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[name] = [flip(h) for h in content[name]]

    return change


def other_data(content: Content) -> None:
    data = bytearray(base64.b64decode(content["data"]))
    data[0] ^= 1
    content["data"] = base64.b64encode(data).decode()


def other_event(content: Content) -> None:
    content["event"] = content["event"].replace("addmm", "mm")


WRONG = [
    ("stateprefix", flipped("root"), "consistency"),
    ("stateprefix", all_flipped("proof"), "consistency"),
    ("state", lambda c: c.update(state="vtrain-state-v1-sha256-1MiB:" + "0" * 64), "inclusion"),
    ("prefix", flipped("root"), "consistency"),
    ("event", other_event, "inclusion"),
    ("event", all_flipped("inclusion"), "inclusion"),
    ("hashes", all_flipped("hashes"), "not those of the event"),
    ("hashes", lambda c: c.update(shape=[10, 8]), "not those of the event"),
    ("blocks", other_data, "lead to digest"),
    ("blocks", lambda c: c.update(dtype="I32"), "lead to digest"),
    ("trace", lambda c: c["commitment"].update(step=4), "signature"),
    ("trace", lambda c: c.clear(), "fields"),
    ("states", lambda c: c.update(root=5), "no hash"),
    ("open", lambda c: c.update(job="0" * 64), "another run"),
]


@pytest.mark.parametrize("kind,change,why", WRONG, ids=[f"{k}-{w}-{i}" for i, (k, _, w) in enumerate(WRONG)])
def test_an_answer_that_does_not_prove_itself(kind: str, change: Callable[[Content], None], why: str) -> None:
    loses(only(kind, change), why)


def test_two_answers_to_one_question() -> None:
    """The second commitment to a trace is another one, rightly signed."""
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, responder(honest(), CHEAT).answer)
    dispute.dispute(3)
    messages = [peek(line) for line in dispute.talk.lines]
    at = next(i for i, message in enumerate(messages) if message.kind == "trace")
    question, said = messages[at], dict(messages[at + 1].content["commitment"])
    del said["signature"]
    other = {"commitment": Commitment(**{**said, "root": "a" * 64}).sign(KEY)}

    def channel(line: bytes) -> bytes:
        asked = peek(line)
        return seal(Message(asked.session, asked.number + 1, line_digest(line), "answer", other), KEY)

    dispute._channel = channel
    with pytest.raises(Forfeit, match="two answers to one question") as caught:
        dispute.ask("trace", step=3, commitment=question.content["commitment"])
    found = third_person(dispute.talk)
    assert found is not None and found.side == RESPONDER and found.why == caught.value.why


@pytest.mark.parametrize("what", ["number", "session", "previous"])
def test_out_of_turn(what: str) -> None:
    def distort(message: Message) -> Message:
        if message.number < 3:
            return message
        return replace(message, **{what: message.number + 2 if what == "number" else "0" * 64})

    dispute = opened(distort)
    with pytest.raises(Forfeit, match="out of turn") as caught:
        dispute.first_step(1, 2)
    assert caught.value.side == RESPONDER
    found = third_person(dispute.talk)
    assert found is not None and found.side == RESPONDER and "out of turn" in found.why


def test_a_challenger_out_of_turn_loses() -> None:
    theirs = responder(honest())
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, theirs.answer)
    message = Message(dispute.session, 5, dispute.talk.previous, "states", {"first": 0, "last": 1, "root": "0" * 64})
    line = seal(message, AUDITOR)
    with pytest.raises(Forfeit, match="out of turn") as caught:
        theirs.answer(line)
    assert caught.value.side == CHALLENGER
    found = third_person_of([*dispute.talk.lines, line], dispute.talk)
    assert found is not None and found.side == CHALLENGER


def third_person_of(lines: list[bytes], talk: Conversation) -> Forfeit | None:
    return check_transcript(lines, talk.job, talk.head, KEY.public_key())


QUESTIONS: list[tuple[str, Content]] = [
    ("states", {"first": 3, "last": 1, "root": "0" * 64}), ("states", {"first": -1, "last": 1, "root": "0" * 64}),
    ("stateprefix", {"first": 0, "last": 1, "size": 1}), ("state", {"first": 0, "last": 1, "step": 0}),
    ("prefix", {"step": 3, "size": 1}), ("event", {"step": 3, "event": 1}),
    ("hashes", {"step": 3, "event": 1, "part": "outputs", "name": "value"}),
    ("blocks", {"step": 3, "event": 1, "part": "outputs", "name": "value", "blocks": [0]}),
    ("columns", {"step": 3, "event": 1}), ("open", {"job": "", "head": "", "key": ""}), ("shutdown", {}),
    ("states", {"first": 0, "last": 7, "root": "0" * 64}), ("states", {"first": 0, "last": 1, "root": "xyz"}),
    ("states", {"first": 0, "last": 1, "root": 5}),
    ("states", {"first": 0}),
]  # fmt: skip


@pytest.mark.parametrize("kind,content", QUESTIONS, ids=[f"{k}-{i}" for i, (k, _) in enumerate(QUESTIONS)])
def test_a_question_that_makes_no_sense_loses(kind: str, content: Content) -> None:
    theirs = responder(honest())
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, theirs.answer)
    line = seal(Message(dispute.session, 2, dispute.talk.previous, kind, content), AUDITOR)
    with pytest.raises(Forfeit) as caught:
        theirs.answer(line)
    assert caught.value.side == CHALLENGER
    found = third_person_of([*dispute.talk.lines, line], dispute.talk)
    assert found is not None and found.side == CHALLENGER


def _asked_afterwards(content: Content, at: int) -> Content:
    where = {"part": "outputs", "name": "value"}
    return {n: at if v == "here" else v for n, v in {"step": 3, "event": "here", **where, **content}.items()}


AFTERWARDS: dict[str, tuple[str, Content]] = {
    "blocks beyond the tensor": ("blocks", {"blocks": [0, 1 << 20]}),
    "blocks twice": ("blocks", {"blocks": [0, 0]}),
    "too many blocks": ("blocks", {"blocks": list(range(MAX_BLOCKS + 1))}),
    "blocks of what has no known number": ("blocks", {"part": "inputs", "name": "a", "blocks": [0]}),
    "a digest that is no tensor's": ("hashes", {"event": 0, "name": "state"}),
    "decisions as a tensor": ("hashes", {"name": "log"}),
    "no such part": ("hashes", {"part": "args"}),
    "no such tensor": ("hashes", {"name": "c"}),
}


@pytest.mark.parametrize("name", list(AFTERWARDS))
def test_questions_that_an_honest_party_could_not_answer(name: str) -> None:
    """They are the challenger's fault: else anybody could make an honest trainer forfeit."""
    kind, content = AFTERWARDS[name]
    run = honest("certified16")
    theirs = responder(run, CHEAT)
    dispute = Challenger(Rerun(open_run(run), HERE), AUDITOR, theirs.answer)
    found = dispute.dispute(3)
    assert found is not None
    dispute.ask("event", step=3, event=0)
    asked = _asked_afterwards(content, found.event)
    line = seal(Message(dispute.session, len(dispute.talk.lines), dispute.talk.previous, kind, asked), AUDITOR)
    with pytest.raises(Forfeit) as caught:
        theirs.answer(line)
    assert (caught.value.side, caught.value.proved) == (CHALLENGER, True)
    lost = third_person_of([*dispute.talk.lines, line], dispute.talk)
    assert lost is not None and (lost.side, lost.why) == (CHALLENGER, caught.value.why)


@pytest.mark.parametrize("change", [{"side": RESPONDER}, {"session": "1" * 64}, {"head": "1" * 64}, {"job": "1" * 64}])
def test_a_commitment_is_of_one_dispute_and_part(change: dict[str, str]) -> None:
    """What was signed in another dispute, or for the other side, is worth nothing here; by either party."""
    theirs = responder(honest(), CHEAT)
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, theirs.answer)
    about = {"job": dispute.talk.job, "head": dispute.talk.head, "session": dispute.talk.session, "side": CHALLENGER}
    made = Commitment(**{**about, **change}, step=3, size=5, root="a" * 64)
    with pytest.raises(Forfeit, match=r"another dispute|another job") as caught:
        dispute.ask("trace", step=3, commitment=made.sign(AUDITOR))
    assert (caught.value.side, caught.value.proved) == (CHALLENGER, True)

    def distort(message: Message) -> Message:
        if "commitment" not in message.content:
            return message
        said = {k: v for k, v in message.content["commitment"].items() if k != "signature"}
        changes = {**change, **({"side": CHALLENGER} if "side" in change else {})}
        return replace(message, content={"commitment": Commitment(**{**said, **changes}).sign(KEY)})

    with pytest.raises(Forfeit, match=r"another dispute|another job") as caught:
        opened(distort).dispute(3)
    assert (caught.value.side, caught.value.proved) == (RESPONDER, True)


def test_a_challenger_commits_once_for_its_repairs() -> None:
    """Not A, then B after some repair, then another one without it."""
    theirs = responder(honest(), CHEAT)
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, theirs.answer)
    about = (dispute.talk.job, dispute.talk.head, dispute.talk.session, CHALLENGER)
    for root, repairs in (("a", "0"), ("b", "1"), ("a", "0")):
        made = Commitment(*about, 3, 5, root * 64, repairs * 64)
        dispute.ask("trace", step=3, commitment=made.sign(AUDITOR))
    made = Commitment(*about, 3, 5, "c" * 64)
    with pytest.raises(Forfeit, match="two commitments") as caught:
        dispute.ask("trace", step=3, commitment=made.sign(AUDITOR))
    assert caught.value.side == CHALLENGER


def test_a_dispute_about_another_run_is_the_challengers_fault() -> None:
    theirs, other = responder(honest()), open_run(honest("certified16"))
    with pytest.raises(Forfeit, match="about another run") as caught:
        Challenger(Rerun(other, HERE), AUDITOR, theirs.answer)
    assert caught.value.side == CHALLENGER


def test_many_blocks_are_asked_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import auditor.dispute.operation as operation
    import auditor.dispute.rules as rules

    def all_of_it(out: torch.Tensor) -> None:
        out.view(torch.int32).view(-1)[:] += 1000

    cheat = changed(3, 13, all_of_it)  # 16 x 192 floats: three blocks
    whole = challenger(honest(), cheat).dispute(3)
    monkeypatch.setattr(operation, "MAX_BLOCKS", 1)
    monkeypatch.setattr(rules, "MAX_BLOCKS", 1)
    asking = challenger(honest(), cheat)
    monkeypatch.setattr(operation.Operation, "_record", lambda self, *a: whole.records[0])
    parts = asking.dispute(3)
    assert whole is not None and parts is not None
    assert parts.why == whole.why and parts.wrong == whole.wrong == ("run",)
    asked = [peek(line).content["blocks"] for line in asking.talk.lines if peek(line).kind == "blocks"]
    assert asked[:3] == [[0], [1], [2]]


def test_no_answer_is_seen_in_the_transcript() -> None:
    def silent(line: bytes) -> bytes:
        if peek(line).kind == "trace":
            raise Forfeit(RESPONDER, "said nothing for 5 s")
        return theirs.answer(line)

    theirs = responder(honest(), CHEAT)
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, silent)
    with pytest.raises(Forfeit):
        dispute.dispute(3)
    found = third_person(dispute.talk)
    assert found is not None and (found.side, found.why) == (RESPONDER, "the last question has no answer")
    assert not found.proved  # the challenger could have cut the answer off


def test_a_refusal_loses() -> None:
    theirs = responder(honest())

    def unable(first: int, last: int) -> list[str]:
        raise StorageError("disk full")

    theirs._rerun.states = unable  # type: ignore[method-assign]
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, theirs.answer)
    with pytest.raises(Forfeit, match="disk full") as caught:
        dispute.ask("states", first=0, last=6, root="0" * 64)
    assert (caught.value.side, caught.value.proved) == (RESPONDER, True)
    assert theirs.talk.lines == dispute.talk.lines  # both keep it
    found = third_person(dispute.talk)
    assert found is not None and (found.side, found.proved) == (RESPONDER, True)


def test_another_key_proves_nothing_to_others() -> None:
    """Anybody can write such a line: it ends the talk, and a third person sees that it is not the responder's."""
    with pytest.raises(Forfeit, match="not by key") as caught:
        opened(lambda m: m, AUDITOR)
    assert not caught.value.proved
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, responder(honest()).answer)
    found = third_person_of([*dispute.talk.lines[:1], seal(peek(dispute.talk.lines[1]), AUDITOR)], dispute.talk)
    assert found is not None and (found.side, found.proved) == (RESPONDER, False)


def test_a_question_changed_afterwards_proves_nothing() -> None:
    """Who hands a transcript on can sign another question of his own; the true answer then follows another line."""
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, responder(honest(), CHEAT).answer)
    dispute.dispute(3)
    lines = list(dispute.talk.lines)
    at = next(i for i, line in enumerate(lines) if peek(line).kind == "prefix")
    question = peek(lines[at])
    lines[at] = seal(replace(question, content={**question.content, "size": question.content["size"] - 1}), AUDITOR)
    found = third_person_of(lines, dispute.talk)
    assert found is not None and (found.side, found.proved) == (RESPONDER, False)
    # the same of an answer, against the challenger
    lines = list(dispute.talk.lines)
    lines[3] = seal(replace(peek(lines[3]), kind="refused", content={"why": "x"}), KEY)
    found = third_person_of(lines, dispute.talk)
    assert found is not None and (found.side, found.proved) == (RESPONDER, True)
    lines = [*dispute.talk.lines[:5], *dispute.talk.lines[7:]]
    found = third_person_of(lines, dispute.talk)
    assert found is not None and not found.proved


def test_an_honest_transcript_has_no_loser() -> None:
    dispute = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, responder(honest(), CHEAT).answer)
    found = dispute.dispute(3)
    dispute.close(found)
    assert third_person(dispute.talk) is None
    assert third_person_of(dispute.talk.lines[:-1], dispute.talk) is not None
    assert check_transcript(dispute.talk.lines, "0" * 64, dispute.talk.head, KEY.public_key()) is not None


def test_messages_are_bounded_and_canonical() -> None:
    message = Message("0" * 64, 0, "1" * 64, "open", {"job": "x"})
    line = seal(message, KEY)
    assert unseal(line, KEY.public_key()) == message
    value = json.loads(line)
    for bad in (
        line + b" ", line.replace(b'"number":0', b'"number":0.0'), line.replace(b'"kind"', b'"kin"'),
        line.replace(b'"number":0', b'"number":-1'), b"[]", b"", b"\xff", b"{" * 5000, line * 2,
    ):  # fmt: skip
        with pytest.raises(MalformedRunError):
            unseal(bad, KEY.public_key())
    value["body"]["content"]["job"] = "y"
    from rfc8785 import dumps

    with pytest.raises(SignatureError):
        unseal(dumps(value), KEY.public_key())
    with pytest.raises(MalformedRunError, match="bytes"):
        unseal(b"x" * ((64 << 20) + 1), KEY.public_key())
