"""Exact integer products: the engine against the definition in fractions, in every bit (numerics §10)."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import naive_integers as naive
import numpy as np
import pytest
import torch
from integer_work import HARD, numbers

from vtrain.engine import carriers, integers
from vtrain.engine.carriers import CARRIERS
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.engine.workspace import Workspace
from vtrain.errors import BackendError, UnsupportedOperation
from vtrain.policy import Policy
from vtrain.profiles import profile_environment
from vtrain.rounding import fixed
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, target_in_float32

Tensor = torch.Tensor
CPU = torch.device("cpu")
FORMATS = {
    "float32": (torch.float32, {}, FLOAT32),
    "18 bits": (torch.float32, {"bits": 18}, target_in_float32("float32", 18)),
    "8 bits": (torch.float32, {"target": "bfloat16"}, target_in_float32("bfloat16", 24)),
    "bfloat16": (torch.bfloat16, {}, BFLOAT16),
    "float16": (torch.float16, {}, FLOAT16),
}


def same(found: Tensor, wanted: Tensor) -> None:
    """Equal bits in float64, any NaN being any other."""
    assert found.shape == wanted.shape
    a, b = (torch.where(x.isnan(), torch.nan, x.double()).view(torch.int64) for x in (found, wanted.double()))
    assert torch.equal(a, b), (found.double() - wanted.double()).abs().max()


@pytest.fixture(params=CARRIERS)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each carrier in turn; where this processor's bytes saturate, torch multiplies them one by one."""
    if request.param == "int8" and not carriers.int8_is_exact(CPU):
        monkeypatch.setattr(carriers, "_with_onednn", lambda a, b, ready: (a.double() @ b.double()).to(torch.int32))
    for module in ("matmul", "integer_convolution"):
        monkeypatch.setattr(f"vtrain.engine.ops.{module}.carrier", lambda device: request.param)
    return request.param


def session(**policy: object) -> Session:
    return Session(Plain(), Policy(matmul="integer", **policy), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 2), (4, 7, 5), (2, 150, 3), (17, 24, 8)])
def test_products_are_those_of_fractions(name: str, hard: bool, shape: tuple[int, int, int], by: str) -> None:
    dtype, policy, fmt = FORMATS[name]
    m, k, n = shape
    a, b = numbers((m, k), 1, hard).to(dtype), numbers((k, n), 2, hard).to(dtype)
    bias = numbers((m, n), 3).to(dtype)
    with session(**policy).step(1):
        found = [a @ b, torch.addmm(bias, a, b), torch.addmm(bias, a, b, alpha=1 / 3, beta=-0.7),
                 torch.addmm(bias, a, b, alpha=0.3, beta=0)]  # fmt: skip
    wanted = [naive.product(a, b, fmt), naive.product(a, b, fmt, bias),
              naive.product(a, b, fmt, bias, 1 / 3, -0.7), naive.product(a, b, fmt, None, 0.3)]  # fmt: skip
    for y, right in zip(found, wanted, strict=True):
        assert y.dtype is dtype
        same(y, right)


@pytest.mark.parametrize("digits", [2, 3])
def test_the_largest_numbers(digits: int, by: str) -> None:
    """Around the limit of the bytes, and with every partial sum as large as it gets."""
    top = fixed.limit(digits)
    assert top == naive.most(digits)
    ends = torch.tensor([top - 1, top, top + 1, top + 2, 2 * top, 2 * top + 1, 2 * top + 2, 2 ** (8 * digits - 1)])
    for scale in (2.0**-100, 1.0, 2.0**90):
        for x in (ends.double() * scale).tolist():
            e = int(integers.shifts(torch.tensor([x], dtype=torch.float64), digits))
            assert e == naive.exponent([x], digits) == fixed.shift_of(x, digits)
    for signs in ((1, 1), (1, -1), (-1, -1)):
        a, b = (torch.full(s, float(top)) * sign for s, sign in zip(((1, 70_000), (70_000, 1)), signs, strict=True))
        a[0, 7] -= signs[0]  # 70,000 squares of the limit, but for one: more than 2^62
        y = integers.product(Workspace(), a[None], b[None], digits, by)[0].float()
        part = integers.product(Workspace(), a[None, :, :2001], b[None, :2001], digits, by)
        total = sum(int(x) * int(y) for x, y in zip(a[0, :2001].tolist(), b[:2001, 0].tolist(), strict=True))
        assert part.item() == integers.sticky(torch.tensor([total])).item()
        exact = naive.dot(a[0].tolist(), b[:, 0].tolist(), digits)
        assert y.tolist() == [[naive.round_fraction(exact, FLOAT32)]]


@pytest.mark.parametrize("digits", [2, 3])
def test_sums_in_parts_are_the_same(digits: int, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of the terms, their order, and whether one float64 product holds them, change no bit."""
    a, b = numbers((1, 9, 700), 1, True).clamp(-1e30, 1e30), numbers((1, 700, 6), 2, True).clamp(-1e30, 1e30)
    wanted = integers.product(Workspace(), a, b, digits, by).clone()
    order = torch.randperm(700, generator=torch.Generator().manual_seed(3))
    same(integers.product(Workspace(), a[:, :, order], b[:, order], digits, by), wanted)
    monkeypatch.setattr(integers, "_EXACT", 0.0)
    same(integers.product(Workspace(), a, b, digits, by).float(), wanted.float())
    monkeypatch.setattr(integers, "CHUNK", 64)
    same(integers.product(Workspace(), a, b, digits, by).float(), wanted.float())


def test_words_hold_what_one_number_does_not() -> None:
    g = np.random.default_rng(5)
    totals = g.integers(-(1 << 61), 1 << 61, (4096, 40)) >> g.integers(0, 60, (4096, 1))
    totals[:8, 1:] = 0
    totals[:8, 0] = [0, 1, -1, (1 << 53) - 1, 1 << 53, (1 << 53) + 1, -(1 << 60) - 1, (1 << 60) + (1 << 36) + 1]
    totals[8] = [1 << 60] * 16 + [1 << 40, 1] + [0] * 22  # 2^64, half a place of float32, and a little more
    for terms in (1, 40):
        words = integers._Words.of(torch.from_numpy(totals[:, 0]))
        for i in range(1, terms):
            words.add(torch.from_numpy(totals[:, i]))
        for fmt in (FLOAT32, BFLOAT16):
            exact = [naive.round_fraction(Fraction(sum(map(int, row[:terms]))), fmt) for row in totals]
            assert [naive.round_fraction(y, fmt) for y in words.value().tolist()] == exact
    single = torch.from_numpy(totals[:, 0])
    assert integers.sticky(single).float().tolist() == [naive.round_fraction(Fraction(int(t)), FLOAT32) for t in single]


@pytest.mark.parametrize("left", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("other", [0.0, -0.0, 2.0, -(2.0**-149), math.inf, -math.inf, math.nan])
def test_what_is_not_finite(left: float, other: float, by: str) -> None:
    a, b = numbers((4, 6), 1), numbers((6, 5), 2)
    a[1, 2], b[2, 3] = left, other
    a[2], b[:, 4] = torch.tensor([math.inf, 1, 1, 1, 1, math.inf]), torch.tensor([1.0, 0, 0, 0, 0, -1.0])
    with session().step(1):
        found = a @ b
    same(found, naive.product(a, b, FLOAT32))


def test_zeros_have_one_sign_and_small_numbers_their_own(by: str) -> None:
    a = torch.tensor([[-0.0, -0.0], [1.0, -1.0], [-(2.0**-100), 0.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 2.0**-60], [1.0, 2.0**-60]])
    with session().step(1):
        y = a @ b
    assert y.view(torch.int32).tolist() == [
        [0, 0], [0, 0], torch.tensor([-(2.0**-100), -0.0]).view(torch.int32).tolist(), [0, 0]
    ]  # fmt: skip


def test_a_library_s_zeros_may_be_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b, out: torch.where(bmm(a, b) == 0, -0.0, bmm(a, b, out=out)))
    y = integers.product(Workspace(), torch.tensor([[[0.0, 0], [1, 1]]]), torch.ones(1, 2, 1), 3, "float64")
    assert y.view(torch.int64).flatten().tolist() == [0, 0x4000 << 48]


def test_layouts_broadcasts_and_empty_operands(by: str) -> None:
    a, b = numbers((2, 3, 5, 8), 1), numbers((8, 4), 2)
    with session().step(1):
        wanted = torch.stack([torch.stack([y @ b for y in x]) for x in a])
        same(a @ b, wanted)
        same(a.transpose(0, 1).contiguous().transpose(0, 1) @ b.t().contiguous().t(), wanted)
        same(a.repeat_interleave(2, 3)[..., ::2] @ b.repeat_interleave(2, 0)[::2], wanted)
        same(torch.nn.functional.linear(a, b.t()), wanted)
        same(torch.baddbmm(torch.ones(4), a[0], b.expand(3, 8, 4)), wanted[0] + 1)
        same(a[0, 0] @ b[:, 0], wanted[0, 0, :, 0])
        same(torch.dot(a[0, 0, 0], b[:, 0]), wanted[0, 0, 0, 0])
        for m, k, n in ((0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)):
            same(torch.zeros(m, k) @ torch.zeros(k, n), torch.zeros(m, n))
        same(torch.addmm(torch.full((2, 3), -0.0), torch.zeros(2, 0), torch.zeros(0, 3)), torch.zeros(2, 3))


def test_convolutions_are_products_of_patches(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With padding and what no gradient reaches as zeros that are terms; in chunks of samples as in one."""
    x, w = numbers((3, 4, 6, 5), 1, True).clamp(-1e9, 1e9), numbers((6, 2, 3, 2), 2)
    leaves = x.requires_grad_(), w.requires_grad_()
    words = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}

    def results() -> list[Tensor]:
        with session().step(1):
            y = torch.nn.functional.conv2d(*leaves, **words)
            return [y.detach(), *torch.autograd.grad(y, leaves, numbers(tuple(y.shape), 3))]

    found = results()
    y = found[0]
    patches = torch.nn.functional.unfold(x.detach(), (3, 2), (1, 2), (1, 2), (2, 1)).unflatten(1, (2, -1))
    for n, group in ((0, 0), (2, 1)):
        wanted = naive.product(w.detach()[3 * group : 3 * group + 3].flatten(1), patches[n, group], FLOAT32)
        same(y[n, 3 * group : 3 * group + 3].flatten(1), wanted)
    grad = numbers(tuple(y.shape), 3).transpose(0, 1).flatten(1)
    for group in (0, 1):
        columns = patches[:, group].transpose(0, 1).flatten(1).t()
        same(
            found[2][3 * group : 3 * group + 3].flatten(1),
            naive.product(grad[3 * group : 3 * group + 3], columns, FLOAT32),
        )
    monkeypatch.setattr("vtrain.engine.ops.geometry.CHUNK_BYTES", 1)
    for a, b in zip(results(), found, strict=True):
        same(a, b)


def test_the_error_bound() -> None:
    """numerics §10: before the rounding, against the exact product; ``hard`` operands come near half of it."""
    for digits in (2, 3):
        epsilon = Fraction(2, 2 * fixed.limit(digits) + 1)
        worst = Fraction(0)
        for seed in range(40):
            k = (1, 2, 9, 60)[seed % 4]
            u, v = numbers((k,), seed, seed % 3 == 0).double(), numbers((k,), seed + 50, seed % 3 == 0).double()
            if seed % 5 == 0:  # a large one that is exact, and small ones half-way between two steps
                u = torch.full((k,), 1.5, dtype=torch.float64)
                u[0] = fixed.limit(digits) + 1
                v = torch.ones(k, dtype=torch.float64)
            us, vs = [Fraction(x) for x in u.tolist()], [Fraction(x) for x in v.tolist()]
            error = abs(naive.dot(u.tolist(), v.tolist(), digits) - sum(x * y for x, y in zip(us, vs, strict=True)))
            one_u, one_v, top_u, top_v = sum(map(abs, us)), sum(map(abs, vs)), max(map(abs, us)), max(map(abs, vs))
            bound = epsilon * (top_u * one_v + top_v * one_u) + k * epsilon**2 * top_u * top_v
            assert error <= bound
            worst = max(worst, error / bound if bound else Fraction(0))
        assert worst > Fraction(1, 5)


def test_errors_relative_to_norms() -> None:
    """Of usual operands far below the bound, and below those of a chain of float32 operations."""
    a, b = numbers((64, 512), 1), numbers((512, 64), 2)
    exact = a.double() @ b.double()
    norms = a.double().norm(dim=1, keepdim=True) * b.double().norm(dim=0, keepdim=True)
    worst = {}
    for matmul in ("integer", "chain"):
        with Session(Plain(), Policy(matmul=matmul), 0).step(1):
            worst[matmul] = float(((a @ b - exact).abs() / norms).max())
    assert worst["integer"] < 2.0**-24 < worst["chain"] * 4


def test_integers_are_exact() -> None:
    """Whole numbers below the limit keep every bit, as one-hot rows and masks do."""
    a = (numbers((9, 300), 1) * 2**19).round()
    b = torch.eye(300)[:, torch.arange(300).flip(0)]
    with session().step(1):
        same(a @ b, a.flip(1))


# ---- what multiplies ------------------------------------------------------------------------------------------------
def test_a_product_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(a: Tensor, b: Tensor, ready: Tensor | None = None) -> Tensor:
        """Pairs of bytes with the left one moved by 128, in 16 bits (pmaddubsw), and the move taken back."""
        a, k = a.int() + 128, a.shape[1]
        pairs = [a[:, i : i + 2] @ b[i : i + 2].int() for i in range(0, k, 2)]
        return sum(p.clamp(-(1 << 15), (1 << 15) - 1) for p in pairs) - 128 * b.int().sum(0)  # type: ignore[return-value]

    small = torch.randint(-60, 60, (5, 30), dtype=torch.int8), torch.randint(-60, 60, (30, 4), dtype=torch.int8)
    assert torch.equal(saturating(*small), small[0].int() @ small[1].int()), "the imitation is one"
    monkeypatch.setattr(carriers, "_with_onednn", saturating)
    for cached in (carriers.int8_is_exact, carriers.carrier):
        cached.cache_clear()
    try:
        assert not carriers.int8_is_exact(CPU)
        assert carriers.carrier(CPU) == "float64"
        carriers.carrier.cache_clear()
        monkeypatch.setenv(carriers.VARIABLE, "int8")
        with pytest.raises(BackendError, match="int8"):
            carriers.carrier(CPU)
        monkeypatch.setenv(carriers.VARIABLE, "int4")
        with pytest.raises(BackendError, match="int4"):
            carriers.carrier(CPU)
    finally:
        for cached in (carriers.int8_is_exact, carriers.carrier):
            cached.cache_clear()


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 8, 8), (17, 9, 15), (40, 64, 33)])
def test_operands_as_cuda_wants_them(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = torch.randint(-9, 9, (m, k), dtype=torch.int8), torch.randint(-9, 9, (k, n), dtype=torch.int8)
    wide_a, wide_b = carriers.filled(a, b)
    assert wide_a.shape[0] > 16 and not wide_a.shape[1] % 8 and not wide_b.shape[1] % 8
    assert torch.equal((wide_a.int() @ wide_b.int())[:m, :n], a.int() @ b.int())
    already = torch.zeros(24, 16, dtype=torch.int8), torch.zeros(16, 8, dtype=torch.int8)
    assert all(x is y for x, y in zip(carriers.filled(*already), already, strict=True))


def test_onednn_is_off_again_after_a_product() -> None:
    with session().step(1):
        numbers((5, 40), 1) @ numbers((40, 5), 2)
        assert not torch._C._get_mkldnn_enabled()


def test_sums_that_are_too_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.engine.ops.matmul.LONGEST_INTEGER", 8)
    with session().step(1), pytest.raises(UnsupportedOperation, match="sums of 8 terms"):
        torch.ones(2, 8) @ torch.ones(8, 2)


def environments() -> list[dict[str, str]]:
    made = [
        profile_environment(name) | {"OMP_NUM_THREADS": t}
        for name, t in (("native", "2"), ("avx2", "1"), ("baseline", "1"))
    ]
    made.append(profile_environment("native") | {"VTRAIN_CPU": "generic", "VTRAIN_INTEGER": "float64"})
    return made


def test_every_machine_has_the_same_bits() -> None:
    """Instruction sets, threads, kernel variants, and both carriers where this processor has both."""
    script = Path(__file__).with_name("integer_work.py")
    found = {}
    for env in environments():
        done = subprocess.run(
            [sys.executable, str(script)], env=os.environ | env, capture_output=True, text=True, check=True
        )
        name, digest = done.stdout.split()
        found.setdefault(digest, set()).add(name)
    assert len(found) == 1, found
    assert HARD.numel() == 11
