"""A difference between two sides, narrowed down and judged. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from auditor.dispute.referee import REFUTED, Finding
from auditor.evidence.decimal import differing
from vtrain.commit.trace import Event

NOT_COMMITTED = "the committed state"  # operation of a difference between a run's own replay and its leaf


@dataclass(frozen=True)
class Difference:
    """A difference, narrowed down and judged.

    Attributes:
        result: ``benign`` or ``refuted``.
        wrong: who is wrong: ``run``, ``other``, both, or nobody.
        step, event: where; -1 for an event where no operation can be named.
        operation: what the first differing event is of.
        why: one line for people.
        records: referee's records, each complete in itself; none where no arithmetic is disputed.
        findings: what the referee found in them.
        repairs: for a benign one the elements to repair and their words, by number of the result.
    """

    result: str
    wrong: tuple[str, ...]
    step: int
    event: int
    operation: str
    why: str
    records: tuple[bytes, ...] = ()
    findings: tuple[Finding, ...] = ()
    repairs: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def other_results(step: int, number: int, run: Event, own: Event) -> Difference:
    """A difference that no rounding explains: its operation is deterministic, or is not the same operation."""
    if part := run.unlike(own):
        why = _unlike(part, number, run, own)
        return Difference(REFUTED, ("run",), step, number, own.name, why)
    names = sorted(n for n in {*run.outputs, *own.outputs} if run.outputs.get(n) != own.outputs.get(n))
    why = f"{own.name}: the same arguments, other results ({', '.join(names[:5])}), which no hardware explains"
    return Difference(REFUTED, ("run",), step, number, own.name, why)


def _unlike(part: str, number: int, run: Event, own: Event) -> str:
    """What makes an operation another one in the run than here."""
    if part in ("kind", "name"):
        return f"operation {number} of the step is {run.name[:100]} in the run, {own.name[:100]} here"
    if part == "args":
        return f"{own.name}: {'; '.join([*differing(run.args, own.args)][:3])}"
    names = sorted(n for n in {*run.inputs, *own.inputs} if run.inputs.get(n) != own.inputs.get(n))
    return f"{own.name}: it is given other tensors in the run than here ({', '.join(names[:5])})"
