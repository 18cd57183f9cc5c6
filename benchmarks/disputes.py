"""What a dispute costs, by the number of steps and of parameters, on simulated runs: bytes, messages, seconds.

    python -m benchmarks.disputes [--steps 10 100 ...] [--parameters 100000 ...]

Nothing is trained: a simulated party knows the state digest of every step, and its trace of the disputed one holds one
product of square float32 matrices with as many parameters as asked for. All else, from the messages to the referee, is
what a real dispute does; the replays, which cost what training costs, are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from auditor.dispute.challenger import Challenger
from auditor.dispute.difference import Difference
from auditor.dispute.referee import judge
from auditor.dispute.rerun import Captured
from auditor.dispute.responder import Responder
from vtrain.commit import heads, merkle
from vtrain.commit.blocks import Blocks
from vtrain.commit.digest import TensorBytes
from vtrain.commit.leaf import Leaf
from vtrain.commit.trace import Event, Trace
from vtrain.store import canonical
from vtrain.store.writer import KEY_NAME

TRAINER, AUDITOR = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2))
JOB, RUN = (hashlib.sha256(what).digest() for what in (b"simulated", b"a run of it"))
_HEX = "0" * 64


@dataclass
class SimulatedRun:
    """Evidence of a run of so many steps, without any files."""

    steps: int
    digest: bytes = JOB
    key: Ed25519PublicKey = field(default_factory=TRAINER.public_key)

    @cached_property
    def leaves(self) -> list[Leaf]:
        return [Leaf(step, log=_HEX, sites=_HEX) for step in range(self.steps + 1)]

    @cached_property
    def tree(self) -> merkle.Tree:
        return merkle.Tree(merkle.leaf_hash(canonical.dumps(leaf.to_json())) for leaf in self.leaves)

    @cached_property
    def notes(self) -> list[str]:
        head = heads.Head(len(self.leaves), self.tree.root(), self.digest, RUN)
        return [heads.sign_head(head, TRAINER, KEY_NAME)]

    @property
    def last_step(self) -> int:
        return self.steps


class SimulatedParty:
    """Stands for a ``Rerun``: states differ from ``bad`` on, and a product has some elements changed in that step.

    Args:
        run: the run.
        bad: the first step that differs.
        side: rows, columns and terms of the product.
        elements: flat indices that are disputed; rows without any are left zero.
        places: by how many float32 places they are off; 0 for the honest party.
    """

    def __init__(self, run: SimulatedRun, bad: int, side: int, elements: tuple[int, ...], places: int) -> None:
        self.evidence, self._bad, self._places = run, bad, places
        self.repairs: dict[Any, Any] = {}
        generator = np.random.default_rng(side)
        self._a, self._bt = (generator.standard_normal((1, side, side), dtype=np.float32) for _ in range(2))
        value = np.zeros((side, side), dtype=np.float32)
        rows = np.unique(np.array(elements) // side)
        value[rows] = (self._a[0, rows].astype(np.float64) @ self._bt[0].T.astype(np.float64)).astype(np.float32)
        value.view(np.int32).reshape(-1)[list(elements)] += places
        self._value = value

    def states(self, first: int, last: int) -> list[str]:
        whose = "cheat" if self._places else "honest"
        return [f"state {step} {whose if step >= self._bad else 'both'}" for step in range(first, last + 1)]

    @cached_property
    def _captured(self) -> Captured:
        inputs = {"a": _blocks(self._a), "bt": _blocks(self._bt)}
        value, side = _blocks(self._value), self._value.shape[0]
        params = {"alpha": (1.0).hex(), "beta": (0.0).hex(), "c": "float64"}
        args = {"seq": 0, "signed": False, "definition": {"kind": "product", "params": params}}
        digests = {name: blocks.digest for name, blocks in inputs.items()}
        event = Event("site", f"aten.mm.default float32[{side}, {side}]", args, digests, {"value": value.digest})
        return Captured(event, inputs, {"value": value})

    def trace(self, step: int, keep: int = 0) -> Trace:
        begin = Event("begin", f"step {step}", outputs={"state": f"state {step - 1} both"})
        end = Event("end", f"step {step}", outputs={"state": self.states(step, step)[0], "sites": _HEX})
        return Trace([begin.encode(), self._captured.event.encode(), end.encode()])

    def capture(self, step: int, number: int) -> Captured:
        return self._captured

    def columns(self, step: int, seq: int) -> None:
        return None


def _blocks(x: np.ndarray) -> Blocks:
    return Blocks(TensorBytes("F32", x.shape, x.reshape(-1).view(np.uint8)))


def _block(side: int, count: int) -> tuple[int, ...]:
    """So many elements in a square in the upper left corner."""
    edge = min(side, math.isqrt(count))
    return tuple(i * side + j for i in range(edge) for j in range(edge))


@dataclass(frozen=True)
class Cost:
    """What one dispute cost.

    Attributes:
        messages: in both directions.
        bytes: of all messages.
        record: bytes of the largest record.
        dispute: seconds of both sides, without replays and without hashing tensors.
        referee: seconds of judging all records.
        found: what was found.
    """

    messages: int
    bytes: int
    record: int
    dispute: float
    referee: float
    found: Difference


def dispute(steps: int, side: int, elements: tuple[int, ...], bad: int | None = None) -> Cost:
    """A dispute of a simulated run whose trainer changed some elements of a product."""
    run, at = SimulatedRun(steps), max(1, steps * 2 // 3) if bad is None else bad
    cheat, mine = SimulatedParty(run, at, side, elements, 1), SimulatedParty(run, at, side, elements, 0)
    for party in (cheat, mine):
        assert party.trace(at) and run.notes  # the tensors are hashed here
    responder = Responder(cheat, TRAINER)  # type: ignore[arg-type]
    began = time.perf_counter()
    challenger = Challenger(mine, AUDITOR, responder.answer)  # type: ignore[arg-type]
    step = challenger.first_step(0, steps)
    assert step == at, step
    found = challenger.dispute(at)
    assert found is not None
    took = time.perf_counter() - began
    began = time.perf_counter()
    for record in found.records:
        assert judge(record, TRAINER.public_key()).wrong == ("run",)
    lines = challenger.talk.lines
    return Cost(
        len(lines), sum(map(len, lines)), max(map(len, found.records)), took, time.perf_counter() - began, found
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--parameters", type=int, nargs="*", default=[10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--elements", type=int, default=100)
    given = parser.parse_args()
    cases = [(s, 10**6) for s in given.steps] + [(1000, p) for p in given.parameters]
    print("| steps | parameters | messages | kB | records | largest kB | dispute s | referee s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for steps, parameters in cases:
        side = math.isqrt(parameters)
        cost = dispute(steps, side, _block(side, given.elements))
        print(
            f"| {steps:,} | {side}^2 | {cost.messages} | {cost.bytes / 1000:,.0f} | {len(cost.found.records)} | "
            f"{cost.record / 1000:,.0f} | {cost.dispute:.2f} | {cost.referee:.2f} |"
        )


if __name__ == "__main__":
    main()
