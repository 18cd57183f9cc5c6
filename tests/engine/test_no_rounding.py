"""Operations that can't round, against definitions in Python; and float64, where one operation is its own rounding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_samples import HARD, WIDE

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy

Tensor = torch.Tensor
NAN, INF = float("nan"), float("inf")
POLICIES = {
    "default": Policy(),
    "logged": Policy(other="logged"),
    "chain": Policy(matmul="chain"),
    "integer": Policy(matmul="integer"),
}
G = torch.Generator().manual_seed(3)


def step(policy: Policy | None = None):
    return Session(Plain(), policy or Policy(), 0).step(1)


def bits(x: Tensor) -> list[int]:
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[x.element_size()]
    return torch.where(x != x, NAN, x).view(kind).reshape(-1).tolist() if x.is_floating_point() else x.tolist()


# ---- float64 --------------------------------------------------------------------------------------------------------
PAIRS = [(a, b) for a, b in itertools.product([*HARD, *WIDE], repeat=2) if math.isfinite(a) and math.isfinite(b)]
LEFT, RIGHT = (torch.tensor(v, dtype=torch.float64) for v in zip(*PAIRS, strict=True))


def _rounded(exact: Fraction) -> float:
    try:
        return float(exact)  # to nearest, ties to even
    except OverflowError:
        return INF if exact > 0 else -INF


SINGLE: dict[str, tuple[Callable[..., Tensor], Callable[[Fraction, Fraction], Fraction]]] = {
    "add": (torch.add, lambda a, b: a + b),
    "sub": (torch.sub, lambda a, b: a - b),
    "mul": (torch.mul, lambda a, b: a * b),
    "div": (torch.div, lambda a, b: a / b),
    "reciprocal": (lambda a, b: torch.reciprocal(b), lambda a, b: 1 / b),
    "square": (lambda a, b: a**2, lambda a, b: a * a),
}


@pytest.mark.parametrize("policy", [Policy(), Policy(bits=18), Policy(target="bfloat16")], ids=["32", "18", "bf16"])
@pytest.mark.parametrize("name", list(SINGLE))
def test_an_operation_in_float64_is_rounded_once(name: str, policy: Policy) -> None:
    op, exact = SINGLE[name]
    with step(policy):
        found = op(LEFT, RIGHT).tolist()
    wrong = [
        (a, b, f)
        for (a, b), f in zip(PAIRS, found, strict=True)
        if not (b == 0 and name in ("div", "reciprocal")) and f != _rounded(exact(Fraction(a), Fraction(b)))
    ]
    assert wrong == []


@pytest.mark.parametrize("policy", [Policy(), Policy(bits=18)], ids=["float32", "18"])
def test_a_number_meets_float64_as_it_is(policy: Policy) -> None:
    """Not rounded to float32 first, as it is for other types; and alpha's product is rounded before the sum."""
    x = torch.tensor([1 / 3, 2.0**60], dtype=torch.float64)
    values, narrow = x.tolist(), x.float()
    with step(policy):
        assert (x * 0.1).tolist() == [v * 0.1 for v in values]
        assert (0.1 - x).tolist() == [0.1 - v for v in values]
        assert (x % 0.1).tolist() == [math.fmod(v, 0.1) for v in values]
        assert torch.remainder(0.1, x).tolist() == [math.fmod(0.1, v) for v in values]
        assert torch.add(x, x, alpha=0.1).tolist() == [v + v * 0.1 for v in values]
        assert x.clone().add_(narrow, alpha=0.1).tolist() == [v + float(np.float32(v)) * 0.1 for v in values]
        assert x.sqrt().tolist() == [math.sqrt(v) for v in values]
        assert (x**0.5).tolist() == [math.sqrt(v) for v in values]
        assert x.float().double().reciprocal().float().dtype is torch.float32


@pytest.mark.parametrize("op", [torch.sum, torch.exp, torch.mean, torch.std, lambda x: x @ x, lambda x: x**1.5])
def test_what_rounds_more_than_once_in_float64_is_refused(op: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOperation, match=r"float64 that is rounded more than once"), step():
        op(torch.ones(3, dtype=torch.float64))


def test_a_number_for_float64_must_be_the_runs_in_every_bit() -> None:
    seen: list[tuple[float, bool]] = []

    class Scalars(Plain):
        def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
            seen.append((value, plain))
            return value

    x = torch.ones(2)
    with Session(Scalars(), Policy(), 0).step(1):
        x * 0.1, x.double() * 0.1, torch.add(x, x, alpha=0.3), torch.add(x, x.double(), alpha=0.3)
    assert seen == [(0.1, True), (0.1, False), (0.3, True), (0.3, False)]


# ---- parts of floats ------------------------------------------------------------------------------------------------
def _next(a: float, b: float) -> float:
    return float(np.nextafter(np.float32(a), np.float32(b)))


SIGNED: dict[str, tuple[Callable[..., Tensor], Callable[[float, float], float]]] = {
    "signbit": (lambda x, y: torch.signbit(x), lambda x, y: x == x and math.copysign(1, x) < 0),
    "copysign": (torch.copysign, lambda x, y: math.copysign(x, y if y == y else 1.0)),
    "copysign of a number": (lambda x, y: torch.copysign(x, -2), lambda x, y: math.copysign(x, -2)),
    "fmax": (torch.fmax, lambda x, y: (y if x != x else x if y != y else max(x, y)) + 0.0),
    "fmin": (torch.fmin, lambda x, y: (y if x != x else x if y != y else min(x, y)) + 0.0),
    "frac": (lambda x, y: torch.frac(x), lambda x, y: x - math.copysign(math.trunc(x), x) if math.isfinite(x) else NAN),
    "mantissa": (lambda x, y: torch.frexp(x)[0], lambda x, y: math.frexp(x)[0]),
    "exponent": (lambda x, y: torch.frexp(x)[1], lambda x, y: math.frexp(x)[1] if math.isfinite(x) else 0),
    "nextafter": (torch.nextafter, _next),
    "heaviside": (torch.heaviside, lambda x, y: y if x == 0 else float(x > 0)),
}


@pytest.mark.parametrize("name", list(SIGNED))
def test_parts_of_floats(name: str) -> None:
    op, definition = SIGNED[name]
    hard = torch.tensor([*HARD, -NAN], dtype=torch.float64).float()
    x, y = (v.reshape(-1) for v in torch.meshgrid(hard, hard, indexing="ij"))
    with step():
        found = op(x, y)
    wanted = torch.tensor([definition(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]).to(found.dtype)
    assert [i for i, (a, b) in enumerate(zip(bits(found), bits(wanted), strict=True)) if a != b] == []


def test_the_sign_of_a_nan_is_none() -> None:
    other = torch.tensor([0x7FC00000, -0x400000], dtype=torch.int32).view(torch.float32)
    with step():
        assert torch.signbit(other).tolist() == [False, False]
        assert torch.copysign(torch.tensor([3.0, -3.0]), other).tolist() == [3.0, 3.0]


# ---- ranks ----------------------------------------------------------------------------------------------------------
ROWS = [[3.0, 1.0, 2.0, 1.0], [2.0, 2.0, 1.0, 1.0], [NAN, 1.0, 0.0, 5.0], [NAN, NAN, 4.0, 1.0], [-0.0, 0.0, 1.0, -1.0],
        [NAN] * 4]  # fmt: skip


def _sorted(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (row[i] != row[i], row[i] if row[i] == row[i] else 0))


def _median(row: list[float], skips: bool) -> int:
    order, numbers = _sorted(row), sum(v == v for v in row)
    if skips:
        return order[max(0, (numbers - 1) // 2)]
    return order[(len(row) - 1) // 2] if numbers == len(row) else order[numbers]


def _mode(row: list[float]) -> int:
    counts = {i: row.count(row[i]) if row[i] == row[i] else 1 for i in range(len(row))}
    value = row[min(_sorted(row), key=lambda i: -counts[i])]
    return max(i for i in range(len(row)) if row[i] == value) if value == value else _sorted(row)[0]


RANKS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[list[float]], int]]] = {
    "median": (lambda x: torch.median(x, -1), lambda row: _median(row, False)),
    "nanmedian": (lambda x: torch.nanmedian(x, -1), lambda row: _median(row, True)),
    "second": (lambda x: torch.kthvalue(x, 2, -1), lambda row: _sorted(row)[1]),
    "mode": (lambda x: torch.mode(x, -1), _mode),
}


@pytest.mark.parametrize("name", list(RANKS))
def test_ranks(name: str) -> None:
    op, definition = RANKS[name]
    rows = ROWS + torch.randint(0, 5, (40, 4), generator=G).float().tolist()
    with step():
        values, indices = op(torch.tensor(rows))
        turned = op(torch.tensor(rows).t().contiguous().t())
    assert indices.tolist() == [definition(row) for row in rows]
    assert bits(values) == bits(torch.tensor([row[i] for row, i in zip(rows, indices.tolist(), strict=True)]))
    assert torch.equal(turned[1], indices)


@pytest.mark.parametrize("greatest", [True, False])
def test_running_extrema_name_the_last_of_equals(greatest: bool) -> None:
    rows = ROWS + torch.randint(0, 4, (40, 4), generator=G).float().tolist()
    with step():
        values, indices = (torch.cummax if greatest else torch.cummin)(torch.tensor(rows), 1)
    for row, found, at in zip(rows, values.tolist(), indices.tolist(), strict=True):
        best = 0
        for i, v in enumerate(row):
            better = v >= row[best] if greatest else v <= row[best]
            best = i if v != v or (row[best] == row[best] and better) else best
            assert at[i] == best
            assert bits(torch.tensor(found[i])[None]) == bits(torch.tensor(row[best])[None])


# ---- elements that meet ---------------------------------------------------------------------------------------------
def _meet(x: list[float], index: list[int], source: list[float], reduce: str, own: bool) -> list[float]:
    out = []
    for at, first in enumerate(x):
        met = [s for i, s in zip(index, source, strict=True) if i == at]
        terms = ([first] if own or not met else []) + met
        if reduce == "prod":
            out.append(math.prod(terms))  # float64, in order
        elif reduce in ("sum", "mean"):
            out.append(float(np.float32(math.fsum(terms))) / (len(terms) if reduce == "mean" else 1))
        else:
            extreme = max(terms) if reduce == "amax" else min(terms)
            out.append(NAN if any(t != t for t in terms) else extreme + 0.0)
    return out


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "prod", "mean", "amax", "amin"])
def test_elements_that_meet_at_an_index(reduce: str, own: bool, policy: str) -> None:
    x, source = torch.randn(9, generator=G), torch.randn(40, generator=G)
    index = torch.randint(0, 7, (40,), generator=G)
    wanted = torch.tensor(_meet(x.tolist(), index.tolist(), source.tolist(), reduce, own))
    with step(POLICIES[policy]):
        found = x.scatter_reduce(0, index, source, reduce, include_self=own)
        rows = x[:, None].repeat(1, 2).index_reduce(0, index, source[:, None].repeat(1, 2), reduce, include_self=own) \
            if reduce != "sum" else found[:, None].repeat(1, 2)  # fmt: skip
    assert bits(found) == bits(wanted)
    assert bits(rows[:, 0]) == bits(rows[:, 1]) == bits(found)


def test_extrema_of_nans_and_zeros_at_an_index() -> None:
    source = torch.tensor([NAN, 1.0, -0.0, 0.0, -0.0, -1.0])
    with step():
        found = torch.zeros(3).scatter_reduce(0, torch.tensor([0, 0, 1, 1, 2, 2]), source, "amax", include_self=False)
    assert bits(found) == bits(torch.tensor([NAN, 0.0, 0.0]))


# ---- integers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_products_of_integers_wrap(dtype: torch.dtype) -> None:
    a, b = (torch.randint(-(2**31), 2**31, shape, generator=G).to(dtype) for shape in ((3, 40), (40, 2)))
    width = torch.iinfo(dtype).bits
    wanted = [
        [sum(x * y for x, y in zip(r, c, strict=True)) for c in zip(*b.tolist(), strict=True)] for r in a.tolist()
    ]
    with step():
        found = a @ b
    assert [
        [(v - w) % 2**width for v, w in zip(*r, strict=True)] for r in zip(found.tolist(), wanted, strict=True)
    ] == [[0, 0]] * 3


def test_the_lowest_integer_has_no_divisor() -> None:
    with step():
        assert torch.gcd(torch.tensor([12, -18]), torch.tensor([8, 27])).tolist() == [4, 9]
    with pytest.raises(UnsupportedOperation, match=r"lowest number of torch\.int64"), step():
        torch.gcd(torch.tensor([-(2**63)]), torch.tensor([-1]))  # a trap on some processors


# ---- numbers without dimensions, and nothing ------------------------------------------------------------------------
NAMES = """sum mean prod amax amin all any logsumexp softmax log_softmax cumsum cumprod norm nansum nanmean argmax
    var_mean std var""".split()
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in NAMES},
    "median": lambda x, dim: torch.median(x, dim).values,
    "mode": lambda x, dim: torch.mode(x, dim).values,
    "cummax": lambda x, dim: torch.cummax(x, dim).values,
    "kthvalue": lambda x, dim: torch.kthvalue(x, 1, dim).values,
    "normalize": lambda x, dim: torch.nn.functional.normalize(x, dim=dim),
    "p-norm": lambda x, dim: torch.linalg.vector_norm(x, 3, dim=dim),
}


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_a_number_has_one_dimension_to_name(name: str, policy: str) -> None:
    x = torch.tensor(2.5)
    for dim in (0, -1):
        try:
            wanted = REDUCTIONS[name](x, dim=dim)
        except RuntimeError:
            continue
        with step(POLICIES[policy]):
            found = REDUCTIONS[name](x, dim=dim)
        for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (wanted, found)), strict=True):
            assert a.shape == b.shape and a.dtype is b.dtype
            assert torch.allclose(a, b, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)
    for dim in (1, -2, 5):
        with pytest.raises(IndexError, match=r"[Dd]im(ension)? "), step(POLICIES[policy]):
            REDUCTIONS[name](x, dim=dim)


def test_a_dimension_that_is_not_there_or_twice_is_torchs_error() -> None:
    """Not another one, counted round."""
    with pytest.raises(IndexError, match=r"range of \[-2, 1\], but got 2"), step():
        torch.ones(2, 3).sum(dim=2)
    with pytest.raises(RuntimeError, match="multiple times"), step():
        torch.ones(2, 3).mean(dim=(0, -2))


@pytest.mark.parametrize("policy", list(POLICIES))
def test_nothing(policy: str) -> None:
    empty = torch.empty(0, 4, 3, requires_grad=True)
    with step(POLICIES[policy]):
        assert torch.nn.functional.group_norm(empty, 2).shape == (0, 4, 3)
        assert torch.logsumexp(empty, 0).tolist() == [[-INF] * 3] * 4
        assert empty.roll(1, 0).shape == empty.shape and empty.nansum() == 0
        assert torch.zeros(3).scatter_reduce(0, torch.empty(0, dtype=torch.int64), torch.empty(0), "prod").sum() == 0
        torch.nn.functional.group_norm(empty, 2).sum().backward()
        assert empty.median().isnan()


# ---- the gradient scaler --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize(("scale", "tracker"), [(8.0, 0), (8.0, 1), (8.0, 2), (3e38, 2)])
def test_a_scale_is_updated_as_torch_does(found: float, scale: float, tracker: int) -> None:
    def update() -> list[Tensor]:
        state = [torch.tensor(scale), torch.tensor(tracker, dtype=torch.int32), torch.tensor(found)]
        torch._amp_update_scale_(*state, 2.0, 0.5, 3)
        return state

    with step():
        here = update()
    assert [t.item() for t in here] == [t.item() for t in update()]


@pytest.mark.parametrize("odd", [1.0, INF, -INF, NAN])
def test_gradients_are_unscaled_and_checked_as_torch_does(odd: float) -> None:
    def unscale() -> list[Tensor]:
        gradients, found = [torch.tensor([1.0, -3.0]), torch.tensor([odd]), torch.zeros(0)], torch.zeros(1)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, torch.tensor(0.3))
        return [*gradients, found]

    with step():
        here = unscale()
    assert [bits(t) for t in here] == [bits(t) for t in unscale()]
    assert here[-1].item() == (0.0 if math.isfinite(odd) else 1.0)


# ---- copies of views ------------------------------------------------------------------------------------------------
aten = torch.ops.aten
COPIES: dict[str, Callable[[Tensor], object]] = {
    "expand": lambda x: aten.expand_copy(x[:, :1], [3, 4]),
    "permute": lambda x: aten.permute_copy(x, [1, 0]),
    "select": lambda x: aten.select_copy(x, 0, 1),
    "slice": lambda x: aten.slice_copy(x, 1, 0, 4, 2),
    "split": lambda x: aten.split_copy(x, 2),
    "split into": lambda x: _into(lambda out: aten.split_copy(x, 2, out=out)),
    "sizes": lambda x: aten.split_with_sizes_copy(x, [1, 2]),
    "unbind": lambda x: aten.unbind_copy(x, 1),
    "view": lambda x: aten.view_copy(x, [2, 6]),
    "narrow": lambda x: aten.narrow_copy(x, 1, 1, 2),
    "as_strided": lambda x: aten.as_strided_copy(x, [2, 2], [4, 2], 1),
    "diagonal_scatter": lambda x: torch.diagonal_scatter(x, torch.full((3,), 9.0)),
    "as_strided_scatter": lambda x: torch.as_strided_scatter(x, torch.full((2, 2), 9.0), (2, 2), (1, 4)),
    "put": lambda x: x.put(torch.tensor([0, -1]), torch.tensor([7.0, 8.0])),
    "put and add": lambda x: x.put(torch.tensor([0, 0]), torch.tensor([7.0, 8.0]), accumulate=True),
    "block_diag": lambda x: torch.block_diag(x, torch.ones(2), torch.tensor(5)),
    "resize_as": lambda x: x.clone().resize_as_(torch.empty(2, 6)),
    "unpool": lambda x: torch.nn.functional.max_unpool2d(*_pooled(), 2),
    "isin a number": lambda x: (torch.isin(x, 0.5), torch.isin(x, 0.5, invert=True), torch.isin(0.5, x)),
    "round": lambda x: (torch.round(x * 1.37, decimals=1), torch.round(x * 137, decimals=-1)),
    "nansum": lambda x: torch.cat([x, torch.full((1, 4), NAN)]).nansum(0, keepdim=True),
    "allclose": lambda x: [torch.tensor(torch.allclose(x, x + d)) for d in (0.0, 1e-9, 1e-2)],
}


def _into(call: Callable[[list[Tensor]], object]) -> list[Tensor]:
    out = [torch.empty(2, 4), torch.empty(1, 4)]
    call(out)
    return out


def _pooled() -> tuple[Tensor, Tensor]:
    image = torch.arange(32.0).view(1, 2, 4, 4)
    return torch.nn.functional.max_pool2d(image, 2, return_indices=True)


@pytest.mark.parametrize("name", list(COPIES))
def test_arrangements_are_torchs(name: str) -> None:
    x = torch.arange(12.0).view(3, 4) / 8
    with step():
        found = COPIES[name](x)
    wanted = COPIES[name](x)
    for a, b in zip(*(list(v) if isinstance(v, list | tuple) else [v] for v in (found, wanted)), strict=True):
        assert a.shape == b.shape and a.dtype is b.dtype and torch.equal(a, b)
        assert a.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
