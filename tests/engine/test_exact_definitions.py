"""Operations of classes 1 and 2 against definitions in Python's integers and fractions, bit for bit (numerics §2)."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_samples import HARD
from torch.utils._python_dispatch import TorchDispatchMode

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy
from vtrain.rounding.formats import FLOAT32, Format
from vtrain.rounding.naive import round_fraction

Tensor = torch.Tensor
aten = torch.ops.aten
NAN, INF = float("nan"), float("inf")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POLICIES = {
    "float32": Policy(),
    "18 bits": Policy(bits=18),
    "11 bits": Policy(bits=11),
    "bfloat16": Policy(target="bfloat16"),
}


def session(policy: Policy | None = None) -> Session:
    return Session(Plain(), policy or Policy(), 0)


def same(found: list[float], wanted: list[float]) -> list[tuple[int, float, float]]:
    """Where two lists of floats differ; zeros have signs, any NaN is one."""
    assert len(found) == len(wanted)
    return [(i, a, b) for i, (a, b) in enumerate(zip(found, wanted, strict=True))
            if not (a != a and b != b) and (a != b or math.copysign(1, a) != math.copysign(1, b))]  # fmt: skip


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    hard = torch.tensor(HARD, dtype=torch.float64).to(torch.float32).to(dtype)
    pairs = torch.cartesian_prod(torch.arange(len(HARD)), torch.arange(len(HARD)))
    return hard[pairs[:, 0]], hard[pairs[:, 1]]


# ---- one IEEE operation ---------------------------------------------------------------------------------------------
def _fmod(x: Fraction, y: Fraction) -> Fraction:
    return x - y * math.trunc(x / y)


EXACT: dict[str, tuple[Callable[[Fraction, Fraction], Fraction], Callable[..., Tensor], Callable[..., float]]] = {
    "mul": (lambda x, y: x * y, torch.mul, np.multiply),
    "add": (lambda x, y: x + y, torch.add, np.add),
    "sub": (lambda x, y: x - y, torch.sub, np.subtract),
    "rsub": (lambda x, y: y - x, torch.rsub, lambda x, y: np.subtract(y, x)),
    "div": (lambda x, y: x / y, torch.div, np.divide),
    "fmod": (_fmod, torch.fmod, np.fmod),
    "remainder": (lambda x, y: x - y * math.floor(x / y), torch.remainder, lambda x, y: _python_mod(x, y)),
}


def _python_mod(x: np.float64, y: np.float64) -> float:
    """x % y where x or y is special, or the result is zero: fmod's rules, and x's sign for a zero."""
    r = math.fmod(x, y) if not (math.isinf(x) or math.isnan(x) or math.isnan(y) or y == 0) else NAN
    return r + y if r != 0 and (r < 0) != (y < 0) else r


def wanted(name: str, x: float, y: float, fmt: Format) -> float:
    exact, _, special = EXACT[name]
    if math.isfinite(x) and math.isfinite(y) and not (y == 0 and name in ("div", "fmod", "remainder")):
        value = exact(Fraction(x), Fraction(y))
        if value != 0:
            return round_fraction(value, fmt)
    with np.errstate(all="ignore"):
        return float(special(np.float64(x), np.float64(y)))


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", list(EXACT))
def test_one_operation_is_rounded_once(name: str, dtype: str, policy: str) -> None:
    run = session(POLICIES[policy])
    fmt = run.engine.format(DTYPES[dtype])
    x, y = (torch.tensor([round_fraction(v, fmt) for v in t.tolist()], dtype=t.dtype) for t in grid(DTYPES[dtype]))
    with run.step(1):
        found = EXACT[name][1](x, y)
    assert found.dtype is x.dtype
    assert same(found.tolist(), [wanted(name, *pair, fmt) for pair in zip(x.tolist(), y.tolist(), strict=True)]) == []


@pytest.mark.parametrize("name", list(EXACT))
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_with_another_operand_are_computed_in_float32(dtype: str, name: str) -> None:
    """A number is rounded to float32, not to 16 bits, and the result once; a tensor of another type likewise."""
    x, _ = grid(DTYPES[dtype])
    run = session()
    number = float(np.float32(0.3))
    for other in (0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)):
        with run.step(1):
            found = EXACT[name][1](x, other)
        wide = [wanted(name, v, number, FLOAT32) for v in x.tolist()]
        assert found.dtype is x.dtype
        assert same(found.tolist(), [round_fraction(v, run.engine.format(x.dtype)) for v in wide]) == []


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_quotients_of_integers(dtype: str) -> None:
    x, y = grid(DTYPES[dtype])
    run = session()
    with run.step(1):
        down, cut = torch.floor_divide(x, y), torch.div(x, y, rounding_mode="trunc")
    fmt = run.engine.format(DTYPES[dtype])
    for a, b, floor, trunc in zip(x.tolist(), y.tolist(), down.tolist(), cut.tolist(), strict=True):
        if not (math.isfinite(a) and math.isfinite(b) and b != 0):
            continue
        exact = Fraction(a) / Fraction(b)
        rounded = round_fraction(exact, FLOAT32)
        if abs(exact) < 2**20:
            assert floor == round_fraction(Fraction(math.floor(exact)), fmt), (a, b)
            assert trunc == round_fraction(Fraction(math.trunc(rounded)), fmt), (a, b)


def test_an_alternative_device_divides_by_tensors() -> None:
    """A scalar divisor may become a multiplication by its inverse: other devices get none."""
    seen: list[tuple[str, list[bool]]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "div" in str(func) or "fmod" in str(func):
                seen.append((str(func), [isinstance(a, Tensor) and a.device.type == "meta" for a in args]))
            return func(*args, **(kwargs or {}))

    x, run = torch.ones(4, device="meta"), session()
    with Watch(), run.step(1):
        for divide in (lambda: x / 3, lambda: x / torch.tensor(3.0), lambda: x // 3, lambda: x % 3, lambda: 3 / x,
                       lambda: torch.div(x, 3, rounding_mode="trunc"), lambda: x.clone().div_(3)):  # fmt: skip
            divide()
    assert len(seen) >= 7
    assert all(all(tensors) for _, tensors in seen), seen


def test_an_alternative_device_compares_with_numbers_of_the_tensors_type() -> None:
    seen: list[float] = []
    names = ("aten.lt", "aten.eq", "aten.threshold", "aten.le", "aten.ge")

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.extend(a for a in args if isinstance(a, float) and str(func).startswith(names))
            return func(*args, **(kwargs or {}))

    x, run = torch.ones(4, device="meta", dtype=torch.bfloat16), session()
    with Watch(), run.step(1):
        x.lt(0.1), x.eq(0.1), aten.threshold(x, 0.1, 0.1), aten.hardtanh_backward(x, x, 0.1, 0.1)
    assert seen == [number(0.1, torch.bfloat16)] * 6


def test_ldexp_is_a_product_with_a_power() -> None:
    x = torch.tensor([1.0, -3.0, 2.0**-140, 0.1] * 2)
    e = torch.tensor([0, 5, 20, -200, 149, -149, 127, 3])
    for mode in (torch.no_grad, torch.inference_mode):
        run = session()
        with mode(), run.step(1):
            found = torch.ldexp(x.clone(), e)
            part = torch.ldexp(torch.tensor([3.0]), torch.tensor([0.5]))
        assert run.engine.seq == 2  # the powers are settled, not a library's
        powers = [round_fraction(Fraction(2) ** int(k), FLOAT32) for k in e]
        assert (
            same(
                found.tolist(), [float(np.float32(a) * np.float32(b)) for a, b in zip(x.tolist(), powers, strict=True)]
            )
            == []
        )
        assert part.item() == float(np.float32(3.0) * np.float32(2**0.5))


# ---- choices between elements ---------------------------------------------------------------------------------------
def _max(x: float, y: float) -> float:
    return NAN if x != x or y != y else max(x, y) + 0.0


def _min(x: float, y: float) -> float:
    return NAN if x != x or y != y else min(x, y) + 0.0


def _zero(x: float, bound: float) -> float:
    return x + 0.0 if bound == 0 else x


def number(v: float, dtype: torch.dtype) -> float:
    return torch.tensor(v, dtype=dtype).item()


PAIRED: dict[str, tuple[Callable[..., Tensor], Callable[[float, float], float]]] = {
    "maximum": (torch.maximum, _max),
    "minimum": (torch.minimum, _min),
    "clamp_min": (lambda x, y: torch.clamp(x, min=y), _max),
    "clamp_max": (lambda x, y: torch.clamp(x, max=y), _min),
    "hardtanh_backward": (lambda g, x: aten.hardtanh_backward(g, x, -1.0, 0.1), None),  # type: ignore[dict-item]
    "softshrink_backward": (lambda g, x: aten.softshrink_backward(g, x, 0.1), None),  # type: ignore[dict-item]
    "hardshrink_backward": (lambda g, x: aten.hardshrink_backward(g, x, 0.1), None),  # type: ignore[dict-item]
    "threshold_backward": (lambda g, x: aten.threshold_backward(g, x, 0.1), None),  # type: ignore[dict-item]
    "lt": (torch.lt, lambda x, y: float(x < y)),
    "ge": (torch.ge, lambda x, y: float(x >= y)),
    "eq": (torch.eq, lambda x, y: float(x == y)),
    "ne": (torch.ne, lambda x, y: float(x != y)),
}
BLOCKED: dict[str, Callable[[float, float], bool]] = {
    "hardtanh_backward": lambda x, b: x <= -1 or x >= b,
    "softshrink_backward": lambda x, b: -b <= x <= b,
    "hardshrink_backward": lambda x, b: -b <= x <= b,
    "threshold_backward": lambda x, b: x <= b,
}


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", list(PAIRED))
def test_choices_by_pairs(name: str, dtype: str) -> None:
    x, y = grid(DTYPES[dtype])
    op, definition = PAIRED[name]
    bound = number(0.1, x.dtype)
    if definition is None:
        definition = lambda g, v: 0.0 if BLOCKED[name](v, bound) else g  # noqa: E731
    with session().step(1):
        found = op(x, y)
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    assert same([float(v) for v in found.tolist()], [definition(a, b) for a, b in pairs]) == []


UNARY: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float, torch.dtype], float]]] = {
    "relu": (torch.relu, lambda x, _: x if x > 0 or x != x else 0.0),
    "relu in place": (lambda x: x.clone().relu_(), lambda x, _: x if x > 0 or x != x else 0.0),
    "relu6": (torch.nn.functional.relu6, lambda x, _: x if x != x else min(max(x, 0.0), 6.0) + 0.0),
    "hardtanh": (torch.nn.functional.hardtanh, lambda x, _: x if x != x else min(max(x, -1.0), 1.0)),
    "clamp to 0": (lambda x: x.clamp(-1, 0), lambda x, _: x if x != x else min(max(x, -1.0), 0.0) + 0.0),
    "clamp in place": (lambda x: x.clone().clamp_(0, 1), lambda x, _: x if x != x else min(max(x, 0.0), 1.0) + 0.0),
    "clamp_min": (lambda x: x.clamp_min(-0.0), lambda x, _: x if x > 0 or x != x else 0.0),
    "clamp_max": (lambda x: x.clamp_max(0), lambda x, _: x if x != x else min(x, 0.0) + 0.0),
    "clamp between": (
        lambda x: x.clamp(-0.1, 0.1),
        lambda x, t: x if x != x else min(max(x, -number(0.1, t)), number(0.1, t)),
    ),
    "threshold": (lambda x: aten.threshold(x, 0.1, 0.3), lambda x, t: number(0.3, t) if x <= number(0.1, t) else x),
    "floor": (torch.floor, lambda x, _: x if not math.isfinite(x) else math.copysign(abs(math.floor(x)), x)),
    "ceil": (torch.ceil, lambda x, _: x if not math.isfinite(x) else math.copysign(abs(math.ceil(x)), x)),
    "trunc": (torch.trunc, lambda x, _: x if not math.isfinite(x) else math.copysign(abs(math.trunc(x)), x)),
    "round": (torch.round, lambda x, _: x if not math.isfinite(x) else math.copysign(abs(round(Fraction(x))), x)),
    "sign": (torch.sign, lambda x, _: float((x > 0) - (x < 0))),
    "abs": (torch.abs, lambda x, _: abs(x)),
    "neg": (torch.neg, lambda x, _: -x),
    "nan_to_num": (torch.nan_to_num, lambda x, t: 0.0 if x != x else math.copysign(min(abs(x), torch.finfo(t).max), x)),
    "below a number": (lambda x: x < 0.1, lambda x, t: float(x < number(0.1, t))),
    "equal to a number": (lambda x: x == 0.1, lambda x, t: float(x == number(0.1, t))),
    "to bool": (lambda x: x.to(torch.bool), lambda x, _: float(x != 0)),
}


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", list(UNARY))
def test_choices_by_elements(name: str, dtype: str) -> None:
    x, _ = grid(DTYPES[dtype])
    op, definition = UNARY[name]
    with session().step(1):
        found = op(x)
    assert same([float(v) for v in found.tolist()], [definition(v, x.dtype) for v in x.tolist()]) == []


@pytest.mark.parametrize("name", ["max", "min", "amax", "amin", "aminmax"])
@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0], [-0.0, -0.0]])
def test_a_zero_that_is_an_extremum_is_positive(name: str, zeros: list[float]) -> None:
    x = torch.tensor(zeros * 50_000)
    with session().step(1):
        found = getattr(torch, name)(x)
    for t in found if isinstance(found, tuple) else [found]:
        assert math.copysign(1, t.item()) == 1


# ---- conversions ----------------------------------------------------------------------------------------------------
NEAR_TIES = [s * (1 + k * 2.0**-p + d) for s in (1, -1) for p in (8, 9, 11, 12, 18, 19, 24, 25) for k in (1, 3)
             for d in (0, 2.0**-40, -(2.0**-40), 2.0**-50)]  # fmt: skip
LARGE = [2**53 + 1, 2**62 + 2**54 + 1, -(2**62) - 2**54 - 1, 2**63 - 1, -(2**63), 2**24 + 1, 2**25 + 2**17 + 1, -3, 0,
         2**31 + 2**23, 2**40 + 2**31 + 1, 2**40 + 2**28 + 1, 131328, 131329, -131329, 65519, 65520]  # fmt: skip


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("way", ["to", "copy_", "type_as", "fill_", "where", "cat"])
def test_a_conversion_rounds_once(way: str, dtype: str, policy: str) -> None:
    target = DTYPES[dtype]
    run = session(POLICIES[policy])
    for source in (
        torch.tensor(NEAR_TIES, dtype=torch.float64),
        torch.tensor(LARGE),
        torch.tensor([2**31 - 1, 16777217], dtype=torch.int32),
    ):
        if way in ("where", "cat") and source.is_floating_point():
            continue  # the result would be float64
        like = torch.zeros(len(source), dtype=target)
        with run.step(1):
            if way == "to":
                found = source.to(target)
            elif way == "copy_":
                found = like.copy_(source)
            elif way == "type_as":
                found = source.type_as(like)
            elif way == "fill_":
                found = torch.stack([torch.zeros((), dtype=target).fill_(v) for v in source.unbind()])
            elif way == "where":
                found = torch.where(like == 0, source, like)
            else:
                found = torch.cat([source, like])[: len(source)]
        fmt = run.engine.format(target)
        assert found.dtype is target
        assert same(found.tolist(), [round_fraction(Fraction(v), fmt) for v in source.tolist()]) == []


@pytest.mark.parametrize("value", [-INF, -1e20, -(2.0**63)])
def test_a_float_below_every_integer_becomes_the_lowest(value: float) -> None:
    x = torch.tensor([1.5, value, -2.5])
    with session().step(1):
        assert x.long().tolist() == torch.zeros(3, dtype=torch.int64).copy_(x).tolist() == [1, -(2**63), -2]
        assert x.int().tolist() == [1, -(2**31), -2]
        assert torch.where(x < -3, torch.ones(3, dtype=torch.int64), x.long()).tolist() == [1, 1, -2]
    with pytest.raises(UnsupportedOperation, match="can't hold"), session().step(1):
        x.to(torch.int16)


@pytest.mark.parametrize("value", [NAN, INF, 1e20, 2.0**63])
@pytest.mark.parametrize("way", ["to", "copy_", "fill_", "slice_scatter", "setitem", "masked_fill"])
def test_a_float_that_no_integer_holds_is_an_error(way: str, value: float) -> None:
    x, whole = torch.tensor([1.0, value]), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UnsupportedOperation, match=r"can't hold[\s\S]*test_exact_definitions.py"), session().step(1):
        if way == "to":
            x.long()
        elif way == "copy_":
            whole.copy_(x)
        elif way == "fill_":
            whole.fill_(x[1])
        elif way == "slice_scatter":
            torch.slice_scatter(whole, x)
        elif way == "masked_fill":
            whole.masked_fill(whole == 0, x[1])
        else:
            whole[:] = x


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_floats_in_range_are_cut_towards_zero(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    fits = [v for v in (-128.9, -0.9, 0.0, 0.5, 1.9, 127.9, 255.9, 32767.5, 2.0**31 - 128, -(2.0**31), -(2.0**63))
            if info.min <= math.trunc(v) <= info.max]  # fmt: skip
    with session().step(1):
        found = torch.tensor(fits).to(dtype)
    assert found.tolist() == [math.trunc(float(np.float32(v))) for v in fits]


def test_float8_and_complex_are_refused() -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64):
        with pytest.raises(UnsupportedOperation), session().step(1):
            torch.ones(3).to(dtype)
        with pytest.raises(UnsupportedOperation), session().step(1):
            torch.zeros(3, dtype=dtype).copy_(torch.ones(3))


def test_a_form_that_would_make_floats_integers_is_torchs_error() -> None:
    for policy in (Policy(), Policy(bits=18)):
        with pytest.raises(RuntimeError, match="can't be cast"), session(policy).step(1):
            torch.ones(3, dtype=torch.int64).mul_(0.5)
        with pytest.raises(RuntimeError, match="can't be cast"), session(policy).step(1):
            torch.exp(torch.ones(3), out=torch.zeros(3, dtype=torch.int64))


# ---- writes ---------------------------------------------------------------------------------------------------------
G = torch.Generator().manual_seed(4)


def _numbers(*shape: int) -> Tensor:
    return torch.randperm(math.prod(shape), generator=G).view(shape).to(torch.float32)


def _indices(high: int, *shape: int) -> Tensor:
    return torch.randint(-high, high, shape, generator=G)


def _in_order(x: Tensor, pick: tuple[object, ...], values: Tensor) -> Tensor:
    """x[pick] = values, an element of the positions after another: by numpy's own view of the positions."""
    out, at = x.clone().numpy(), np.arange(x.numel()).reshape(x.shape)[pick]
    flat = out.reshape(-1)
    for place, value in zip(at.reshape(-1), np.broadcast_to(values.numpy(), at.shape).reshape(-1), strict=True):
        flat[place] = value
    return torch.from_numpy(out)


ROW, COLUMN = _indices(6, 40), _indices(5, 40)
MASK = torch.tensor([True, False, True, True, False, True])
PICKS: dict[str, tuple[tuple[object, ...], tuple[int, ...]]] = {
    "one index": ((ROW,), (40, 5, 4)),
    "broadcast values": ((ROW,), (40, 1, 1)),
    "second dimension": ((slice(None), COLUMN), (6, 40, 4)),
    "neighbours": ((ROW, COLUMN), (40, 4)),
    "neighbours, later": ((slice(None), COLUMN, _indices(4, 40)), (6, 40)),
    "apart": ((ROW, slice(None), _indices(4, 40)), (40, 5)),
    "grid": ((ROW[:, None], COLUMN[None, :7]), (40, 7, 4)),
    "mask": ((MASK,), (4, 5, 4)),
    "mask and index": ((MASK, COLUMN[:4]), (4, 4)),
    "one element": ((torch.tensor(2), torch.tensor(-1)), (4,)),
}


@pytest.mark.parametrize("accessor", ["index_put", "setitem", "impl"])
@pytest.mark.parametrize("name", list(PICKS))
def test_the_last_position_wins(name: str, accessor: str) -> None:
    pick, shape = PICKS[name]
    x, values = -_numbers(6, 5, 4) - 1, _numbers(*shape)
    indices = [None if isinstance(p, slice) else p for p in pick]
    with session().step(1):
        if accessor == "index_put":
            found = aten.index_put(x, indices, values)
        elif accessor == "impl":
            found = aten._index_put_impl_(x.clone(), indices, values)
        else:
            found = x.clone()
            found[pick] = values
    plain = tuple(p.numpy() if isinstance(p, Tensor) else p for p in pick)
    assert torch.equal(found, _in_order(x, plain, values))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_last_position_wins_whatever_the_threads(threads: int) -> None:
    """Rows long enough to be shared out: natively, another thread's row wins now and then."""
    i = torch.arange(400) * 7919 % 50
    v = (torch.arange(400 * 1000) * 2654435761 % 2**20).to(torch.float32).view(400, 1000)
    last = {int(row): position for position, row in enumerate(i)}
    expected = v[[last[row] for row in range(50)]]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(10):
            with session().step(1):
                found = torch.zeros(50, 1000).index_put((i,), v), torch.zeros(50, 1000).index_copy(0, i, v)
            assert all(torch.equal(f, expected) for f in found)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_last_position_wins_along_a_dimension(dim: int) -> None:
    x = -_numbers(6, 7, 5) - 1
    n = x.shape[dim]
    index = torch.randint(0, n, (30,), generator=G)
    values = _numbers(*[30 if d == dim % 3 else m for d, m in enumerate(x.shape)])
    pick = tuple(index.numpy() if d == dim % 3 else slice(None) for d in range(3))
    places = torch.randint(0, n, (4, 6, 5), generator=G)
    source = _numbers(6, 7, 5)
    with session().step(1):
        copied = x.index_copy(dim, index, values)
        inplace = x.clone().index_copy_(dim, index, values)
        scattered = x.scatter(dim, places, source)
    wanted_copy = x.clone()
    for position in range(30):
        wanted_copy.select(dim, int(index[position])).copy_(values.select(dim, position))
    wanted_scatter = x.clone()
    for at in np.ndindex(4, 6, 5):
        to = list(at)
        to[dim] = int(places[at])
        wanted_scatter[tuple(to)] = source[at]
    assert pick
    assert torch.equal(copied, wanted_copy)
    assert torch.equal(inplace, wanted_copy)
    assert torch.equal(scattered, wanted_scatter)


def test_a_write_out_of_bounds_is_torchs_error() -> None:
    for index in (torch.tensor([0, 9]), torch.tensor([0, -7])):
        with pytest.raises(IndexError), session().step(1):
            torch.zeros(6, 2)[index] = torch.ones(2, 2)


SHIFTS: dict[str, tuple[Callable[[Tensor, Tensor], object], Callable[[Tensor, Tensor], Tensor]]] = {
    "copy": (lambda to, of: to.copy_(of), lambda to, of: of),
    "add": (lambda to, of: to.add_(of), lambda to, of: to + of),
    "add twice": (lambda to, of: to.add_(of, alpha=2), lambda to, of: to + of * 2),
    "out=": (lambda to, of: torch.mul(of, 2, out=to), lambda to, of: of * 2),
    "masked": (
        lambda to, of: to.masked_fill_(of.view(torch.int32).bool(), 1.0),
        lambda to, of: to.masked_fill(of != 0, 1.0),
    ),
}


@pytest.mark.parametrize("name", list(SHIFTS))
def test_memory_that_moves_within_itself_is_read_before_it_is_written(name: str) -> None:
    x = torch.arange(3 * 1003.0).view(3, 1003)
    act, definition = SHIFTS[name]
    found, expected = x.clone(), x.clone()
    with session().step(1):
        act(found[:, 1:], found[:, :-1])
    expected[:, 1:] = definition(x[:, 1:].clone(), x[:, :-1].clone())
    assert torch.equal(found, expected)


def test_a_write_through_indices_that_meet_is_an_error() -> None:
    for make in (lambda t: t.unfold(0, 3, 1), lambda t: t.as_strided((4, 3), (1, 1))):
        x = torch.arange(10.0)
        with (
            pytest.raises(UnsupportedOperation, match=r"several indices mean[\s\S]*test_exact_definitions.py"),
            session().step(1),
        ):
            view = make(x)
            view.sum()
            x.mul_(2)  # an element of its own for each index
            view.mul_(2)


# ---- order and sets -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_sorting_and_sets(dtype: str) -> None:
    x, _ = grid(DTYPES[dtype])
    values = x.tolist()
    order = sorted(
        range(len(values)), key=lambda i: (values[i] != values[i], values[i] if values[i] == values[i] else 0)
    )
    with session().step(1):
        found = torch.sort(x, stable=False)
        top = torch.topk(x, 50, largest=False)
        distinct, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    assert found.indices.tolist() == order
    assert top.indices.tolist() == order[:50]
    assert same(found.values.tolist(), [values[i] for i in order]) == []
    groups: list[list[int]] = []
    for i in order:
        if groups and values[groups[-1][0]] == values[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
    assert same(distinct.tolist(), [values[g[0]] for g in groups]) == []
    assert counts.tolist() == [len(g) for g in groups]
    assert inverse.tolist() == [next(j for j, g in enumerate(groups) if i in g) for i in range(len(values))]


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_first_extremum_is_found(dtype: str) -> None:
    x, _ = grid(DTYPES[dtype])
    for rows in (x.view(40, 40), x[x == x].view(38, -1)):
        with session().step(1):
            found = [rows.max(1), rows.min(1), (rows.argmax(1),), (rows.argmin(1),), (rows.argmax(),), (rows.argmin(),)]
        for i, row in enumerate([*rows.tolist(), rows.reshape(-1).tolist()]):
            nan = next((j for j, v in enumerate(row) if v != v), None)
            high, low = (row.index(f(row)) if nan is None else nan for f in (max, min))
            if i == len(rows):
                assert (int(found[4][0]), int(found[5][0])) == (high, low)
                continue
            assert [int(f[-1][i]) for f in found[:4]] == [high, low, high, low]
            assert same([float(found[0][0][i]), float(found[1][0][i])], [row[high], row[low]]) == []


def test_searching() -> None:
    bounds = [-INF, -1.0, -0.0, 0.0, 0.5, 0.5, 3.0, INF]
    x = torch.tensor(HARD)
    with session().step(1):
        left, right = torch.bucketize(x, torch.tensor(bounds)), torch.searchsorted(torch.tensor(bounds), x, right=True)
    for v, a, b in zip(x.tolist(), left.tolist(), right.tolist(), strict=True):
        assert a == (len(bounds) if v != v else bisect.bisect_left(bounds, v))
        assert b == (len(bounds) if v != v else bisect.bisect_right(bounds, v))
    for bad in ([1.0, 0.0], [0.0, NAN], [NAN]):
        with pytest.raises(UnsupportedOperation, match="ascending"), session().step(1):
            torch.bucketize(x, torch.tensor(bad))


def test_counts_with_weights_are_sums_of_float32() -> None:
    at, weights = torch.tensor([0, 2, 2, 0, 2]), torch.tensor([1.0, 2.0**24, 1.0, 2.0, 1.0])
    with session().step(1):
        assert torch.bincount(at, weights, minlength=4).tolist() == [3.0, 0.0, 2.0**24 + 2, 0.0]
    with pytest.raises(UnsupportedOperation, match="float32"), session().step(1):
        torch.bincount(at, weights.double())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_integers_wrap_and_shifts_run_out(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    numbers = [info.min, info.max, 0, 1, 5, info.max - 1]
    x = torch.tensor(numbers, dtype=dtype)
    wrap = lambda v: (v - info.min) % (1 << info.bits) + info.min  # noqa: E731
    with session().step(1):
        assert (x + x).tolist() == [wrap(2 * v) for v in numbers]
        assert (x * x).tolist() == [wrap(v * v) for v in numbers]
        assert (-x).tolist() == [wrap(-v) for v in numbers]
        assert x.abs().tolist() == [wrap(abs(v)) for v in numbers]
        for s in (0, 1, info.bits - 1, info.bits, info.bits + 5):
            assert (x << s).tolist() == [wrap(v << s) if s < info.bits else 0 for v in numbers]
            assert (x >> s).tolist() == [v >> min(s, info.bits) for v in numbers]
        assert (x // 3).tolist() == [v // 3 for v in numbers]
        assert (x % 3).tolist() == [v % 3 for v in numbers]
        assert torch.fmod(x, 3).tolist() == [int(math.fmod(v % 3 if v >= 0 else -((-v) % 3), 3)) for v in numbers]
        with pytest.raises(RuntimeError, match="ero"):
            x // 0


# ---- memory and bits ------------------------------------------------------------------------------------------------
def test_new_memory_is_zero() -> None:
    for _ in range(3):
        dirt = [torch.full((n,), NAN) for n in (3, 64, 5000, 300_000)]
        del dirt
        with session().step(1):
            made = [torch.empty(n) for n in (3, 64, 5000, 300_000)]
            made += [torch.empty_like(made[2], dtype=torch.float16), made[0].new_empty(5000), torch.Tensor(64)]
            made.append(torch.empty_strided((50,), (100,)).as_strided((4901,), (1,)))
            grown = torch.ones(3)
            grown.resize_(5000)
        assert grown.tolist() == [1.0] * 3 + [0.0] * 4997
        assert all(not t.any() for t in made)


def test_the_bits_of_a_nan_are_the_canonical_ones() -> None:
    odd = torch.tensor([-1, 0x7F800001, 0x7FC00000, -4194304, 0x3F800000], dtype=torch.int32)
    for make in (lambda t: t.view(torch.int32), lambda t: t.view(torch.uint8).view(torch.int32)):
        x = odd.clone().view(torch.float32)
        with session().step(1):
            seen = make(x)
            assert seen.tolist() == [0x7FC00000] * 4 + [0x3F800000]
            x[4:].sub_(INF).add_(INF)  # a NaN of this machine's, after the view was made
            torch.mul(x, -1, out=x)
            assert seen.tolist() == [0x7FC00000] * 5
        assert math.copysign(1, _item(x)) == 1
    with session().step(1):
        whole = torch.tensor([-1], dtype=torch.int32)
        whole.view(torch.float32).add_(1)
        assert whole.tolist() == [0x7FC00000]


def _item(x: Tensor) -> float:
    negative = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    with session().step(1):
        return negative.item()


def test_stochastic_rounding_by_bits_works() -> None:
    """What bfloat16 optimizers do: integers are added to a float's bits, the low ones cut off."""
    x = torch.tensor([1.0, -2.5, 3e38, 0.1])
    with session().step(1):
        bits = torch.full((4,), 0x7FFF, dtype=torch.int32).add_(x.view(torch.int32)).bitwise_and_(-65536)
        found = torch.zeros(4, dtype=torch.bfloat16).copy_(bits.view(torch.float32))
    wanted_bits = [((int(np.float32(v).view(np.int32)) + 0x7FFF) & -65536) for v in x.tolist()]
    assert found.float().view(torch.int32).tolist() == wanted_bits
