"""Every kernel's PTX, executed by the interpreter, leaves the bits in memory that the host's kernel leaves.

All kernels are called through their tensor forms, with a launcher in between that runs both targets on the same memory,
the device's with other grids, blocks backwards and warps out of turn (device_helpers.SCHEDULES).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from device_helpers import SCHEDULES, Schedule, Twin, different, ptx, require_nvrtc, single
from interpreter import Machine
from ptx_lanes import MemoryFault

from vtrain.kernels import canonical
from vtrain.kernels.launch import SIGNATURES
from vtrain.rounding import generic
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from vtrain.rounding.scale import Scale

require_nvrtc()

Tensor = torch.Tensor
F32, F64 = torch.float32, torch.float64
INF, NAN = math.inf, math.nan
COUNTS = (1, 7, 33, 65)
ROWS = (1, 31, 33, 70)
STRIPS = canonical.STRIP + 37  # more than a warp takes at once
SEGMENT = 16384  # terms that are summed by themselves (sum.hpp)
# Signed zeros, subnormals, ends of ranges, infinities, NaN; and where functions change their way.
SPECIAL = torch.tensor(
    [0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 1e-45, -1e-45, 1.1e-38, -1e-39, 3.4e38, -3.4e38, 88.8, -104.5, 0.5, 20.5, 1e-9]
)
WIDE = torch.tensor([5e-324, -1e-310, 1.7e308, -1.7e308, 1e22, 710.5, -745.5, 1e-20, math.pi / 2, 27.3], dtype=F64)

_machine = functools.cache(lambda arch: Machine(ptx(arch)))


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh tensors are full of NaN, so that what a kernel does not write is not right by chance."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def numbers(*shape: int, seed: int = 0, special: bool = False) -> Tensor:
    """Normal numbers of several magnitudes; special ones among them, if wanted."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * 10.0 ** torch.randint(-2, 2, shape, generator=generator)
    if special and x.numel():
        where = torch.randperm(x.numel(), generator=generator)[: min(x.numel() // 3 + 1, len(SPECIAL))]
        x.view(-1)[where] = SPECIAL[torch.randperm(len(SPECIAL), generator=generator)[: len(where)]]
    return x


# ---- products -------------------------------------------------------------------------------------------------------
def product(name: str) -> None:
    wide = name == "product_wide"
    for m, n, k, batch in ((1, 1, 1, 1), (5, 70, 3, 1), (67, 5, 33, 2), (3, 4, 0, 2), (2, 65, 16, 1), (9, 9, 49, 3)):
        a, b = numbers(batch, m, k, seed=1), numbers(batch, k, n, seed=2)
        canonical.product(a, b, wide=wide)
        canonical.product(a, b, numbers(n, seed=3), -0.75, 3.1, wide)
        canonical.product(a, b, numbers(batch, m, 1, seed=4), 1.0, 1e-3, wide)
    turned, left = numbers(2, 33, 7, seed=5).transpose(1, 2), numbers(2, 9, 34, seed=6)
    canonical.product(left[:, :, 1:], turned.transpose(1, 2), wide=wide)
    canonical.product(left.transpose(1, 2)[:, 1::3, ::2], numbers(1, 5, 11).expand(2, 5, 11), wide=wide)
    canonical.product(turned, numbers(2, 33, 3), numbers(2, 3, 7).transpose(1, 2), 0.1, 0.0, wide)
    canonical.product(numbers(1, 6, 20, special=True), numbers(1, 20, 33, seed=1, special=True), wide=wide)


# n, c, h, w, o, kernel (2), stride (2), padding (2), dilation (2), groups
CONVOLUTIONS = (
    (1, 1, 3, 3, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1),
    (2, 3, 5, 4, 5, 3, 2, 1, 2, 1, 0, 1, 1, 1),
    (1, 4, 7, 6, 6, 3, 3, 2, 1, 2, 1, 2, 1, 2),
    (3, 2, 4, 9, 4, 2, 3, 3, 2, 1, 2, 1, 2, 2),
    (1, 12, 9, 9, 70, 2, 2, 1, 1, 0, 1, 3, 2, 1),
)


def convolution(name: str) -> None:
    kind, wide = name.removesuffix("_wide"), name.endswith("_wide")
    for number, (n, c, h, w, o, kh, kw, sh, sw, ph, pw, dh, dw, groups) in enumerate(CONVOLUTIONS):
        oh, ow = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        key = (n, c, h, w, o, kh, kw, sh, sw, ph, pw, dh, dw, oh, ow, groups)
        shapes = {
            "input_gradient": (n, c, h, w),
            "weight_gradient": (o, c // groups, kh, kw),
            "convolution": (n, o, oh, ow),
        }
        special = number == 1
        operands = [
            torch.empty(shape) if what == kind else numbers(*shape, seed=seed, special=special)
            for seed, (what, shape) in enumerate(shapes.items())
        ]
        canonical.convolution(kind, *operands, None, key, wide)
        if kind == "convolution":
            canonical.convolution(kind, *operands, numbers(o, seed=9), key, wide)


# ---- elementwise ----------------------------------------------------------------------------------------------------
def inputs() -> list[Tensor]:
    wide = torch.cat([SPECIAL.double(), WIDE, numbers(30, seed=1).double(), numbers(30, seed=2).double().exp2()])
    return [*(numbers(n, seed=n) for n in COUNTS), SPECIAL, wide, wide.float()]


def function(name: str) -> None:
    for x in inputs():
        for to in (F32, F64):
            canonical.function(name, x, to)
    canonical.function(name, numbers(STRIPS, seed=3))
    canonical.function(name, numbers(7, 10, seed=4).t()[::2])


def pow_(name: str) -> None:
    for exponent in (2.5, -0.5, 3.0, -3.0, 0.0, 1 / 3, 1e300, INF, -INF, NAN, 2.0**53):
        for x in inputs():
            canonical.function(name, x, F32, exponent)
        canonical.function(name, inputs()[-2], F64, exponent)


def power(name: str) -> None:
    x = torch.cat([SPECIAL.double(), WIDE, numbers(20, seed=1).double()])
    y = torch.cat([SPECIAL.double(), WIDE, numbers(20, seed=2).double(), torch.tensor([2.0, 3.0, -7.0], dtype=F64)])
    for to in (F32, F64):
        canonical.power(x.repeat_interleave(len(y)), y.repeat(len(x)), to)
    for n in COUNTS:
        canonical.power(numbers(n).double().abs(), numbers(n, seed=1).double())


def activation(name: str) -> None:
    forward = name.removesuffix("_backward")
    parameters = ((1.0, 20.0), (0.3, 2.0)) if forward == "softplus" else ((0.0, 0.0),)
    for x in [*inputs()[:5], inputs()[-1], numbers(STRIPS, seed=5)]:
        for p, q in parameters:
            grads = (numbers(len(x), seed=7), numbers(len(x), seed=8, special=True))
            for grad in grads if name != forward else (None,):
                canonical.activation(forward, x, grad, p, q)


# ---- sums -----------------------------------------------------------------------------------------------------------
def operands(kind: str, x: Tensor, dims: list[int], special: bool) -> tuple[Tensor, ...]:
    """What the terms of a kind need beside x, laid out as x is."""
    b = torch.empty_strided(x.shape, x.stride()).copy_(numbers(*x.shape, seed=11, special=special))
    terms = math.prod(x.shape[d] for d in dims)
    results = x.numel() // terms
    return {
        "product": (b,),
        "centred_square": (numbers(results, seed=12),),
        "centred_product": (b, numbers(results, seed=12)),
        "normalised": (b, numbers(terms, seed=13), numbers(terms, seed=14)),
    }.get(kind, ())


def layouts() -> Iterator[tuple[Tensor, list[int]]]:
    """Sums along memory and across it, over one stretch and over several: of 1, of parts of 32, of more, of others."""
    for n in ROWS:
        yield numbers(3, n, seed=n), [1]
        yield numbers(n, 9, seed=n), [0]
        yield numbers(n, 3, seed=n), [0]
        yield numbers(n, 33, seed=n), [0]
    for area in (1, 4, 9, 16, 32, 33, 70):
        for dims in ([0, 2], [1], [0, 1, 2]):
            yield numbers(5, 9, area, seed=area), dims
        yield numbers(5, 2, area, seed=area).transpose(1, 2), [0, 1]
    yield numbers(6, 10, 7).transpose(0, 1)[::2], [1, 2]
    yield numbers(4, 3, 5, 6), [1, 3]  # has no form without a copy


def sums(name: str) -> None:
    for kind in canonical._TERMS:
        if kind != "wide":
            for number, (x, dims) in enumerate(layouts()):
                canonical.sum_terms(kind, dims, x, *operands(kind, x, dims, number % 5 == 0))
        x = numbers(4, 40, special=True) * 1e-3
        if kind != "wide":
            canonical.sum_terms(kind, [1], x, *operands(kind, x, [1], True))
    for x, dims in layouts():
        canonical.sum_terms("value", dims, x.double() * (1 / 3))
    canonical.sum_terms("value", [1], numbers(2, SEGMENT + 40))
    canonical.sum_terms("square", [0], numbers(SEGMENT + 3, 8))


def running_sum(name: str) -> None:
    for shape in ((1,), (7,), (3, 35, 2), (33, 70), (2, 5, 65)):
        for dim in range(len(shape)):
            canonical.running_sum(numbers(*shape, seed=dim), dim)
    canonical.running_sum(numbers(40, special=True), 0)
    canonical.running_sum(torch.tensor(-0.0), 0)


def scatter(name: str) -> None:
    for terms, width, rows in ((1, 1, 1), (20, 33, 6), (7, 70, 3), (65, 5, 40)):
        index = torch.arange(terms) * 7 % max(1, rows - 1)
        for special in (False, True):
            values = numbers(terms, width, special=special)
            canonical.scatter(values, index, rows)
            canonical.scatter(values, index, rows, numbers(rows, width, seed=1, special=special), 0.3)


# ---- composites -----------------------------------------------------------------------------------------------------
def softmax(name: str) -> None:
    forward = name.removesuffix("_backward")
    for n in ROWS:
        for special in (False, True):
            x, grad = numbers(5, n, seed=n, special=special), numbers(5, n, seed=1, special=special)
            canonical.softmax(forward, 1, x=x)
            canonical.softmax(forward, 1, y=x, grad=grad)
    canonical.softmax(forward, 0, x=numbers(33, 3), y=None)
    canonical.softmax(forward, 1, y=numbers(2, 7, 3), grad=numbers(2, 7, 3, seed=1))
    canonical.softmax(forward, 0, x=torch.full((40,), -INF))


def norm(name: str) -> None:
    for n in ROWS:
        for special in (False, True):
            x, grad = numbers(5, n, seed=n, special=special), numbers(5, n, seed=1, special=special)
            weight, bias, rstd = numbers(n, seed=2), numbers(n, seed=3), numbers(5, seed=4)
            canonical.layer_norm(x, n, weight, bias, 1e-5)
            canonical.layer_norm(x, n, None, None, 0.0)
            canonical.layer_norm_backward(x, n, grad, numbers(5, seed=5), rstd, weight)
            canonical.layer_norm_backward(x, n, grad, numbers(5, seed=5), rstd, None)
            for weights in (weight, None):
                canonical.rms_norm(x, n, weights, 1e-6)
                canonical.rms_norm_backward(x, n, grad, rstd, weights)


def channels(name: str) -> None:
    for shape in ((1, 1), (2, 33), (2, 5, 3), (3, 2, 65), (1, 70, 1, 1), (2, 3, 9, 8)):
        for special in (False, True):
            x, grad = numbers(*shape, special=special), numbers(*shape, seed=1)
            mean, gain, bias, slope = (numbers(shape[1], seed=seed, special=special) for seed in range(4))
            canonical.channel_norm(x, mean, gain, bias)
            canonical.channel_norm(x, mean, gain, None)
            canonical.channel_norm_backward(x, grad, mean, bias, slope, gain)


def step(name: str) -> None:
    flags = [(a, b, c, d) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
    for n in (*COUNTS, STRIPS):
        for number, flag in enumerate(flags if n == 33 else flags[::5]):
            param, grad, first, second, most = (numbers(n, seed=seed, special=n > 7) for seed in range(5))
            state = (first if name == "adam" or number % 4 else None, second.abs(), most.abs() if number % 2 else None)
            beta1 = 0.9 if number % 3 else 0.4
            decay, dampening = (0.01, 0.1) if number % 5 else (0.0, 0.0)
            canonical.optimizer_step(name, param, grad, state, *flag, 0.1, decay, beta1, 0.99, 1e-8, 0.3, 0.7, 0.9, dampening)


# ---- settling -------------------------------------------------------------------------------------------------------
FORMATS = (FLOAT32, BFLOAT16, FLOAT16, Format("float32p17", "float32", 17, -126, 127))


def settled(fmt: Format) -> Tensor:
    """Numbers at and around a format's ties, its ends and elsewhere."""
    ulp = 2.0 ** (1 - fmt.p)
    ties = torch.tensor([1 + ulp / 2, 1 + 1.5 * ulp, 2 - ulp / 2, 2.0 ** (fmt.emin - fmt.p), 2.0**fmt.emin], dtype=F64)
    most = torch.tensor([(2 - ulp / 2) * 2.0**fmt.emax, (2 - ulp) * 2.0**fmt.emax], dtype=F64)
    exact = torch.cat([ties, -ties, most, -most])
    return torch.cat([exact, exact * (1 + 2.0**-52), exact * (1 - 2.0**-53), SPECIAL.double(), WIDE, numbers(40).double()])


def rounded(name: str) -> None:
    for fmt in FORMATS:
        for y in (settled(fmt), settled(fmt).float(), *(numbers(n) for n in COUNTS), numbers(STRIPS, special=True)):
            for signed in (False, True):
                canonical.round_to(y, fmt, signed)


def scales() -> Iterator[Scale]:
    """All forms of a scale, of 2 * 5 * 7 elements."""
    shape = (2, 5, 7)
    row, col, bias = numbers(10, seed=1).double().abs(), numbers(14, seed=2).double().abs(), numbers(7).double().abs()
    yield Scale("test", 1, 1.0, shape, relative=True)
    yield Scale("test", 1, 1.0, shape, full=numbers(70, seed=3, special=True).double().abs())
    yield Scale("test", 1, 1.0, shape)
    yield Scale("test", 1, 1.0, shape, row=row, col=col, bias=bias)
    yield Scale("test", 1, 1.0, shape, row=row)
    yield Scale("test", 1, 1.0, shape, col=col, bias=bias)


def doubt(name: str) -> None:
    """Also against tensor operations, which know nothing of the kernels."""
    found = 0
    for fmt in FORMATS:
        y = settled(fmt)
        cases = [(y, Scale("test", 1, 1.0, (1, 1, y.numel()), relative=True))]
        cases += [(numbers(70, seed=4, special=True) * 3, scale) for scale in scales()]
        cases += [(numbers(n, seed=n), Scale("test", 1, 1.0, (1, n, 1))) for n in (*COUNTS, STRIPS)]
        for values, scale in cases:
            for signed in (False, True):
                tau, eta = 2.0**-fmt.p * 0.7, 2.0**-140
                mine = canonical.in_doubt(values, scale, tau, eta, fmt, signed)
                theirs = generic.in_doubt(values, scale, tau, eta, fmt, signed)
                known = ~values.view(-1)[theirs[0]].isnan()
                for a, b in zip(mine, theirs, strict=True):
                    assert different(a.numpy().tobytes(), b[known].numpy().tobytes(), a.dtype) == []
                found += len(mine[0])
    assert found > 500


# ---- all kernels ----------------------------------------------------------------------------------------------------
CASES: dict[str, Callable[[str], None]] = {
    **dict.fromkeys(("product", "product_wide"), product),
    **{f"{kind}{wide}": convolution for kind in ("convolution", "input_gradient", "weight_gradient") for wide in ("", "_wide")},
    **dict.fromkeys(sorted(canonical.FUNCTIONS), function),
    "pow": pow_,
    "power": power,
    **{f"{kind}{way}": activation for kind in ("gelu_erf", "gelu_tanh", "silu", "softplus") for way in ("", "_backward")},
    "sum": sums,
    **{f"{kind}{way}": softmax for kind in ("softmax", "log_softmax") for way in ("", "_backward")},
    **{f"{kind}{way}": norm for kind in ("layer_norm", "rms_norm") for way in ("", "_backward")},
    **dict.fromkeys(("channel_norm", "channel_norm_backward"), channels),
    "scatter": scatter,
    "running_sum": running_sum,
    **dict.fromkeys(("sgd", "adam"), step),
    "round": rounded,
    **dict.fromkeys(("doubt_count", "doubt_write"), doubt),
}  # fmt: skip
