"""What a disputed element depends on: which elements of which operands, by its definition. Imports no torch.

The inverse of what the engine does with whole tensors: one flat index of a result in, flat indices of operands out
(``vtrain.engine.definition`` has the definitions). All of it is hostile input until it fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vtrain.errors import ProofError, UnsupportedOperation
from vtrain.rounding.bounds import (
    FUNCTION_KAPPA,
    TENSOR_CORE,
    U,
    fit_float32,
    forward_kappa,
    gradient_kappa,
    product_kappa,
    settled_sum_kappa,
)
from vtrain.rounding.functions import CORRECT, ROUNDED

Index = np.ndarray
MAX_TERMS = 1 << 24
INTEGERS = {f"integer{digits}": digits for digits in (2, 3)}  # of exact integers of so many signed bytes (numerics §10)
FUNCTIONS = CORRECT | {"pow"}


@dataclass(frozen=True)
class Terms:
    """One element as alpha * (sum of left * right) / divisor + beta * bias.

    Attributes:
        left, right: operand and flat indices of each factor; right is None where the terms are single numbers.
        bias: operand and flat index; None without.
        alpha, beta, divisor: exact.
        kappa, c: certified constant, and dtype name of the type that it was computed in, or one of ``INTEGERS``.
        row: what the norm of the right factor is of in the error scale, where that is more than ``right``: a
            convolution's scale takes whole rows, also where a part of them meets padding.
    """

    left: tuple[str, Index]
    right: tuple[str, Index] | None
    kappa: float
    c: str
    bias: tuple[str, Index] | None = None
    alpha: Fraction = Fraction(1)
    beta: Fraction = Fraction(0)
    divisor: Fraction = Fraction(1)
    row: tuple[str, Index] | None = None

    @property
    def reads(self) -> list[tuple[str, Index]]:
        """All operands and indices that it depends on."""
        return [part for part in (self.left, self.right, self.bias, self.row) if part is not None]


def terms(
    kind: str, params: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...], element: int
) -> Terms:
    """What a flat element of a result depends on.

    Args:
        kind, params: of the definition (``vtrain.engine.definition``); hostile input.
        shapes: of its operands.
        shape: of the result.
        element: flat index into it.

    Raises:
        ProofError: unknown kind, or parameters and shapes that do not fit each other.
    """
    find = _TERMS.get(kind)
    if find is None:
        raise ProofError(f"definition {str(kind)[:40]!r}; want one of {', '.join(_TERMS)}")
    try:
        found = find(params, shapes, shape, element)
    except (
        KeyError, ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError, UnsupportedOperation
    ) as error:  # fmt: skip
        raise ProofError(f"definition {kind!r}: parameters or shapes that do not fit: {error!r}"[:300]) from error
    for name, index in found.reads:
        size = math.prod(shapes[name])
        if index.size > MAX_TERMS or (index.size and not 0 <= int(index.min()) <= int(index.max()) < size):
            raise ProofError(f"definition {kind!r}: element {element} reads beyond operand {name!r}")
    return found


def _want(truth: bool, what: str) -> None:
    if not truth:
        raise ValueError(what)


def _c(params: Mapping[str, Any]) -> str:
    _want(params["c"] in U or params["c"] in INTEGERS, f"c is {str(params['c'])[:20]!r}")
    return str(params["c"])


def _certified(kappa: Callable[[int, str], float], count: int, params: Mapping[str, Any]) -> float:
    """A sum's constant; 0 of integers, which are exact."""
    return 0.0 if _c(params) in INTEGERS else kappa(count, _c(params))


def _product(params: Mapping[str, Any], shapes: Any, shape: tuple[int, ...], element: int) -> Terms:
    batch, m, k = shapes["a"]
    _want(shapes["bt"][0] == batch and shapes["bt"][2] == k, "a and bt")
    n = shapes["bt"][1]
    _want(math.prod(shape) == batch * m * n, "result")
    b, rest = divmod(element, m * n)
    i, j = divmod(rest, n)
    k_range = np.arange(k)
    alpha, beta = _number(params["alpha"]), _number(params["beta"])
    single = _c(params) in ("float32", TENSOR_CORE)
    _want(not single or fit_float32(float(alpha), float(beta)), "factors that float32 has no bound for")
    bias = None
    if "bias" in shapes:
        bias = ("bias", np.array([_broadcast(shapes["bias"], (batch, m, n), (b, i, j))]))
    return Terms(
        ("a", (b * m + i) * k + k_range), ("bt", (b * n + j) * k + k_range), _certified(product_kappa, k, params),
        _c(params), bias, alpha, beta,
    )  # fmt: skip


def _broadcast(shape: Sequence[int], full: Sequence[int], at: Sequence[int]) -> int:
    """Flat index into ``shape``, broadcast to ``full``, at a position of ``full``."""
    _want(len(shape) <= len(full), "bias")
    flat = 0
    for size, whole, i in zip(shape, full[len(full) - len(shape) :], at[len(full) - len(shape) :], strict=True):
        _want(size in (1, whole), "bias")
        flat = flat * size + (i if size > 1 else 0)
    return flat


def _number(text: str) -> Fraction:
    value = float.fromhex(text)
    _want(math.isfinite(value), "a number that is not finite")
    return Fraction(value)


@dataclass(frozen=True)
class _Geometry:
    n: int
    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    oh: int
    ow: int
    groups: int

    def __post_init__(self) -> None:
        values = list(vars(self).values())
        _want(all(type(v) is int and 0 <= v < 1 << 31 for v in values), "geometry")
        _want(min(self.sh, self.sw, self.dh, self.dw, self.groups, self.kh, self.kw) > 0, "geometry")
        _want((self.oh - 1) * self.sh + self.dh * (self.kh - 1) < self.h + 2 * self.ph, "output height")
        _want((self.ow - 1) * self.sw + self.dw * (self.kw - 1) < self.w + 2 * self.pw, "output width")

    @property
    def cg(self) -> int:
        return self.c // self.groups

    @property
    def og(self) -> int:
        return self.o // self.groups


def _flat(shape: Sequence[int], *at: Index | int) -> Index:
    flat: Any = 0
    for size, i in zip(shape, at, strict=True):
        flat = flat * size + i
    return np.asarray(flat).reshape(-1)


def _conv_shapes(g: _Geometry, shapes: Any, *names: str) -> None:
    wanted = {"x": (g.n, g.c, g.h, g.w), "weight": (g.o, g.cg, g.kh, g.kw), "grad": (g.n, g.o, g.oh, g.ow)}
    for name in names:
        _want(tuple(shapes[name]) == wanted[name], name)


def _convolution(params: Mapping[str, Any], shapes: Any, shape: tuple[int, ...], element: int) -> Terms:
    g = _Geometry(*params["geometry"])
    _conv_shapes(g, shapes, "x", "weight")
    _want(math.prod(shape) == g.n * g.o * g.oh * g.ow, "result")
    n, o, y, x = (int(i) for i in np.unravel_index(element, (g.n, g.o, g.oh, g.ow)))
    c, ky, kx = (i.reshape(-1) for i in np.indices((g.cg, g.kh, g.kw)))
    iy, ix = y * g.sh - g.ph + ky * g.dh, x * g.sw - g.pw + kx * g.dw
    inside = (iy >= 0) & (iy < g.h) & (ix >= 0) & (ix < g.w)
    c, ky, kx, iy, ix = (i[inside] for i in (c, ky, kx, iy, ix))
    read = _flat((g.n, g.c, g.h, g.w), n, o // g.og * g.cg + c, iy, ix)
    weight = _flat((g.o, g.cg, g.kh, g.kw), o, c, ky, kx)
    bias = ("bias", np.array([o])) if "bias" in shapes else None
    depth = g.cg * g.kh * g.kw
    row = ("weight", o * depth + np.arange(depth))
    kappa, beta = _certified(forward_kappa, depth, params), Fraction(int(bias is not None))
    return Terms(("x", read), ("weight", weight), kappa, _c(params), bias, beta=beta, row=row)


def _input_gradient(params: Mapping[str, Any], shapes: Any, shape: tuple[int, ...], element: int) -> Terms:
    g = _Geometry(*params["geometry"])
    _conv_shapes(g, shapes, "grad", "weight")
    _want(math.prod(shape) == g.n * g.c * g.h * g.w, "result")
    n, c, iy, ix = (int(i) for i in np.unravel_index(element, (g.n, g.c, g.h, g.w)))
    o, ky, kx = (i.reshape(-1) for i in np.indices((g.og, g.kh, g.kw)))
    row = ("weight", _flat((g.o, g.cg, g.kh, g.kw), c // g.cg * g.og + o, c % g.cg, ky, kx))
    ty, tx = iy + g.ph - ky * g.dh, ix + g.pw - kx * g.dw
    y, x = ty // g.sh, tx // g.sw
    inside = (ty % g.sh == 0) & (tx % g.sw == 0) & (y >= 0) & (y < g.oh) & (x >= 0) & (x < g.ow)
    o, ky, kx, y, x = (i[inside] for i in (o, ky, kx, y, x))
    o = c // g.cg * g.og + o
    read = _flat((g.n, g.o, g.oh, g.ow), n, o, y, x)
    weight = _flat((g.o, g.cg, g.kh, g.kw), o, c % g.cg, ky, kx)
    kappa = _certified(gradient_kappa, g.og * g.kh * g.kw, params)
    return Terms(("grad", read), ("weight", weight), kappa, _c(params), row=row)


def _weight_gradient(params: Mapping[str, Any], shapes: Any, shape: tuple[int, ...], element: int) -> Terms:
    g = _Geometry(*params["geometry"])
    _conv_shapes(g, shapes, "grad", "x")
    _want(math.prod(shape) == g.o * g.cg * g.kh * g.kw, "result")
    _want(g.n * g.oh * g.ow <= MAX_TERMS, "terms")
    o, c, ky, kx = (int(i) for i in np.unravel_index(element, (g.o, g.cg, g.kh, g.kw)))
    n, y, x = (i.reshape(-1) for i in np.indices((g.n, g.oh, g.ow)))
    row = ("grad", _flat((g.n, g.o, g.oh, g.ow), n, o, y, x))
    iy, ix = y * g.sh - g.ph + ky * g.dh, x * g.sw - g.pw + kx * g.dw
    inside = (iy >= 0) & (iy < g.h) & (ix >= 0) & (ix < g.w)
    n, y, x, iy, ix = (i[inside] for i in (n, y, x, iy, ix))
    read = _flat((g.n, g.c, g.h, g.w), n, o // g.og * g.cg + c, iy, ix)
    grad = _flat((g.n, g.o, g.oh, g.ow), n, o, y, x)
    kappa = _certified(gradient_kappa, g.n * g.oh * g.ow, params)
    return Terms(("x", read), ("grad", grad), kappa, _c(params), row=row)


def _sum(params: Mapping[str, Any], shapes: Any, shape: tuple[int, ...], element: int) -> Terms:
    full, dims = shapes["x"], list(params["dims"])
    _want(all(type(d) is int and 0 <= d < len(full) for d in dims) and len(set(dims)) == len(dims), "dims")
    kept = [d for d in range(len(full)) if d not in dims]
    _want(math.prod(shape) == math.prod(full[d] for d in kept), "result")
    n = math.prod(full[d] for d in dims)
    _want(n <= MAX_TERMS, "terms")
    at = dict(zip(kept, np.unravel_index(element, [full[d] for d in kept]) if kept else (), strict=True))
    grids = dict(zip(dims, (i.reshape(-1) for i in np.indices([full[d] for d in dims])), strict=True))
    index = _flat(full, *(grids[d] if d in grids else int(at[d]) for d in range(len(full))))
    divisor = _number(params["divisor"])
    _want(divisor != 0 and type(params["square"]) is bool, "divisor")
    right = ("x", index) if params["square"] else None
    return Terms(("x", index), right, settled_sum_kappa(n), "float64", divisor=divisor)


def _function(params: Mapping[str, Any], shapes: Any, shape: tuple[int, ...], element: int) -> Terms:
    _want(math.prod(shape) == math.prod(shapes["x"]), "result")
    rounded = params.get("c") == ROUNDED
    _want(params["name"] in (CORRECT if rounded else FUNCTIONS), f"function {str(params['name'])[:20]!r}")
    return Terms(("x", np.array([element])), None, 0.0 if rounded else FUNCTION_KAPPA, "float64")


_TERMS: dict[str, Callable[..., Terms]] = {
    "product": _product,
    "convolution": _convolution,
    "input_gradient": _input_gradient,
    "weight_gradient": _weight_gradient,
    "sum": _sum,
    "function": _function,
}
