"""From disputed elements to what a record shows of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from auditor.dispute.exact import Exact
from auditor.dispute.rerun import Captured
from auditor.dispute.terms import terms
from auditor.referee import parse_site
from vtrain.commit.blocks import BLOCK_BYTES, Shown, blocks_of
from vtrain.commit.trace import Event

MAX_RECORD_ELEMENTS = 1024
RECORD_BYTES = 1 << 20


def around(y: float, w: float) -> Exact:
    """The interval that numerics §5 accepts."""
    return Exact(Fraction(y), Fraction(w)) if math.isfinite(y) and math.isfinite(w) else Exact(y, Fraction(0))


def needed_blocks(captured: Captured, run: Event, elements: Sequence[int]) -> dict[str, list[int]]:
    """Blocks of each operand that the elements depend on; at least one each, for its header."""
    shapes = {name: blocks.header.shape for name, blocks in captured.inputs.items()}
    definition, shape = run.args["definition"], parse_site(run.name)[2]
    needed: dict[str, set[int]] = {name: {0} for name in shapes}
    for element in elements:
        found = terms(definition["kind"], definition["params"], shapes, shape, int(element))
        for name, index in found.reads:
            width = captured.inputs[name].header.width
            needed[name].update(np.unique(index * width // BLOCK_BYTES).tolist())
    return {name: sorted(blocks) for name, blocks in needed.items()}


def split(elements: np.ndarray, captured: Captured, run: Event) -> Iterator[list[int]]:
    """The elements in parts whose records have 1 MiB at most; each part has one element at least."""
    width = captured.outputs["value"].header.width
    part: list[int] = []
    have: dict[str, set[int]] = {}
    for element in elements.tolist():
        output = blocks_of([element], width)
        new = {**needed_blocks(captured, run, [element]), "run's output": output, "other's output": output}
        fresh = sum(len(set(b) - have.get(n, set())) for n, b in new.items()) * BLOCK_BYTES
        used = sum(len(b) for b in have.values()) * BLOCK_BYTES
        if part and (used + fresh > RECORD_BYTES * 13 // 16 or len(part) == MAX_RECORD_ELEMENTS):
            yield part
            part, have = [], {}
        part.append(element)
        for n, b in new.items():
            have.setdefault(n, set()).update(b)
    yield part


def words(shown: Shown, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The run's elements as words of their container."""
    width = shown.header.width
    raw = b"".join(shown.bytes_at(int(e) * width, width) for e in elements)
    return elements, np.frombuffer(raw, f"<u{width}")
