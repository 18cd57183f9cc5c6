"""What a referee evaluates, against torch's own tensors in float64 and sums of fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auditor.dispute.exact import Exact, evaluate, exact_sum, within
from auditor.dispute.terms import FUNCTIONS, Index, terms
from vtrain.engine.listener import Plain, Site
from vtrain.engine.session import Session
from vtrain.errors import ProofError
from vtrain.policy import Policy
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format, format_by_name, target_in_float32
from vtrain.rounding.functions import CORRECT
from vtrain.rounding.naive import from_ordered, ordered, round_fraction

ONE, TWO, HALF = (1.0).hex(), (2.0).hex(), (0.5).hex()


def value(kind: str, params: dict[str, Any], operands: dict[str, torch.Tensor], shape: list[int], at: int) -> Exact:
    def read(name: str, index: Index) -> np.ndarray:
        return operands[name].double().reshape(-1).numpy()[index]

    shapes = {name: tuple(t.shape) for name, t in operands.items()}
    return evaluate(kind, params, terms(kind, params, shapes, tuple(shape), at), read)


def small(*shape: int) -> torch.Tensor:
    """Integers of at most 8 in float32: sums of their products are exact in float64."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-8, 9, shape, generator=generator).float()


def same(kind: str, params: dict[str, Any], operands: dict[str, torch.Tensor], wanted: torch.Tensor) -> None:
    flat = wanted.double().reshape(-1).tolist()
    found = [value(kind, params, operands, list(wanted.shape), i).value for i in range(len(flat))]
    assert [Fraction(f) for f in found] == [Fraction(w) for w in flat]


@pytest.mark.parametrize("bias", [None, (5,), (3, 5), (2, 3, 5), (1, 1, 5), (2, 1, 1)])
@pytest.mark.parametrize("alpha,beta", [(1.0, 1.0), (0.5, -2.0)])
def test_product(bias: tuple[int, ...] | None, alpha: float, beta: float) -> None:
    a, b = small(2, 3, 4), small(2, 4, 5)
    operands = {"a": a, "bt": b.mT.contiguous()}
    wanted = alpha * (a.double() @ b.double())
    if bias is not None:
        operands["bias"] = small(*bias)
        wanted = wanted + beta * operands["bias"].double()
    same("product", {"alpha": alpha.hex(), "beta": beta.hex(), "c": "float64"}, operands, wanted)


GEOMETRIES = [  # h, w, kh, kw, stride, padding, dilation, groups
    (5, 6, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    (5, 6, 3, 2, (2, 1), (0, 1), (1, 2), 2),
    (7, 5, 2, 3, (3, 2), (2, 0), (2, 1), 4),
    (4, 4, 1, 1, (1, 1), (0, 0), (1, 1), 1),
]


@pytest.mark.parametrize("g", GEOMETRIES)
def test_convolutions(g: tuple[Any, ...]) -> None:
    h, w, kh, kw, stride, padding, dilation, groups = g
    x, weight, bias = small(2, 4, h, w), small(8, 4 // groups, kh, kw), small(8)
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    y = torch.nn.functional.conv2d(*wide, bias.double(), stride, padding, dilation, groups)
    grad = small(*y.shape)
    y.backward(grad.double())
    geometry = [2, 4, h, w, 8, kh, kw, *stride, *padding, *dilation, *y.shape[2:], groups]
    params = {"geometry": geometry, "c": "float64"}
    same("convolution", params, {"x": x, "weight": weight, "bias": bias}, y.detach())
    assert wide[0].grad is not None and wide[1].grad is not None
    same("input_gradient", params, {"grad": grad, "weight": weight}, wide[0].grad)
    same("weight_gradient", params, {"grad": grad, "x": x}, wide[1].grad)


@pytest.mark.parametrize(("stride", "dilation", "more"), [((1, 1), (3, 2), (2, 1)), ((2, 1), (4, 3), (3, 2))])
def test_transposed_convolutions_that_leave_positions_out(
    stride: tuple[int, int], dilation: tuple[int, int], more: tuple[int, int]
) -> None:
    """With output_padding >= stride more positions fit into the output than the input has."""
    x, weight = small(2, 4, 3, 4), small(4, 3, 3, 2)
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    y = torch.nn.functional.conv_transpose2d(*wide, None, stride, 1, more, 1, dilation)
    grad = small(*y.shape)
    y.backward(grad.double())
    params = {"geometry": [2, 3, *y.shape[2:], 4, 3, 2, *stride, 1, 1, *dilation, 3, 4, 1], "c": "float64"}
    assert wide[0].grad is not None and wide[1].grad is not None
    same("input_gradient", params, {"grad": x, "weight": weight}, y.detach())
    same("convolution", params, {"x": grad, "weight": weight}, wide[0].grad)
    same("weight_gradient", params, {"grad": x, "x": grad}, wide[1].grad)


@pytest.mark.parametrize("dims", [[0], [1], [0, 2], [0, 1, 2], [2, 1], []])
@pytest.mark.parametrize("square", [False, True])
def test_sums(dims: list[int], square: bool) -> None:
    x = small(3, 4, 5)
    wide = x.double() ** 2 if square else x.double()
    params = {"dims": dims, "divisor": TWO, "square": square}
    same("sum", params, {"x": x}, (wide.sum(dims) if dims else wide) / 2)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name: str) -> None:
    x = torch.tensor([0.0, -0.0, 0.25, 0.7, 1.5, -0.5, 3.0, math.inf, -math.inf, math.nan, 2.0**-130])
    params = {"name": name, "exponent": (0.3).hex()} if name == "pow" else {"name": name}
    wanted = (x.double() ** 0.3) if name == "pow" else getattr(torch, name)(x.double())
    for i, w in enumerate(wanted.tolist()):
        found = value("function", params, {"x": x}, [len(x)], i)
        if isinstance(found.value, float):
            assert (math.isnan(found.value) and math.isnan(w)) or found.value.hex() == w.hex(), (name, x[i])
        else:
            assert abs(found.value - Fraction(w)) <= abs(found.value) * Fraction(1, 2**49), (name, x[i])
            assert 0 < found.bound <= abs(found.value) * Fraction(1, 2**43)


def test_pi_is_pi() -> None:
    """More than what float64 tells: 4 atan(1) to 190 bits."""
    found = value("function", {"name": "atan"}, {"x": torch.ones(1)}, [1], 0)
    with mpmath.workprec(300):
        pi = mpmath.pi()._mpf_
        exact = Fraction(int(pi[1])) * Fraction(2) ** int(pi[2])
    assert abs(4 * Fraction(found.value) - exact) < Fraction(1, 2**190)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=40))
def test_sum_is_exact(xs: list[float]) -> None:
    assert exact_sum(np.array(xs, dtype=np.float64)) == sum((Fraction(x) for x in xs), Fraction(0))


def test_bound_is_that_of_the_contract() -> None:
    a, b = small(1, 2, 4), small(1, 4, 2)
    found = value("product", {"alpha": ONE, "beta": "0x0.0p+0", "c": "float32"}, {"a": a, "bt": b.mT}, [2, 2], 3)
    norms = float(a[0, 1].double().norm() * b[0, :, 1].double().norm())
    wanted = (4 + 3 + 1) * 2.0**-24 * norms
    assert wanted <= found.bound <= wanted * (1 + 1e-5)


def test_a_convolution_s_scale_takes_whole_rows() -> None:
    """Where a part of the kernel meets padding, as the engine's scale does."""
    x, weight = small(1, 1, 3, 3), small(1, 1, 3, 3)
    params = {"geometry": [1, 1, 3, 3, 1, 3, 3, 1, 1, 1, 1, 1, 1, 3, 3, 1], "c": "float32"}
    found = value("convolution", params, {"x": x, "weight": weight}, [1, 1, 3, 3], 0)
    wanted = (9 + 1 + 1) * 2.0**-24 * float(weight.double().norm() * x[0, 0, :2, :2].double().norm())
    assert wanted <= found.bound <= wanted * (1 + 1e-5)


def test_sum_of_zeros_has_no_bound() -> None:
    found = value(
        "product",
        {"alpha": ONE, "beta": HALF, "c": "float32"},
        {"a": torch.zeros(1, 1, 3), "bt": small(1, 1, 3)},
        [1, 1],
        0,
    )
    assert found == Exact(Fraction(0), Fraction(0))
    assert within(0.0, found, BFLOAT16, False)
    assert not within(2.0**-133, found, BFLOAT16, False)


SPECIAL = [
    ([math.inf, 1.0], [1.0, 1.0], math.inf), ([math.inf, -math.inf], [1.0, 1.0], math.nan),
    ([math.inf, 1.0], [0.0, 1.0], math.nan), ([math.nan, 1.0], [0.0, 1.0], math.nan),
    ([1.0, -math.inf], [2.0, 3.0], -math.inf),
]  # fmt: skip


@pytest.mark.parametrize("a,b,wanted", SPECIAL)
def test_special_values(a: list[float], b: list[float], wanted: float) -> None:
    operands = {"a": torch.tensor([[a]]), "bt": torch.tensor([[b]])}
    found = value("product", {"alpha": ONE, "beta": ONE, "c": "float64"}, operands, [1, 1], 0)
    assert isinstance(found.value, float) and found.bound == 0
    assert within(wanted, found, FLOAT32, False)
    for other in (1.0, math.inf, -math.inf, math.nan):
        assert within(other, found, FLOAT32, False) == (other.hex() == wanted.hex())


FORMATS = [FLOAT32, BFLOAT16, FLOAT16, target_in_float32("float32", 18), target_in_float32("bfloat16", 24)]


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@given(data=st.data())
def test_within_is_exactly_the_roundings_of_the_interval(fmt: Format, data: st.DataObject) -> None:
    """Against the definition: v is within iff some x in [exact - bound, exact + bound] rounds to v."""
    top = ordered(math.inf, fmt)
    place = data.draw(st.integers(-top + 1, top - 1))
    centre = Fraction(from_ordered(place, fmt)) * Fraction(data.draw(st.integers(200, 312)), 256)
    bound = abs(centre) * Fraction(data.draw(st.integers(0, 100)), 1 << data.draw(st.integers(6, 40)))
    exact = Exact(centre, bound)
    low, high = (round_fraction(centre + s * bound, fmt) for s in (-1, 1))
    near = ordered(round_fraction(centre, fmt), fmt)
    for k in range(max(-top, near - 3), min(top, near + 3) + 1):
        v = from_ordered(k, fmt)
        rounds = low <= v <= high
        if v == 0:  # zeros are one number for <=, and two values
            continue
        assert within(v, exact, fmt, True) == within(v, exact, fmt, False) == rounds


def test_zeros() -> None:
    tiny = Exact(Fraction(1, 2**200), Fraction(1, 2**199))
    assert within(0.0, tiny, FLOAT32, True) and within(-0.0, tiny, FLOAT32, True)
    below = Exact(-Fraction(1, 2**200), Fraction(0))
    for signed in (True, False):  # a negative number that rounds to zero is -0 all the same
        assert within(-0.0, below, FLOAT32, signed) and not within(0.0, below, FLOAT32, signed)
    assert within(0.0, tiny, FLOAT32, False) and within(-0.0, tiny, FLOAT32, False)
    nothing = Exact(Fraction(0), Fraction(0))
    assert within(0.0, nothing, FLOAT32, False) and not within(-0.0, nothing, FLOAT32, False)
    assert within(-0.0, Exact(-0.0, Fraction(0)), FLOAT32, True) and not within(
        0.0, Exact(-0.0, Fraction(0)), FLOAT32, True
    )


def test_a_value_that_the_format_has_not() -> None:
    exact = Exact(Fraction(1), Fraction(1, 2))
    assert within(1.0 + 2.0**-7, exact, BFLOAT16, False)
    assert not within(1.0 + 2.0**-9, exact, BFLOAT16, False)


C64 = {"alpha": ONE, "beta": ONE, "c": "float64"}
AB, CONV = {"a": (1, 2, 3), "bt": (1, 2, 3)}, {"x": (1, 1, 1, 1), "weight": (1, 1, 1, 1)}
SUM = {"dims": [0], "divisor": ONE, "square": False}
BAD: list[tuple[str, Any, Any, tuple[int, ...], str]] = [
    ("product", {**C64, "c": "float16"}, AB, (2, 2), "c"),
    ("product", {**C64, "alpha": "inf"}, AB, (2, 2), "alpha"),
    ("product", C64, {**AB, "bt": (1, 2, 4)}, (2, 2), "k"),
    ("product", C64, AB, (2, 3), "result"),
    ("product", C64, {"a": (1, 2, 3)}, (2, 2), "missing"),
    ("product", C64, {**AB, "bias": (3,)}, (2, 2), "bias"),
    ("convolution", {"geometry": [1] * 15, "c": "float64"}, CONV, (1,), "short"),
    ("convolution", {"geometry": [1] * 7 + [0] + [1] * 8, "c": "float64"}, CONV, (1,), "stride"),
    ("convolution", {"geometry": [-1] * 16, "c": "float64"}, CONV, (1,), "negative"),
    ("convolution", {"geometry": [1] * 9 + [0, 0, 1, 1, 2, 1, 1], "c": "float64"}, CONV, (2,), "too many outputs"),
    ("sum", {**SUM, "dims": [0, 0]}, {"x": (2, 2)}, (2,), "twice"),
    ("sum", {**SUM, "dims": [2]}, {"x": (2, 2)}, (2,), "dim"),
    ("sum", {**SUM, "divisor": "0x0p+0"}, {"x": (2, 2)}, (2,), "divisor"),
    ("sum", SUM, {"x": (1 << 30, 1 << 30)}, (1 << 30,), "terms"),
    ("function", {"name": "system"}, {"x": (2,)}, (2,), "name"),
    ("function", {"name": "exp"}, {"x": (3,)}, (2,), "shape"),
    ("function", {"name": "pow", "exponent": HALF, "c": "rounded"}, {"x": (2,)}, (2,), "rounded"),
    ("eval", {}, {}, (1,), "kind"),
]


@pytest.mark.parametrize("kind,params,shapes,shape,what", BAD, ids=[f"{b[0]}-{b[4]}" for b in BAD])
def test_definitions_that_do_not_fit(kind: str, params: Any, shapes: Any, shape: tuple[int, ...], what: str) -> None:
    with pytest.raises(ProofError):
        terms(kind, params, shapes, shape, 0)


def test_element_beyond_the_result() -> None:
    with pytest.raises(ProofError):
        terms("function", {"name": "exp"}, {"x": (2,)}, (2,), 2)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_formats_by_name(fmt: Format) -> None:
    assert format_by_name(fmt.name) == fmt


# ---- results that have one value ------------------------------------------------------------------------------------
def rough(*shape: int, seed: int = 1) -> torch.Tensor:
    """Numbers of many magnitudes, so that fixed point rounds some of them."""
    i = torch.arange(math.prod(shape)) + 1009 * seed
    x = ((i * 2654435761 % (1 << 32)) - (1 << 31)).float() / (1 << 30) * torch.exp2((i % 23 - 11).float())
    return x.view(shape)


def check_elements(run: Callable[[], Any], fmt: Format, policy: dict[str, Any]) -> int:
    """Every element of each canonical result with a definition is what the referee makes of it; how many there were."""
    found: list[tuple[str, torch.Tensor, Any]] = []

    class Listening(Plain):
        def canonical(self, site: Site, out: torch.Tensor) -> None:
            if site.definition is not None:
                made = site.definition()
                found.append((made.kind, out.clone(), (made.params, {n: t.clone() for n, t in made.operands.items()})))

    with Session(Listening(), Policy(**policy), 0).step(1):
        run()
    for kind, out, (params, operands) in found:
        for at, y in enumerate(out.double().flatten().tolist()):
            exact = value(kind, params, operands, list(out.shape), at)
            assert exact.bound == 0 and within(y, exact, fmt, True), (kind, at, y, exact)
            if math.isfinite(y):
                assert not within(from_ordered(ordered(y, fmt) + 1, fmt), exact, fmt, True)
    return len(found)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float32p18"])
def test_elements_of_integer_products(name: str) -> None:
    fmt = format_by_name(name)
    policy = {"bits": 18} if name == "float32p18" else {}
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    a, b, bias = (rough(*shape, seed=i).to(dtype) for i, shape in enumerate(((2, 3, 40), (2, 40, 4), (4,))))
    a[1, 2, 3], b[1, 3, 0], b[0, :, 1] = math.inf, 0.0, -0.0

    def run() -> None:
        torch.bmm(a, b)
        torch.baddbmm(bias, a, b, alpha=0.3, beta=-0.7)
        torch.addmm(bias, a[0], b[0])
        torch.addmm(bias, a[0], b[0], beta=0, alpha=2)

    assert check_elements(run, fmt, {"matmul": "integer", **policy}) == 4


@pytest.mark.parametrize("g", GEOMETRIES)
@pytest.mark.parametrize("odd", [False, True])
def test_elements_of_integer_convolutions(g: tuple[Any, ...], odd: bool) -> None:
    """An infinite weight meets padding: a term that is NaN."""
    h, w, kh, kw, stride, padding, dilation, groups = g
    x, weight, bias = rough(2, 4, h, w), rough(8, 4 // groups, kh, kw, seed=2), rough(8, seed=3)
    if odd:
        weight[1, 0, 0, 0], x[1, 1, 1, 1] = math.inf, -math.inf
    leaves = x.requires_grad_(), weight.requires_grad_()

    def run() -> None:
        y = torch.nn.functional.conv2d(*leaves, bias, stride, padding, dilation, groups)
        torch.autograd.grad(y, leaves, rough(*y.shape, seed=4))

    assert check_elements(run, FLOAT32, {"matmul": "integer"}) == 4  # with the exp2 of `rough`


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "bfloat16in32", "float32p18"])
def test_elements_of_functions(name: str) -> None:
    """Correctly rounded in every format; of integers there is no such promise."""
    fmt = format_by_name(name)
    policy = {"float32p18": {"bits": 18}, "bfloat16in32": {"target": "bfloat16"}}.get(name, {})
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
    special = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 0.999, 1.001, 30.0, -30.0, 2.0**-40, -(2.0**-130), math.inf, -math.inf]
    x = torch.cat([torch.tensor([*special, math.nan]), rough(25)]).to(dtype)
    number = torch.tensor([1, 2])

    def run() -> None:
        for function in sorted(CORRECT):
            getattr(torch, function)(x)
            getattr(torch, function)(number)

    assert check_elements(run, fmt, {"matmul": "chain", **policy}) == len(CORRECT)
