"""How often an audit's note on decisions meets an honest trainer: hardware of several kinds, emulated (numerics §9)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from auditor.audit.statistics import DecisionStatistics
from auditor.verdict.freedom import EXCESS, combined
from vtrain.engine.listener import Site
from vtrain.rounding import generic
from vtrain.rounding.bounds import eta_certified, product_kappa, tau_certified
from vtrain.rounding.formats import BFLOAT16
from vtrain.rounding.scale import Scale

Matrix = np.ndarray
M = N = 48


def lanes(count: int, fused: bool = False) -> Callable[[Matrix, Matrix], Matrix]:
    """So many float32 accumulators, each over every ``count``-th term, added up ascending; with or without fusing."""

    def product(a: Matrix, b: Matrix) -> Matrix:
        acc = [np.zeros((a.shape[0], b.shape[1]), np.float32) for _ in range(count)]
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        for j in range(a.shape[1]):
            term = wide_a[:, j, None] * wide_b[j]
            term = term if fused else term.astype(np.float32)
            acc[j % count] = (acc[j % count] + term).astype(np.float32)
        return np.add.accumulate(np.stack(acc), axis=0, dtype=np.float32)[-1]

    return product


def blocked(a: Matrix, b: Matrix) -> Matrix:
    """Blocks of 64 terms, each ascending, then ascending."""
    parts = [lanes(1)(a[:, at : at + 64], b[at : at + 64]) for at in range(0, a.shape[1], 64)]
    return np.add.accumulate(np.stack(parts), axis=0, dtype=np.float32)[-1]


def pairwise(a: Matrix, b: Matrix) -> Matrix:
    terms = [(a[:, j, None] * b[j]).astype(np.float32) for j in range(a.shape[1])]
    while len(terms) > 1:
        terms = [x + y for x, y in zip(terms[::2], terms[1::2], strict=False)] + terms[len(terms) // 2 * 2 :]
    return terms[0]


def native(a: Matrix, b: Matrix) -> Matrix:
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


HARDWARE: dict[str, Callable[[Matrix, Matrix], Matrix]] = {
    "this machine": native, "1 accumulator": lanes(1), "1, fused": lanes(1, True), "2": lanes(2), "4": lanes(4),
    "8": lanes(8), "8, fused": lanes(8, True), "blocks of 64": blocked, "pairwise": pairwise,
}  # fmt: skip


def operands(kind: str, k: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """bfloat16 values: centred, positive (partial sums grow), or half of them zero as after ReLU."""
    a, b = rng.standard_normal((M, k)), rng.standard_normal((k, N))
    if kind == "positive":
        a, b = np.abs(a), np.abs(b)
    elif kind == "rectified":
        a = np.maximum(a, 0)
    return tuple(torch.from_numpy(x).bfloat16().float().numpy() for x in (a, b))  # type: ignore[return-value]


def p_value(trainer: str, auditor: str, k: int, seed: int, results: int = 6) -> float:
    """The p-value of an audit of so many products, of each kind of operands."""
    rng = np.random.default_rng([seed, k])
    examiner = DecisionStatistics(b"%d" % seed)
    for number, kind in itertools.product(range(results), ("centred", "positive", "rectified")):
        a, b = operands(kind, k, rng)
        order = rng.permutation(k)
        theirs, mine = (torch.from_numpy(HARDWARE[who](a, b)) for who in (trainer, auditor))
        other = torch.from_numpy(HARDWARE[auditor](a[:, order], b[order]))
        row, col = np.linalg.norm(a.astype(np.float64), axis=1), np.linalg.norm(b.astype(np.float64), axis=0)
        kappa = product_kappa(k, "float32")
        s = Scale("mm", k, kappa, (1, M, N), row=torch.from_numpy(row), col=torch.from_numpy(col))
        tau, eta = tau_certified(kappa, "float32"), eta_certified(kappa, "float32")
        index = generic.in_doubt(theirs, s, tau, eta, BFLOAT16)[0]
        out = generic.round_to(mine, BFLOAT16)
        out.reshape(-1)[index] = generic.round_to(theirs, BFLOAT16).reshape(-1)[index]
        assert torch.equal(out, generic.round_to(theirs, BFLOAT16)), "the certified width misses nothing"
        site = Site(1, number, f"mm {kind}", (M, N), BFLOAT16)
        examiner.examine(site, mine, out, lambda s=s: s, lambda other=other: other, lambda i=index: i.numpy())
    examiner.flush()
    return combined(examiner.freedom.kinds())


def alarms(k: int, seeds: int) -> dict[tuple[str, str], int]:
    """How many audits of so many end in a note, by the trainer's and the auditor's hardware."""
    found = {}
    for pair in itertools.product(HARDWARE, HARDWARE):
        found[pair] = sum(p_value(*pair, k, seed) < EXCESS for seed in range(seeds))
    return found


def test_an_honest_trainer_on_other_hardware_is_not_noted() -> None:
    for trainer, auditor in (("8", "this machine"), ("pairwise", "1 accumulator"), ("8, fused", "blocks of 64")):
        assert p_value(trainer, auditor, 256, seed=0, results=2) >= EXCESS


@pytest.mark.slow
@pytest.mark.parametrize("k", [64, 512])
def test_false_alarms(k: int) -> None:
    """Where the trainer's arithmetic errs no more than SAFETY times the auditor's, no audit of all these is noted."""
    found = alarms(k, seeds=5)
    assert {pair: n for pair, n in found.items() if n} == {}


if __name__ == "__main__":
    for length in (64, 512, 2048):
        noted = alarms(length, seeds=4)
        print(length, {pair: n for pair, n in noted.items() if n}, "of", 4 * len(noted), flush=True)
