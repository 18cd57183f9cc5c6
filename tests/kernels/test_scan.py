"""Scans of a state: the loop that defines them, cut anywhere, in any order of events, forward and back."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from test_host_variants import threads

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.kernels.canonical import Reach
from vtrain.kernels.selftest import same_bits as same

Tensor = torch.Tensor
REACHES = [Reach(), Reach("lag", 3), Reach("lag", 1000), Reach("blocks", 16), Reach("blocks", 1), Reach("all")]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c rounded once: the product is exact in float64; the sum is rounded to odd there, then to float32."""
    p, w = np.multiply(a.double().numpy(), b.double().numpy()), c.double().numpy()
    p, w = np.broadcast_arrays(p, w)
    s = p + w
    t = s - p
    error = (p - (s - t)) + (w - t)
    bits = s.view(np.int64) if s.flags.c_contiguous else np.ascontiguousarray(s).view(np.int64)
    away = np.where((error < 0) == (s < 0), bits + 1, bits - 1)
    odd = np.where((error != 0) & (bits % 2 == 0), away, bits).view(np.float64)
    return torch.from_numpy(odd.astype(np.float32))


def test_the_definition_s_own_arithmetic() -> None:
    a, b, c = (numbers(500, seed=i) for i in range(3))
    for x, y, z, found in zip(a.tolist(), b.tolist(), c.tolist(), fused(a, b, c).tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        near = [found, *(float(np.nextafter(np.float32(found), np.float32(to))) for to in (math.inf, -math.inf))]
        assert abs(exact - Fraction(found)) == min(abs(exact - Fraction(n)) for n in near)


def reached(reach: Reach, t: int, length: int) -> int:
    if reach.kind == "all":
        return length
    return max(0, t + 1 - reach.span if reach.kind == "lag" else (t // reach.span - 1) * reach.span)


def loop(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, first: Tensor | None, reach: Reach
) -> tuple[Tensor, Tensor]:
    """As ``scan.hpp`` defines it, a position at a time."""
    batch, heads, length, rows = q.shape
    state = torch.zeros(batch, heads, rows, v.shape[3]) if first is None else first.clone()
    wide = None if decay is None else decay.expand(q.shape)
    y, done = torch.empty(v.shape), 0

    def keys_before(end: int) -> None:
        nonlocal state, done
        for j in range(done, end):
            held = state if wide is None else wide[:, :, j, :, None] * state
            state = fused(k[:, :, j, :, None], v[:, :, j, None, :], held)
        done = max(done, end)

    for t in range(length):
        keys_before(reached(reach, t, length))
        total = torch.zeros(batch, heads, v.shape[3])
        for r in range(rows):
            total = fused(q[:, :, t, r, None], state[:, :, r], total)
        y[:, :, t] = total
    keys_before(length)
    return y + 0.0, state


def operands(length: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((length, rows), (length, rows), (length, columns))
    q, k, v = (numbers(2, 2, *shape, seed=i) for i, shape in enumerate(shapes))
    return q, k, v


DECAYS: dict[str, Any] = {
    "none": lambda q: None,
    "a head": lambda q: torch.rand(1, q.shape[1], 1, 1, generator=torch.Generator().manual_seed(5)),
    "a position": lambda q: torch.rand(*q.shape[:3], 1, generator=torch.Generator().manual_seed(5)),
    "a feature": lambda q: torch.rand(q.shape, generator=torch.Generator().manual_seed(5)),
}


@pytest.mark.parametrize("decay", list(DECAYS))
@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_it_is_the_loop(reach: Reach, decay: str) -> None:
    for length, (rows, columns) in itertools.product((0, 1, 17, 70), ((3, 5), (19, 40))):
        q, k, v = operands(length, rows, columns)
        for first in (None, numbers(2, 2, columns, rows, seed=4).mT):
            mine = canonical.scan(q, k, v, DECAYS[decay](q), first, reach)
            assert all(map(same, mine, loop(q, k, v, DECAYS[decay](q), first, reach)))


@pytest.mark.parametrize("length", [63, 64, 65, 127, 129])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 32), (9, 33), (153, 17), (16, 65)])
def test_sizes(length: int, rows: int, columns: int) -> None:
    q, k, v = (t[:1, :1] for t in operands(length, rows, columns))
    decay = DECAYS["a feature"](q)
    assert all(map(same, canonical.scan(q, k, v, decay, None, Reach()), loop(q, k, v, decay, None, Reach())))


@pytest.mark.parametrize("decay", list(DECAYS))
def test_cut_at_each_point(decay: str) -> None:
    q, k, v = operands(70, 7, 9)
    a = DECAYS[decay](q)
    part = lambda lo, hi: None if a is None else a.expand(q.shape)[:, :, lo:hi]  # noqa: E731
    y, last = canonical.scan(q, k, v, a, None, Reach())
    for cut in range(71):
        first = canonical.scan(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], part(0, cut), None, Reach())
        rest = canonical.scan(q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], part(cut, 70), first[1], Reach())
        assert same(torch.cat([first[0], rest[0]], 2), y) and same(rest[1], last)
    state, steps = None, []
    for t in range(70):
        at = slice(t, t + 1)
        one, state = canonical.scan(q[:, :, at], k[:, :, at], v[:, :, at], part(t, t + 1), state, Reach())
        steps.append(one)
    assert same(torch.cat(steps, 2), y) and same(state, last)  # type: ignore[arg-type]


def test_alone_or_in_a_batch_in_any_layout() -> None:
    q, k, v = operands(40, 6, 20)
    whole = canonical.scan(q, k, v, None, None, Reach())
    for b in range(2):
        alone = canonical.scan(q[b : b + 1], k[b : b + 1], v[b : b + 1], None, None, Reach())
        assert all(same(a, w[b : b + 1]) for a, w in zip(alone, whole, strict=True))
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert all(map(same, canonical.scan(*turned, None, None, Reach()), whole))
    assert all(map(same, canonical.scan(q.mT.contiguous().mT, k, v, None, None, Reach()), whole))


def test_any_number_of_threads() -> None:
    q, k, v = operands(150, 20, 70)
    found = []
    for count in (1, 2, 3, 7):
        with threads(count):
            found.append(canonical.scan(q, k, v, DECAYS["a feature"](q), None, Reach("blocks", 16)))
    assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_backwards_is_the_transpose() -> None:
    """<scan(v), g> = <v, scan backwards(g)> for each reach and decay, in numbers whose sums are exact."""
    for reach in REACHES:
        q, k, v = (t.round() for t in operands(20, 3, 4))
        a, g = torch.tensor(0.5).expand(1, 1, 1, 1), numbers(2, 2, 20, 4, seed=6).round()
        y, _ = canonical.scan(q, k, v, a, None, reach)
        back, _ = canonical.scan(k, q, g, a, None, reach, backwards=True)
        left, right = (y.double() * g).sum(), (v.double() * back).sum()
        assert abs(float(left - right)) <= 1e-5 * abs(float(left)) + 1e-6


def test_a_column_with_a_number_that_is_none_spoils_no_other() -> None:
    q, k, v = operands(30, 5, 40)
    clean = canonical.scan(q, k, v, None, None, Reach())
    v[:, :, 7, 3] = math.nan
    dirty = canonical.scan(q, k, v, None, None, Reach())
    others = [c for c in range(40) if c != 3]
    assert same(clean[0][..., others], dirty[0][..., others]) and same(clean[0][:, :, :7], dirty[0][:, :, :7])
    assert dirty[0][:, :, 7:, 3].isnan().all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"key": numbers(1, 1, 4, 2)}, "key is [1, 1, 4, 2], want [1, 1, 4, 3]"),
        ({"value": numbers(1, 1, 5, 2)}, "read is [1, 1, 4, 3] and value [1, 1, 5, 2]"),
        ({"value": numbers(1, 1, 4, 2).double()}, "value is torch.float64"),
        ({"first": numbers(1, 1, 2, 3)}, "first is [1, 1, 2, 3], want [1, 1, 3, 2]"),
        ({"decay": numbers(5, 1)}, "decay is [5, 1], want [1, 1, 4, 3] or less"),
        ({"reach": Reach("blocks", 0)}, "blocks of 1 or more"),
        ({"reach": Reach("lag", -1)}, "a lag of 0 or more"),
    ],
)
def test_wrong_operands_are_named(change: dict[str, Any], text: str) -> None:
    q, k, v = numbers(1, 1, 4, 3), numbers(1, 1, 4, 3), numbers(1, 1, 4, 2)
    given = {"read": q, "key": k, "value": v, "decay": None, "first": None, "reach": Reach(), **change}
    with pytest.raises(OperandError) as caught:
        canonical.scan(**given)
    assert text in str(caught.value)
