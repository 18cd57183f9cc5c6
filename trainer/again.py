"""Steps that a resumed run does again: they must come out as they had before the interruption (protocol §3).

An auditor's loop is not interrupted. What a resumed loop does otherwise - a loader that begins its epoch anew, a
generator or a number in a variable of the program's, which no checkpoint holds - would refute an honest trainer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vtrain.commit.leaf import Leaf
from vtrain.engine.backend import environment
from vtrain.errors import StateError
from vtrain.policy import Policy
from vtrain.store.lost import LostStep

NEXT = "next"  # in a checkpoint's notes: digest of the batch that the step after it was begun with


class Again:
    """Compares the steps done with those that were lost.

    Args:
        policy: the run's.
        lost: by number.
        anew: whether not to compare.

    Attributes:
        machine: digest of what this process runs on.
    """

    def __init__(self, policy: Policy, lost: Mapping[int, LostStep], anew: bool = False) -> None:
        self._lost, self._anew = lost, anew
        text = json.dumps(environment(), sort_keys=True, default=str)
        self.machine = hashlib.sha256(text.encode()).hexdigest()[:16]
        # Without a full log, not even one machine promises itself the same bits.
        self._repeats = policy.parsed_threshold.kind not in ("off", "fixed") or policy.matmul != "logged"
        self._next = (-1, "")
        self._begun: set[str] = set()

    def expect(self, step: int, meta: dict[str, Any]) -> None:
        """A checkpoint's notes say which batch step ``step`` was begun with; takes it out of them."""
        self._next = step, str(meta.pop(NEXT, ""))

    def begin(self, step: int, batch: Mapping[str, str]) -> None:
        """A step begins; it may fail, and be begun with another batch."""
        if step == self._next[0]:
            self._begun.add(batch_note(batch))

    def check(self, leaf: Leaf) -> str:
        """How a step that ended differs from what it was; empty where it does not, or where nothing is known."""
        lost = self._lost.get(leaf.step)
        if self._anew:
            return ""
        if lost is None:
            number, note = self._next
            other = leaf.step == number and note != "" and note not in self._begun
            return f"step {leaf.step} got another batch than before the interruption: {_BATCH}" if other else ""
        if names := _differing(leaf.batch, lost.leaf.batch):
            return f"step {leaf.step} got another batch than before the interruption, in {names}: {_BATCH}"
        same = self._repeats and self.machine == lost.machine
        found = "its sequence of results" if leaf.sites != lost.leaf.sites else ""
        if same and (names := _differing(leaf.metrics, lost.leaf.metrics)):
            found = f"its metrics {names}"
        elif same and leaf.log != lost.leaf.log:
            found = found or "its scalars or logged decisions"
        return (
            f"step {leaf.step} came out otherwise than before the interruption, in {found}: {_STATE}" if found else ""
        )


def batch_note(batch: Mapping[str, str]) -> str:
    """Digest of a batch's digests."""
    return hashlib.sha256(json.dumps(dict(batch), sort_keys=True).encode()).hexdigest()


def refuse(found: str) -> None:
    """Raise for what ``Again.check`` found.

    Raises:
        StateError: always.
    """
    raise StateError(
        f"{found}. If that is meant, and the loop that an auditor runs does so without an interruption, go on with "
        "record(..., resume='anew')"
    )


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    names = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


_BATCH = (
    "an auditor's loop is not interrupted and would get that one. Begin at run.steps_done + 1 with the batch of that "
    "step: draw it from its number, as `with vtrain.seeded(step):`, or read the batches of the steps done and leave "
    "them out"
)
_STATE = (
    "it depends on something that no checkpoint holds, such as a number, a list or a generator in a variable of the "
    "program's, which began anew. Keep it in an attribute or a buffer of the model, or in an object given as "
    "record(..., extra={name: object}), or derive it from the step's number"
)
