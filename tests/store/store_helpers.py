"""Rounding logs to store, made by numpy from a seed or by hypothesis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from vtrain.store.steplog import COLUMNS, StepLog


def build(rows: list[tuple[int, int, int, int]], scalars: int, rng: np.random.Generator) -> StepLog:
    """A log of sites (numel, encoding, narrow, wide) with random but well-sized columns."""
    sites = np.zeros((len(rows), 6), "<u8")
    codes = 0
    for number, (numel, encoding, narrow, wide) in enumerate(rows):
        gaps = wide + (0 if encoding else narrow)
        sites[number] = (3 * number + 1, numel, encoding, narrow, wide, gaps + int(rng.integers(0, gaps + 1)))
        codes += (numel + 4) // 5 if encoding else (narrow + 3) // 4
    return StepLog(
        sites=sites,
        gaps=rng.integers(0, 256, int(sites[:, 5].sum()), np.uint8),
        codes=rng.integers(0, 256, codes, np.uint8),
        values=rng.integers(0, 2**32, int(sites[:, 4].sum()), np.uint32),
        scalars=rng.integers(0, 2**64, scalars, np.uint64),
    )


def sample(seed: int, sites: int = 4, entries: int = 50) -> StepLog:
    """A log of `sites` sites with `entries` narrow and three wide entries each; every other one ternary."""
    rows = [(4 * entries + 7, number % 2, entries, 3) for number in range(sites)]
    return build(rows, 5, np.random.default_rng(seed))


@st.composite
def step_logs(draw: st.DrawFn) -> StepLog:
    """Any small well-formed log, empty ones too."""
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        numel = draw(st.integers(1, 60))
        narrow = draw(st.integers(0, numel))
        wide = draw(st.integers(0 if narrow else 1, max(numel - narrow, 0 if narrow else 1)))
        rows.append((numel, draw(st.integers(0, 1)), narrow, wide))
    return build(rows, draw(st.integers(0, 4)), np.random.default_rng(draw(st.integers(0, 2**32))))


def same(left: StepLog, right: StepLog) -> bool:
    """Equal in every dtype, shape and bit."""
    return all(
        getattr(left, name).dtype == getattr(right, name).dtype
        and getattr(left, name).shape == getattr(right, name).shape
        and getattr(left, name).tobytes() == getattr(right, name).tobytes()
        for name in COLUMNS
    )


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Content of every file below `root` by relative name."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
