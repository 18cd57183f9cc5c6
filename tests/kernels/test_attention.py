"""Attention: the bits of its operations one after the other, whatever is beside it, before it, or cut away."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from test_host_variants import threads

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.kernels.canonical import Sight

Tensor = torch.Tensor
LENGTHS = [1, 2, 15, 16, 17, 47, 48, 49, 63, 64, 65, 127, 191, 193]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def operands(
    b: int, h: int, queries: int, d: int, width: int, keys: int | None = None, key_heads: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient of the result."""
    keys, key_heads = keys or queries, key_heads or h
    return (numbers(b, h, queries, d, seed=1), numbers(b, key_heads, keys, d, seed=2),
            numbers(b, key_heads, keys, width, seed=3), numbers(b, h, queries, width, seed=4))  # fmt: skip


def sight(d: int, **given: Any) -> Sight:
    root = math.sqrt(1 / math.sqrt(d))
    return Sight(**{"q_scale": root, "k_scale": root, **given})


def seen(s: Sight, queries: int, keys: int, mask: Tensor | None) -> Tensor:
    at, j = torch.arange(queries)[:, None] + s.start, torch.arange(keys) + s.offset
    found = (j <= at) if s.causal else torch.ones(queries, keys, dtype=torch.bool)
    if s.window:
        found = found & (j > at - s.window)
    if s.block:
        found = found & (j >= (at // s.block - 1) * s.block)
    return found if mask is None else found & mask


class Unfused:
    """The same as canonical products and softmax, whose definitions have tests of their own."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, s: Sight, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        group = q.shape[1] // k.shape[1]
        self.s, self.shape = s, (*q.shape[:3], k.shape[2])
        self.q, self.k = q * s.q_scale, (k * s.k_scale).repeat_interleave(group, 1)
        self.v = v.repeat_interleave(group, 1)
        scores = self.times(self.q, self.k.mT)
        if bias is not None:
            scores = scores + bias
        none = torch.full((), -math.inf)
        scores = torch.where(seen(s, q.shape[2], k.shape[2], mask), scores, none)
        p = canonical.softmax("softmax", 3, x=scores)
        self.p = torch.where((scores == none).all(-1, keepdim=True), torch.zeros(()), p)

    def times(self, a: Tensor, b: Tensor) -> Tensor:
        y = canonical.product(a.flatten(0, 1), b.flatten(0, 1))
        return y.view(*a.shape[:3], b.shape[3])

    def out(self) -> Tensor:
        return self.times(self.p, self.v)

    def back(self, grad: Tensor) -> list[Tensor]:
        slopes = self.times(grad, self.v.mT)
        ds = canonical.softmax("softmax", 3, y=self.p, grad=slopes)
        dk = self.times(ds.mT, self.q) * self.s.k_scale
        return [self.times(ds, self.k) * self.s.q_scale, dk, self.times(self.p.mT, grad)]


def same(a: Tensor, b: Tensor) -> bool:
    """In every bit, but for which NaN; a zero is +0 in attention, and may be -0 in the operations one by one."""
    a, b = a + 0.0, b + 0.0
    return a.shape == b.shape and bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


def everything(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, s: Sight, **over: Any) -> list[Tensor]:
    out, top, total = canonical.attention(q, k, v, s, **over)
    in_one = canonical.attention_backward(grad, q, k, v, top, total, s, **over, parts=(0,))
    in_two = canonical.attention_backward(grad, q, k, v, top, total, s, **over, parts=(1, 2))
    assert all(map(same, in_one, in_two))
    return [out, *in_one[:3]]


def check(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, s: Sight, **over: Any) -> None:
    parts = Unfused(q, k, v, s, **over)
    for name, mine, wanted in zip(
        ("out", "dq", "dk", "dv"), everything(q, k, v, grad, s, **over), [parts.out(), *parts.back(grad)], strict=True
    ):
        assert same(mine, wanted), name


# ---- the operations one after the other ------------------------------------------------------------------------------
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(length: int) -> None:
    for d, width in ((16, 16), (5, 70)):
        q, k, v, grad = operands(2, 2, length, d, width)
        for causal in (False, True):
            check(q, k, v, grad, sight(d, causal=causal))


@pytest.mark.parametrize("d", [8, 24, 64, 80, 128, 256])
def test_head_sizes(d: int) -> None:
    q, k, v, grad = operands(1, 1, 50, d, d + 3, keys=70)
    check(q, k, v, grad, sight(d, causal=True, start=20))
    check(q, k, v, grad, sight(d, q_scale=-0.25))


@pytest.mark.parametrize("reach", [1, 2, 16, 31, 33, 64, 150])
def test_windows_and_blocks(reach: int) -> None:
    q, k, v, grad = operands(1, 2, 101, 8, 8)
    check(q, k, v, grad, sight(8, causal=True, window=reach))
    check(q, k, v, grad, sight(8, causal=True, block=reach))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_heads_share_keys(key_heads: int) -> None:
    q, k, v, grad = operands(2, 4, 35, 16, 16, key_heads=key_heads)
    check(q, k, v, grad, sight(16, causal=True))


MASKS = {
    "of keys": lambda: numbers(2, 1, 1, 66) > -0.5, "of pairs": lambda: numbers(50, 66) > 0,
    "none": lambda: torch.zeros(1, dtype=torch.bool),
    "of heads": lambda: numbers(1, 3, 50, 66) > 0.3, "a row": lambda: (torch.arange(50) != 7)[:, None],
}  # fmt: skip


@pytest.mark.parametrize("kind", list(MASKS))
def test_masks(kind: str) -> None:
    q, k, v, grad = operands(2, 3, 50, 12, 20, keys=66)
    mask = MASKS[kind]()
    check(q, k, v, grad, sight(12), mask=mask)
    check(q, k, v, grad, sight(12, causal=True, start=16), mask=mask)
    check(q, k, v, grad, sight(12), bias=torch.where(mask, numbers(*mask.shape, seed=9), -math.inf))


def test_hard_scores() -> None:
    for factor in (1e4, 0.0, 1e-30, 1e30):
        q, k, v, grad = operands(1, 2, 40, 8, 8)
        check(q * factor, k, v, grad, sight(8, causal=True))


def test_any_layout() -> None:
    q, k, v, grad = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in operands(2, 3, 40, 16, 16))
    check(q, k, v, grad, sight(16, causal=True))
    check(q.mT.contiguous().mT, k[:, :, ::2], v.flip(2)[:, :, ::2], grad, sight(16))
    check(q, k[:1, :1].expand(2, 3, 40, 16), v, grad[:1, :1, :1].expand(2, 3, 40, 16), sight(16))


# ---- what is not seen is not there -----------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_seen_does_not_count(bad: float) -> None:
    """Keys, values, queries and gradients that are not finite reach only those that see them."""
    clean, dirty = operands(1, 1, 60, 8, 8), operands(1, 1, 60, 8, 8)
    s = sight(8, causal=True, window=9)
    for t in dirty:
        t[:, :, 40] = bad
    mine, theirs = everything(*dirty, s), everything(*clean, s)
    for a, b in zip(mine[:2], theirs[:2], strict=True):
        assert same(a[:, :, :40], b[:, :, :40]) and same(a[:, :, 49:], b[:, :, 49:])
    for a, b in zip(mine[2:], theirs[2:], strict=True):
        assert same(a[:, :, :32], b[:, :, :32]) and same(a[:, :, 49:], b[:, :, 49:])
    assert not mine[0][:, :, 40].isfinite().all()


def test_who_sees_nothing_gives_nothing() -> None:
    q, k, v, grad = operands(1, 2, 20, 8, 8)
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[3] = False
    for over in ({"mask": mask}, {"bias": torch.where(mask, 0.0, -math.inf)}):
        out, dq, _, _ = everything(q, k, v, grad, sight(8), **over)
        assert not out[:, :, 3].any() and not dq[:, :, 3].any() and not out.isnan().any()


# ---- cuts, batches, threads ------------------------------------------------------------------------------------------
def test_cut_at_each_point() -> None:
    """A prefix has its own results, and what follows, with all keys before it, the others; one by one, too."""
    q, k, v, _ = operands(1, 2, 70, 8, 8, key_heads=1)
    for given in ({}, {"window": 13}, {"block": 16}):
        whole = canonical.attention(q, k, v, sight(8, causal=True, **given))[0]
        for cut in range(71):
            first = canonical.attention(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], sight(8, causal=True, **given))[0]
            rest = canonical.attention(q[:, :, cut:], k, v, sight(8, causal=True, start=cut, **given))[0]
            assert same(torch.cat([first, rest], 2), whole)
        steps = []
        for t in range(70):
            one, s = q[:, :, t : t + 1], sight(8, causal=True, start=t, **given)
            steps.append(canonical.attention(one, k[:, :, : t + 1], v[:, :, : t + 1], s)[0])
        assert same(torch.cat(steps, 2), whole)


@pytest.mark.parametrize("given", [{"window": 13}, {"block": 16}])
def test_a_cache_that_forgets(given: dict[str, int]) -> None:
    """Keys that nobody sees any more may be dropped: sums go by positions. Forward and backward, at each offset."""
    q, k, v, grad = operands(1, 2, 100, 8, 8, key_heads=1)
    for cut in (1, 30, 31, 32, 33, 64, 70):
        first = cut - 12 if "window" in given else (cut // 16 - 1) * 16
        for offset in {max(0, first), max(0, first - 5)}:
            rest = sight(8, causal=True, start=cut, offset=0, **given)
            kept = sight(8, causal=True, start=cut, offset=offset, **given)
            whole = everything(q[:, :, cut:], k, v, grad[:, :, cut:], rest)
            found = everything(q[:, :, cut:], k[:, :, offset:], v[:, :, offset:], grad[:, :, cut:], kept)
            assert same(found[0], whole[0]) and same(found[1], whole[1])
            assert same(found[2], whole[2][:, :, offset:]) and same(found[3], whole[3][:, :, offset:])


def test_alone_or_in_a_batch() -> None:
    q, k, v, grad = operands(3, 2, 50, 16, 16)
    s = sight(16, causal=True)
    whole = everything(q, k, v, grad, s)
    for b in range(3):
        alone = everything(*(t[b : b + 1] for t in (q, k, v, grad)), s)
        assert all(same(a, w[b : b + 1]) for a, w in zip(alone, whole, strict=True))


def test_any_number_of_threads() -> None:
    q, k, v, grad = operands(1, 2, 193, 16, 16)
    found = []
    for count in (1, 2, 3, 7):
        with threads(count):
            found.append(everything(q, k, v, grad, sight(16, causal=True)))
    assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


# ---- against the mathematics -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("given", [{}, {"causal": True}, {"causal": True, "window": 5}])
def test_gradients_are_those_of_the_definition(given: dict[str, Any]) -> None:
    q, k, v, grad = operands(1, 2, 33, 8, 12)
    s = sight(8, **given)
    wide = [t.double().requires_grad_() for t in (q, k, v)]
    scores = (wide[0] * s.q_scale) @ (wide[1] * s.k_scale).mT
    scores = torch.where(seen(s, 33, 33, None), scores, -math.inf)
    out = scores.softmax(-1) @ wide[2]
    wanted = [out.detach(), *torch.autograd.grad(out, wide, grad.double())]
    for name, mine, exact in zip(("out", "dq", "dk", "dv"), everything(q, k, v, grad, s), wanted, strict=True):
        assert float((mine.double() - exact).abs().max()) < 4e-6 * float(exact.abs().max()), name


def test_memory_grows_with_the_length() -> None:
    """Scores of all pairs would take 512 MiB here, forward and backward twice as much."""
    code = """if True:
        import resource, torch
        from vtrain.kernels import canonical
        torch.set_num_threads(2)
        q = torch.randn(1, 2, 8192, 8)
        s = canonical.Sight(causal=True)
        x = q[:, :, :64]
        canonical.attention_backward(x, x, x, x, *canonical.attention(x, x, x, s)[1:], s)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out, top, total = canonical.attention(q, q, q, s)
        canonical.attention_backward(q, q, q, q, top, total, s)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64


# ---- wrong operands --------------------------------------------------------------------------------------------------
def test_nothing_in_nothing_out() -> None:
    for queries, keys in ((0, 5), (5, 0), (0, 0)):
        q, k, v = numbers(1, 2, queries, 8), numbers(1, 2, keys, 8), numbers(1, 2, keys, 4)
        out, top, total = canonical.attention(q, k, v, sight(8))
        assert out.shape == (1, 2, queries, 4) and not out.any()
        back = canonical.attention_backward(torch.ones_like(out), q, k, v, top, total, sight(8))
        assert [t.shape for t in back[:3]] == [q.shape, k.shape, v.shape] and not any(t.any() for t in back)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"q": numbers(2, 2, 4, 8)}, "don't fit"),
        ({"q": numbers(2, 4, 8)}, "want (batch, heads, length, width)"),
        ({"k": numbers(1, 2, 4, 7)}, "don't fit"),
        ({"v": numbers(1, 2, 5, 8)}, "don't fit"),
        ({"q": numbers(1, 3, 4, 8)}, "3 query heads are no multiple of 2 key heads"),
        ({"q": numbers(1, 2, 4, 8).double()}, "q is torch.float64, want torch.float32"),
        ({"bias": numbers(3, 4)}, "bias is [3, 4], want [1, 2, 4, 4] or less"),
        ({"mask": numbers(4, 4)}, "mask is torch.float32, want torch.bool"),
        ({"bias": numbers(4, 4), "mask": numbers(4, 4) > 0}, "a bias and a mask; want one"),
        ({"sight": Sight(window=3)}, "a window or block with causal"),
        ({"sight": Sight(causal=True, window=3, block=2)}, "a window and a block; want one"),
        ({"sight": Sight(start=-1)}, "numbers from 0 on"),
        ({"padding": torch.zeros(2, dtype=torch.int64)}, "padding is [2], want [1]"),
        ({"padding": torch.zeros(1)}, "padding is torch.float32, want torch.int64"),
    ],
)
def test_wrong_operands_are_named(change: dict[str, Any], text: str) -> None:
    given = {"q": numbers(1, 2, 4, 8), "k": numbers(1, 2, 4, 8), "v": numbers(1, 2, 4, 8), "sight": Sight(), **change}
    with pytest.raises(OperandError) as caught:
        canonical.attention(**given)
    assert text in str(caught.value) and "attention" in str(caught.value)
