"""Asking the other side: questions signed and chained, answers held to the rules (protocol §8)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from auditor.dispute.messages import Message, seal
from auditor.dispute.rerun import Rerun
from auditor.dispute.rules import Conversation, Forfeit
from auditor.evidence import Evidence
from vtrain.commit import heads, keys

Channel = Callable[[bytes], bytes]  # a line there, the answer's line back


class Asker:
    """One side of a dispute, which asks; the party on a channel answers.

    Args:
        rerun: its own computation.
        key: its key.
        channel: sends a line and gives the answer; raises Forfeit(RESPONDER) where none comes.
        responder: the key that answers must be signed with; the trainer's by default.
        run: the run that is disputed; by default the one that ``rerun`` does again.

    Attributes:
        rerun, key: as given.
        evidence: the run that is disputed.
        talk: the dispute so far; ``talk.lines`` is the transcript.
        session: names this dispute; hex.
    """

    def __init__(
        self, rerun: Rerun, key: Ed25519PrivateKey, channel: Channel, responder: Ed25519PublicKey | None = None,
        run: Evidence | None = None,
    ) -> None:  # fmt: skip
        self.rerun, self.key, self._channel = rerun, key, channel
        self.evidence = evidence = run or rerun.evidence
        head = heads.head_digest(evidence.notes[-1])
        self.talk = Conversation(evidence.digest.hex(), head, responder or evidence.key)
        self.session = os.urandom(32).hex()
        self.ask("open", job=self.talk.job, head=evidence.notes[-1], key=keys.public_text(key))

    def ask(self, kind: str, **content: Any) -> dict[str, Any]:
        """One question and its answer.

        Raises:
            Forfeit: the responder breaks a rule.
        """
        message = Message(self.session, len(self.talk.lines), self.talk.previous, kind, content)
        line = seal(message, self.key)
        self.talk.take(line)
        reply = self._channel(line)
        try:
            return self.talk.take(reply).content
        except Forfeit:
            self.talk.lines.append(reply)  # the evidence against its sender
            raise
