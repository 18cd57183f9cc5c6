"""The worst error over bound of every logged operation, found by search (numerics §3).

``python -m benchmarks.worst_errors`` prints the table. Each operation is run once through the engine, which gives the
scale, the constant and C that it settles with. What other hardware may compute is emulated from the exact terms:
ascending, descending, permuted, pairwise, in eight lanes, and with fused multiply-adds. The judge is exact arithmetic
(``auditor.dispute.exact``: integers and 200 bits). A ratio is

    |y - exact| / (kappa u s + kappa times half the least number of C, twice over)

and must not pass 1. Inputs start from structures that are known to be bad, and climb from the worst of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import mpmath
import numpy as np
import torch
import torch.nn.functional as F

from auditor.dispute.exact import evaluate
from auditor.dispute.terms import Terms, terms
from vtrain.engine.listener import Plain, ScaleFn, Site, Vary
from vtrain.engine.session import Session
from vtrain.policy import Policy
from vtrain.rounding import naive
from vtrain.rounding.bounds import FUNCTION_KAPPA, INFLATE, UNDERFLOW, U
from vtrain.rounding.formats import FLOAT32
from vtrain.rounding.scale import Scale

aten = torch.ops.aten
C = {"float32": np.float32, "float64": np.float64}
FLOATS = np.ndarray
_LEAST = Fraction(1, 2**1000)
KINDS = "ordinary magnitudes cancelling subnormal growing top".split()


@dataclass
class Settled(Plain):
    """A listener that keeps what the first settled result is settled with."""

    site: Site | None = None
    y: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    scale: Scale | None = None

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        if self.site is None:
            self.site, self.y, self.scale = site, y.clone(), scale()
        return super().settle(site, y, scale, vary)


@dataclass(frozen=True)
class Operation:
    """One operation to search.

    Attributes:
        name: for the table.
        shapes: of its operands.
        call: runs it.
        bits: target of the run: 24, or 8 for float32 as C.
        weights: where it has no definition: the weight of each element of the last operand in result ``element``, after
            the other operands; exact in float64.
        product: whether the result is the product of its terms.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    call: Callable[..., object]
    bits: int = 24
    weights: Callable[[int], FLOATS] | None = None
    product: bool = False


# ---- inputs ---------------------------------------------------------------------------------------------------------
def operand(kind: str, shape: tuple[int, ...], c: str, turn: int, rng: np.random.Generator) -> FLOATS:
    """One operand; ``turn`` is its number, so that two can be made to fit each other."""
    n = math.prod(shape)
    x = rng.standard_normal(n)
    if kind == "magnitudes":
        x *= 2.0 ** rng.integers(-30, 30, n)
    elif kind == "cancelling":
        x[n // 2 : n // 2 * 2] = x[: n // 2] * (-1 if turn == 0 else 1 + 2.0**-20)
    elif kind == "subnormal":  # products of about half the least number of float32
        x = 2.0**-75 * rng.choice([1.0, 1.0, 1.4, 2.0, -1.0], n)
    elif kind == "growing":  # one term of 1, and others of half its last bit, each of which is lost
        half = 2.0**-24 if c == "float32" else 2.0**-53
        low = 2.0 ** (int(math.log2(half)) // 2)
        x = np.full(n, (low, half / low, half)[turn])
        x[0] = 1.0
    elif kind == "top":
        x = rng.choice([1.0, -1.0, 0.75], n) * (2.0**62 if turn < 2 else 2.0**100)
    return x.astype(np.float32).reshape(shape)


def mutated(operands: Sequence[FLOATS], rng: np.random.Generator) -> list[FLOATS]:
    """Operands with one element changed: by an ulp or a few bits, a power of two, its sign, or another's value."""
    made = [x.copy() for x in operands]
    x = made[rng.integers(len(made))].reshape(-1)
    i, how = rng.integers(x.size), rng.integers(5)
    with np.errstate(over="ignore"):
        if how == 0:
            x[i] = np.nextafter(x[i], np.float32(rng.choice([-np.inf, np.inf])))
        elif how == 1:
            x[i] *= np.float32(1 + rng.choice([-1, 1]) * 2.0 ** -rng.integers(2, 23))
        elif how == 2:
            x[i] *= np.float32(2.0 ** rng.integers(-3, 4))
        elif how == 3:
            x[i] = -x[i]
        else:
            x[i] = x[rng.integers(x.size)]
    return made


# ---- executions -----------------------------------------------------------------------------------------------------
def sums(p: FLOATS, rng: np.random.Generator) -> Iterator[float]:
    """Sums of terms in several orders, in p's dtype."""
    if not p.size:
        yield 0.0
        return
    for order in (p, p[::-1], np.sort(p), p[np.argsort(-np.abs(p))], p[np.argsort(np.abs(p))], rng.permutation(p)):
        yield float(np.add.accumulate(order, dtype=p.dtype)[-1])
    pairs = p
    while pairs.size > 1:
        even = pairs[: pairs.size // 2 * 2]
        pairs = np.concatenate([even[0::2] + even[1::2], pairs[even.size :]])
    yield float(pairs[0])
    lanes = [np.add.accumulate(p[q::8], dtype=p.dtype)[-1] for q in range(min(8, p.size))]
    yield float(np.add.accumulate(np.array(lanes, p.dtype))[-1])


def fused(left: FLOATS, right: FLOATS, c: str) -> float:
    """One chain of fused multiply-adds, each rounded once."""
    total = 0.0
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        exact = Fraction(a) * Fraction(b) + Fraction(total)
        total = naive.round_fraction(exact, FLOAT32) if c == "float32" else float(exact)
    return total


def executions(
    found: Terms, left: FLOATS, right: FLOATS | None, bias: float, rng: np.random.Generator
) -> Iterator[float]:
    """What faithful hardware may make of a sum of products: every operation in C, in one order or another."""
    one = C[found.c]
    with np.errstate(all="ignore"):
        wide = left.astype(one)
        p = wide if right is None else wide * right.astype(one)
        raw = [*sums(p, rng)]
        if right is not None:
            raw += [fused(left, right, found.c), fused(left[::-1], right[::-1], found.c)]
        for y in raw:
            y = one(y) * one(float(found.alpha)) if found.alpha != 1 else one(y)
            if found.beta:
                y = y + (one(bias) * one(float(found.beta)))
            yield float(y / one(float(found.divisor)) if found.divisor != 1 else y)


def products(x: FLOATS, rng: np.random.Generator) -> Iterator[Fraction]:
    """Products of float64 factors in several orders: of their mantissas, times an exact power of two."""
    mantissas, exponents = np.frexp(x)
    power = Fraction(2) ** int(exponents.sum())
    for order in (mantissas, mantissas[::-1], rng.permutation(mantissas), np.sort(mantissas)):
        yield Fraction(float(np.multiply.accumulate(order)[-1])) * power


# ---- the judge ------------------------------------------------------------------------------------------------------
def bound_of(scale: Scale, y: torch.Tensor, element: int) -> Fraction:
    """What an element may be off by: half of the half-width of doubt, exactly.

    A scale of 0 says that all machines have this value: a sum that is exact in every order, or its one IEEE quotient by
    the divisor, which is a rounding off.
    """
    c = scale.compute
    s, unit = float(scale.dense(y).reshape(-1)[element]), Fraction(U[c])
    if s == 0:
        return unit * abs(Fraction(float(y.reshape(-1)[element])))
    return Fraction(scale.kappa) * (unit * Fraction(s) * Fraction(INFLATE) + Fraction(UNDERFLOW[c]))


def ratio(y: float | Fraction, exact: Fraction, bound: Fraction) -> float:
    """Error over bound; infinite where nothing may be off and something is.

    Below 2^-1000, where float64 itself loses digits, every target has long been at the zero of that sign.
    """
    if isinstance(y, float) and not math.isfinite(y):
        return math.inf
    if abs(exact) < _LEAST and abs(y) < _LEAST:
        return 0.0
    error = abs(Fraction(y) - exact)
    return 0.0 if error == 0 else math.inf if bound == 0 else float(error / bound)


def worst_of(op: Operation, operands: Sequence[FLOATS], rng: np.random.Generator, most: int = 6) -> float:
    """The largest ratio over executions and elements (the first, and ``most`` at random)."""
    listener = Settled()
    policy = Policy(bits=op.bits, other="logged", threshold="certified")
    with Session(listener, policy, 0).step(1):
        op.call(*(torch.from_numpy(x) for x in operands))
    site, scale = listener.site, listener.scale
    assert site is not None and scale is not None
    flat = listener.y.double().reshape(-1).tolist()
    found = 0.0
    for element in {0, *rng.permutation(len(flat))[:most].tolist()}:
        if not math.isfinite(flat[element]):
            continue
        exact, others = _element(op, site, operands, element, rng)
        bound = bound_of(scale, listener.y, element)
        found = max(found, *(ratio(y, exact, bound) for y in [flat[element], *others]))
    return found


def _element(
    op: Operation, site: Site, operands: Sequence[FLOATS], element: int, rng: np.random.Generator
) -> tuple[Fraction, Sequence[float | Fraction]]:
    """The exact value of an element, and what other hardware may compute."""
    if op.weights is not None:
        x = np.concatenate([v.reshape(-1).astype(np.float64) for v in operands])
        w = op.weights(element)
        x, w = x[w != 0], w[w != 0]
        if op.product:
            return math.prod((Fraction(v) for v in x.tolist()), start=Fraction(1)), [*products(x, rng)]
        exact = sum((Fraction(a) * Fraction(b) for a, b in zip(x.tolist(), w.tolist(), strict=True)), Fraction(0))
        return exact, [*sums(x * w, rng)]
    assert site.definition is not None
    what = site.definition()
    tensors = {name: t.double().reshape(-1).numpy() for name, t in what.operands.items()}
    shapes = {name: tuple(t.shape) for name, t in what.operands.items()}
    depends = terms(what.kind, what.params, shapes, site.shape, element)
    exact = evaluate(what.kind, what.params, depends, lambda name, at: tensors[name][at])
    left = tensors[depends.left[0]][depends.left[1]]
    right = None if depends.right is None else tensors[depends.right[0]][depends.right[1]]
    bias = float(tensors[depends.bias[0]][depends.bias[1]][0]) if depends.bias is not None else 0.0
    return Fraction(exact.value), [*executions(depends, left, right, bias, rng)]


# ---- the operations -------------------------------------------------------------------------------------------------
N = 48
BIG, ODD = 2.0**120, 1 / 3


def _weights(shapes: Sequence[tuple[int, ...]], call: Callable[..., object]) -> Callable[[int], FLOATS]:
    """Weights of a linear operation, by its results for unit vectors in float64; None of them is rounded."""
    sizes = [math.prod(s) for s in shapes]

    def find(element: int) -> FLOATS:
        rows = []
        for i in range(sum(sizes)):
            flat = torch.zeros(sum(sizes), dtype=torch.float64)
            flat[i] = 1.0
            parts = [t.view(s) for t, s in zip(flat.split(sizes), shapes, strict=True)]
            rows.append(float(call(*parts).reshape(-1)[element]))  # type: ignore[attr-defined]
        return np.array(rows)

    return find


def _linear(name: str, shapes: tuple[tuple[int, ...], ...], call: Callable[..., object]) -> Operation:
    return Operation(name, shapes, call, weights=_weights(shapes, call))


def _product_forms(bits: int, c: str) -> list[Operation]:
    row, col, bias = (1, N), (N, 1), (1,)
    return [
        Operation(f"mm, {c}", (row, col), lambda a, b: a @ b, bits),
        Operation(f"bmm, {c}", ((2, 1, N), (2, N, 2)), torch.bmm, bits),
        Operation(f"mv, {c}", ((2, N), (N,)), torch.mv, bits),
        Operation(f"dot, {c}", ((N,), (N,)), torch.dot, bits),
        Operation(f"addmm, {c}", (row, col, bias), lambda a, b, d: torch.addmm(d, a, b), bits),
        Operation(f"addmm, alpha 1/3, beta 1/3, {c}", (row, col, bias),
                  lambda a, b, d: torch.addmm(d, a, b, alpha=ODD, beta=ODD), bits),
        Operation(f"addmm, alpha 2^120, {c}", (row, col, bias),
                  lambda a, b, d: torch.addmm(d, a, b, alpha=BIG, beta=1), bits),
        Operation(f"addmm, alpha 2^-130, beta 2^-130, {c}", (row, col, bias),
                  lambda a, b, d: torch.addmm(d, a, b, alpha=2.0**-130 * ODD, beta=2.0**-130 * ODD), bits),
        Operation(f"baddbmm, alpha 1/3, {c}", ((2, 1, 1), (2, 1, N), (2, N, 1)),
                  lambda d, a, b: torch.baddbmm(d, a, b, alpha=ODD), bits),
        Operation(f"convolution, {c}", ((1, 3, 4, 4), (2, 3, 3, 3), (2,)), F.conv2d, bits),
        Operation(f"input gradient, {c}", ((1, 3, 4, 4), (3, 2, 3, 3)),
                  F.conv_transpose2d, bits),
        Operation(f"weight gradient, {c}", ((2, 2, 6, 6), (2, 2, 4, 4)), _weight_gradient, bits),
    ]  # fmt: skip


def _weight_gradient(x: torch.Tensor, grad: torch.Tensor) -> object:
    weight = torch.zeros(2, 2, 3, 3)
    mask = [False, True, False]
    return aten.convolution_backward(grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask)


_INDEX = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0] * (N // 8))


def operations() -> list[Operation]:
    """All sums and products that are logged."""
    return [
        *_product_forms(8, "float32"),
        *_product_forms(24, "float64"),
        Operation("sum", ((2, N),), lambda x: x.sum(1)),
        Operation("mean", ((2, N),), lambda x: x.mean(1)),
        Operation("squares (norm)", ((2, N),), lambda x: torch.linalg.vector_norm(x, dim=1)),
        _linear("cumsum", ((N,),), lambda x: x.cumsum(0)),
        Operation("prod", ((N,),), lambda x: x.prod(), weights=lambda element: np.ones(N), product=True),
        Operation("cumprod", ((N,),), lambda x: x.cumprod(0), weights=_up_to, product=True),
        _linear("index_add", ((2,), (N,)), lambda x, v: x.index_add(0, _INDEX, v)),
        _linear("index_add, alpha 3", ((2,), (N,)), lambda x, v: x.index_add(0, _INDEX, v, alpha=3)),
        _linear("scatter_add", ((2,), (N,)), lambda x, v: x.scatter_add(0, _INDEX, v)),
        _linear("index_put", ((2,), (N,)), lambda x, v: x.index_put((_INDEX,), v, accumulate=True)),
        _linear("index_put, broadcast", ((2,), (2,)), lambda x, v: x.index_put((_INDEX,), v[1:], accumulate=True)),
        _linear("embedding gradient", ((N, 1),), lambda g: aten.embedding_dense_backward(g, _INDEX, 2, -1, False)),
    ]  # fmt: skip


def _up_to(element: int) -> FLOATS:
    return np.where(np.arange(N) <= element, 1.0, 0.0)


def search(op: Operation, climbs: int, seed: int = 0) -> tuple[float, str]:
    """The worst ratio found, and the kind of inputs that it came from."""
    rng = np.random.default_rng(seed)
    c = "float32" if op.bits <= 11 else "float64"
    best, kind_of_best, at = 0.0, "none differ", []
    for kind in KINDS:
        for turn in range(3):
            operands = [operand(kind, s, c, (i + turn) % 3, rng) for i, s in enumerate(op.shapes)]
            found = worst_of(op, operands, rng)
            if found > best:
                best, kind_of_best, at = found, kind, operands
    for _ in range(climbs if at else 0):
        tried = mutated(at, rng)
        found = worst_of(op, tried, rng)
        if found >= best:
            best, at = found, tried
    return best, kind_of_best


# ---- functions ------------------------------------------------------------------------------------------------------
mp = mpmath.mp.clone()
mp.prec = 200
Reference = Callable[..., mpmath.mpf]
Spans = tuple[tuple[float, float], ...]
_ANY = (-3e38, 3e38)
# Arguments' ranges; those that reach far are searched evenly in the exponent too.
FUNCTIONS: dict[str, tuple[Callable[..., torch.Tensor], Reference, Spans, float]] = {
    "exp": (torch.exp, mp.exp, ((-700, 700),), FUNCTION_KAPPA),
    "exp2": (torch.exp2, lambda x: mp.mpf(2) ** x, ((-1000, 1000),), FUNCTION_KAPPA),
    "expm1": (torch.expm1, mp.expm1, ((-700, 700),), FUNCTION_KAPPA),
    "log": (torch.log, mp.log, ((0, 3e38),), FUNCTION_KAPPA),
    "log2": (torch.log2, lambda x: mp.log(x) / mp.log(2), ((0, 3e38),), FUNCTION_KAPPA),
    "log10": (torch.log10, mp.log10, ((0, 3e38),), FUNCTION_KAPPA),
    "log1p": (torch.log1p, mp.log1p, ((-1, 3e38),), FUNCTION_KAPPA),
    "sqrt": (torch.sqrt, mp.sqrt, ((0, 3e38),), FUNCTION_KAPPA),
    "rsqrt": (torch.rsqrt, lambda x: 1 / mp.sqrt(x), ((0, 3e38),), FUNCTION_KAPPA),
    "sin": (torch.sin, mp.sin, (_ANY,), FUNCTION_KAPPA),
    "cos": (torch.cos, mp.cos, (_ANY,), FUNCTION_KAPPA),
    "tan": (torch.tan, mp.tan, (_ANY,), FUNCTION_KAPPA),
    "asin": (torch.asin, mp.asin, ((-1, 1),), FUNCTION_KAPPA),
    "acos": (torch.acos, mp.acos, ((-1, 1),), FUNCTION_KAPPA),
    "atan": (torch.atan, mp.atan, (_ANY,), FUNCTION_KAPPA),
    "sinh": (torch.sinh, mp.sinh, ((-700, 700),), FUNCTION_KAPPA),
    "cosh": (torch.cosh, mp.cosh, ((-700, 700),), FUNCTION_KAPPA),
    "tanh": (torch.tanh, mp.tanh, (_ANY,), FUNCTION_KAPPA),
    "asinh": (torch.asinh, mp.asinh, (_ANY,), FUNCTION_KAPPA),
    "acosh": (torch.acosh, mp.acosh, ((1, 3e38),), FUNCTION_KAPPA),
    "atanh": (torch.atanh, mp.atanh, ((-1, 1),), FUNCTION_KAPPA),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), ((-690, 700),), FUNCTION_KAPPA),
    "erf": (torch.erf, mp.erf, ((-6, 6),), FUNCTION_KAPPA),
    "erfc": (torch.erfc, mp.erfc, ((-6, 26),), FUNCTION_KAPPA),
    "pow": (torch.pow, mp.power, ((0, 3e38), (-300, 300)), FUNCTION_KAPPA),
    "atan2": (torch.atan2, mp.atan2, (_ANY, _ANY), FUNCTION_KAPPA),
    "hypot": (torch.hypot, lambda x, y: mp.sqrt(x * x + y * y), (_ANY, _ANY), FUNCTION_KAPPA),
    "exponential draw": (lambda u, r: -torch.log(u) / r, lambda u, r: -mp.log(u) / r, ((0, 1), (0, 1e30)),
                         FUNCTION_KAPPA + 2),
}  # fmt: skip


def arguments(spans: Spans, n: int, rng: np.random.Generator) -> list[FLOATS]:
    """float32 values in open spans: evenly, by magnitude, near the ends and near multiples of pi / 4, 1 / 8, log 2."""
    made = []
    for low, high in spans:
        size = 10.0 ** rng.uniform(-38, math.log10(max(abs(low), abs(high))), n) * rng.choice([-1, 1], n)
        near = rng.choice([1, math.pi / 4, 0.125, math.log(2)], n) * rng.integers(-64, 64, n)
        even, edge = (
            rng.uniform(max(low, -100), min(high, 100), n),
            rng.choice([low, high], n) * (1 - 2.0 ** -rng.integers(1, 24, n)),
        )
        x = (
            np.stack([size, near, even, edge])[rng.integers(0, 4, n), np.arange(n)]
            .astype(np.float32)
            .astype(np.float64)
        )
        made.append(np.where((x > low) & (x < high), x, np.clip(even, low + 0.25, high - 0.25).astype(np.float32)))
    return made


def function_errors(name: str, operands: Sequence[FLOATS]) -> FLOATS:
    """Errors in float64 over kappa u |y|, at vectors of arguments."""
    call, reference, _, kappa = FUNCTIONS[name]
    y = call(*(torch.from_numpy(x) for x in operands)).tolist()
    found = []
    for v, *at in zip(y, *(x.tolist() for x in operands), strict=True):
        if not math.isfinite(v) or abs(v) < 2.0**-1000:
            found.append(0.0)
            continue
        exact = reference(*(mp.mpf(a) for a in at))
        found.append(float(abs(mp.mpf(v) - exact) / abs(mp.mpf(v)) * 2**53) / kappa)
    return np.array(found)


def search_function(name: str, n: int, climbs: int, seed: int = 0) -> float:
    """The worst error over bound of a function: of n arguments, then of neighbours of the worst."""
    rng = np.random.default_rng(seed)
    spans = FUNCTIONS[name][2]
    at = arguments(spans, n, rng)
    errors = function_errors(name, at)
    for _ in range(climbs):
        top = np.argsort(errors)[-8:]
        at, errors = [x[top] for x in at], errors[top]
        near = [np.tile(x, 4) for x in at]
        for x in near:
            steps = rng.integers(-3, 4, x.size) * 2.0 ** -rng.integers(1, 24, x.size)
            x[:] = np.clip(x * (1 + steps), -3.4e38, 3.4e38).astype(np.float32)
        inside = np.all([(x > low) & (x < high) for x, (low, high) in zip(near, spans, strict=True)], axis=0)
        near = [x[inside] for x in near]
        at = [np.concatenate(pair) for pair in zip(at, near, strict=True)]
        errors = np.concatenate([errors, function_errors(name, near)])
    return float(errors.max())


def table(climbs: int, points: int, functions: bool = False) -> Iterator[tuple[str, float, str]]:
    """(operation, worst ratio, kind of inputs)."""
    for op in [] if functions else operations():
        yield op.name, *search(op, climbs)
    for name in FUNCTIONS:
        yield name, search_function(name, points, climbs // 10), "arguments"


def main() -> None:
    """Print the table as it is in docs/numerics.md; functions are those of this process's libraries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--climbs", type=int, default=300, help="steps of hill climbing of each operation")
    parser.add_argument("--points", type=int, default=3000, help="arguments that each function starts from")
    parser.add_argument("--functions", action="store_true", help="functions alone")
    given = parser.parse_args()
    print("| operation | worst error over bound | inputs |\n| --- | --- | --- |")
    for name, found, kind in table(given.climbs, given.points, given.functions):
        print(f"| {name} | {found:.3f} | {kind} |", flush=True)


if __name__ == "__main__":
    main()
