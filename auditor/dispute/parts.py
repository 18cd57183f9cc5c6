"""From disputed elements to what a record shows of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from auditor.dispute.exact import Exact
from auditor.dispute.referee import parse_site
from auditor.dispute.rerun import Captured
from auditor.dispute.terms import terms
from vtrain.commit.blocks import BLOCK_BYTES, Shown, blocks_of
from vtrain.commit.trace import Event

MAX_RECORD_ELEMENTS = 1024
RECORD_BYTES = 1 << 20


def around(y: float, w: float) -> Exact:
    """The interval that numerics §5 accepts."""
    return Exact(Fraction(y), Fraction(w)) if math.isfinite(y) and math.isfinite(w) else Exact(y, Fraction(0))


def _needed_blocks(captured: Captured, run: Event, element: int) -> dict[str, set[int]]:
    """Blocks of each operand that an element depends on; at least one each, for its header."""
    shapes = {name: blocks.header.shape for name, blocks in captured.inputs.items()}
    definition, shape = run.args["definition"], parse_site(run.name)[2]
    needed: dict[str, set[int]] = {name: {0} for name in shapes}
    for name, index in terms(definition["kind"], definition["params"], shapes, shape, element).reads:
        needed[name].update(np.unique(index * captured.inputs[name].header.width // BLOCK_BYTES).tolist())
    return needed


def split(elements: np.ndarray, captured: Captured, run: Event) -> Iterator[tuple[list[int], dict[str, list[int]]]]:
    """The elements in parts whose records have 1 MiB at most, with the blocks of the operands that each part needs.

    Each part has one element at least.
    """
    width = captured.outputs["value"].header.width
    part: list[int] = []
    have: dict[str, set[int]] = {}
    outputs: set[int] = set()
    for element in elements.tolist():
        needed, output = _needed_blocks(captured, run, element), set(blocks_of([element], width))
        operands = sum(len(blocks | have.get(name, set())) for name, blocks in needed.items())
        size = (operands + 2 * len(outputs | output)) * BLOCK_BYTES
        if part and (size > RECORD_BYTES * 13 // 16 or len(part) == MAX_RECORD_ELEMENTS):
            yield part, {name: sorted(blocks) for name, blocks in have.items()}
            part, have, outputs = [], {}, set()
        part.append(element)
        outputs |= output
        have = {name: blocks | have.get(name, set()) for name, blocks in needed.items()}
    yield part, {name: sorted(blocks) for name, blocks in have.items()}


def words(shown: Shown, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The run's elements as words of their container."""
    width = shown.header.width
    raw = b"".join(shown.bytes_at(int(e) * width, width) for e in elements)
    return elements, np.frombuffer(raw, f"<u{width}")
