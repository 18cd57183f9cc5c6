"""Matrix products (numerics §2, class 3)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vtrain import kernels
from vtrain.engine import integers, matrix_units
from vtrain.engine.carriers import carrier
from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.definition import Definition
from vtrain.engine.listener import round_result
from vtrain.engine.optable import OpClass, register
from vtrain.kernels import canonical
from vtrain.rounding.bounds import TENSOR_CORE, product_kappa
from vtrain.rounding.fixed import LONGEST as LONGEST_INTEGER
from vtrain.rounding.fixed import digits_for
from vtrain.rounding.formats import FLOAT32
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor


def row_norms(x: Tensor) -> Tensor:
    """Norms along the last dimension in float64, for error scales; x is ``(rows, k)`` or ``(batch, rows, k)``."""
    if x.dtype is torch.float16:
        x = x.to(F32)
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x.to(F64), dim=-1)
    return kernels.norms(x)


def product(
    engine: Engine, a: Tensor, b: Tensor, bias: Tensor | None = None, alpha: float = 1, beta: float = 1, part: str = ""
) -> Tensor:
    """alpha * a @ b + beta * bias, rounded once.

    |error| <= gamma_(k+3) * (|alpha| |a_i| |b_j| + |beta bias_j|) by Cauchy-Schwarz on the sum of |a||b|.

    Args:
        a: ``(m, k)`` or ``(batch, m, k)``.
        b: ``(k, n)`` or ``(batch, k, n)``.
        bias: broadcastable to the result.
    """
    if engine.chain:
        return engine.fixed(part, chain(engine, a, b, bias, alpha, beta), engine.format(a.dtype), signed=True)
    if engine.integer:
        return integer(engine, a, b, bias, alpha, beta, part)
    k, fmt = a.shape[-1], engine.format(a.dtype)
    c = engine.product_dtype_of(k, a, b, bias, alpha, beta)
    compute = matrix_units.compute_name(engine.policy, c, k)
    shape = (*a.shape[:-1], b.shape[-1])
    wide_bias = None if bias is None or beta == 0 else engine.workspace.widen("bias", bias, c).expand(shape)
    on_units = matrix_units.product(a, b, fmt) if compute == TENSOR_CORE else None
    if on_units is not None:
        y = _finish(on_units, alpha, wide_bias, beta)
    else:
        y = _in_c(engine, a, b, c, wide_bias, alpha, beta)

    def scale() -> Scale:
        return _product_scale(y, a, b, bias, alpha, beta, compute)

    def vary() -> Tensor:
        if compute == TENSOR_CORE:
            other = matrix_units.modelled(a, b, shape)
        else:
            order = permutation(k, a.device)
            wide_a, wide_b = engine.workspace.widen("a", a, c), engine.workspace.widen("b", b, c)
            other = torch.matmul(wide_a[..., order], wide_b[..., order, :])
        return _finish(other, alpha, wide_bias, beta)

    def definition() -> Definition:
        return _product_definition(a, b, bias, alpha, beta, compute)

    return engine.settle(part, y, scale, fmt, vary, definition=definition)


def _in_c(
    engine: Engine, a: Tensor, b: Tensor, c: torch.dtype, wide_bias: Tensor | None, alpha: float, beta: float
) -> Tensor:
    """alpha * a @ b + beta * bias in C, in scratch memory."""
    wide_a, wide_b = engine.workspace.widen("a", a, c), engine.workspace.widen("b", b, c)
    y = engine.workspace.get("y", (*a.shape[:-1], b.shape[-1]), c, a.device)
    if wide_bias is None or (alpha, beta) != (1, 1):
        # Factors are not left to libraries, some of which multiply an operand by alpha: that may underflow.
        return _finish(torch.matmul(wide_a, wide_b, out=y), alpha, wide_bias, beta)
    return (torch.addmm if a.dim() == 2 else torch.baddbmm)(wide_bias, wide_a, wide_b, out=y)


def _product_scale(
    y: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, alpha: float, beta: float, compute: str
) -> Scale:
    """The error scale of a product computed by what ``compute`` names; see ``product``."""
    k, batch = a.shape[-1], a.shape[0] if a.dim() == 3 else 1
    name, kappa, shape = "mm" if a.dim() == 2 else "bmm", product_kappa(k, compute), (batch, *y.shape[-2:])
    rows, cols = row_norms(a), row_norms(b.mT)
    s = Scale(name, k, kappa, shape, row=rows if alpha == 1 else rows * abs(alpha), col=cols, compute=compute)
    if bias is None or beta == 0:
        # A sum of ones is not rounded to 0, however many there are.
        s.empty = lambda: torch.matmul((a != 0).to(F32), (b != 0).to(F32)) == 0
        return s
    magnitude = bias.to(F64).abs() * abs(beta)
    if bias.dim() == 1 or bias.shape[:-1].numel() == 1:
        s.bias = magnitude.reshape(-1).expand(y.shape[-1]).contiguous()
        return s
    full = s.dense(y) + magnitude.expand(y.shape).reshape(s.shape)
    return replace(s, row=None, col=None, full=full)


def _product_definition(a: Tensor, b: Tensor, bias: Tensor | None, alpha: float, beta: float, c: str) -> Definition:
    """What a referee computes elements of a product by."""
    has_bias = bias is not None and beta != 0
    params = {"alpha": float(alpha).hex(), "beta": float(beta if has_bias else 0).hex(), "c": c}
    batched = (a, b.mT) if a.dim() == 3 else (a[None], b.mT[None])
    operands = {"a": batched[0], "bt": batched[1]}
    return Definition("product", params, {**operands, "bias": bias} if bias is not None and has_bias else operands)


def _finish(y: Tensor, alpha: float, bias: Tensor | None, beta: float) -> Tensor:
    """alpha * y + beta * bias in y's dtype, to which the factors are rounded: one operation each, in place."""
    if alpha != 1:
        y.mul_(alpha)
    if bias is not None:
        y.add_(bias if beta == 1 else torch.mul(bias, beta))
    return y


def chain(
    engine: Engine, a: Tensor, b: Tensor, bias: Tensor | None = None, alpha: float = 1, beta: float = 1
) -> Tensor:
    """``product`` in its canonical order, float32."""
    a32, b32 = engine.workspace.widen("a", a, F32), engine.workspace.widen("b", b, F32)
    batched = (a32, b32) if a.dim() == 3 else (a32[None], b32[None])
    plus = None if bias is None or beta == 0 else engine.lift(bias)
    y = canonical.product(*batched, plus, alpha, beta, engine.wide_chain)
    return y if a.dim() == 3 else y[0]


def integer(engine: Engine, a: Tensor, b: Tensor, bias: Tensor | None, alpha: float, beta: float, part: str) -> Tensor:
    """``product`` of exact integers; with a factor or a bias rounded to float32 first, then an operation each."""
    y = integer_sum(engine, a, b)
    plus = None if bias is None or beta == 0 else engine.lift(bias).expand(y.shape)
    if alpha != 1 or plus is not None:
        y = _finish(round_result(y, FLOAT32), alpha, plus, beta)
    fmt = engine.format(a.dtype)
    exactly = lambda: _product_definition(a, b, bias, alpha, beta, f"integer{digits_for(fmt)}")  # noqa: E731
    return engine.fixed(part, y, fmt, signed=True, definition=exactly)


def integer_sum(engine: Engine, a: Tensor, b: Tensor) -> Tensor:
    """a @ b before its one rounding, in scratch memory (``integers.product``).

    Raises:
        UnsupportedOperation: longer sums than the integers have room for.
    """
    if a.shape[-1] >= LONGEST_INTEGER:
        engine.refuse(f"sums of {a.shape[-1]} terms; with matmul='integer' fewer than {LONGEST_INTEGER} are covered")
    digits = digits_for(engine.format(a.dtype))
    batched = (a, b) if a.dim() == 3 else (a[None], b[None])
    y = integers.product(engine.workspace, *batched, digits, carrier(a.device))
    return y if a.dim() == 3 else y[0]


def permutation(k: int, device: torch.device) -> Tensor:
    """An order of k terms that is far from ascending: i -> i * odd mod k, with odd near k / golden ratio."""
    odd = max(1, round(k * 0.6180339887498949)) | 1
    while math.gcd(odd, k) != 1:
        odd += 2
    return torch.arange(k, device=device) * odd % k


def _check(engine: Engine, a: Tensor, b: Tensor) -> None:
    if a.dtype is not b.dtype:
        engine.refuse(f"operands of dtypes {a.dtype} and {b.dtype}")


def _whole(*args: object, **kwargs: object) -> bool:
    """Products of integers, whose sums have no order: they wrap."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    return not any(t.is_floating_point() or t.is_complex() for t in tensors)


@register("mm.default", "bmm.default", cls=OpClass.VARYING, native_when=_whole, version=2)
def mm(engine: Engine, a: Tensor, b: Tensor) -> Tensor:
    """a @ b."""
    _check(engine, a, b)
    return product(engine, a, b)


@register("addmm.default", "baddbmm.default", cls=OpClass.VARYING, native_when=_whole, version=2)
def addmm(engine: Engine, bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * bias + alpha * a @ b."""
    _check(engine, a, b)
    return product(engine, a, b, bias, alpha, beta)


@register("mv.default", cls=OpClass.VARYING, native_when=_whole, version=2)
def mv(engine: Engine, a: Tensor, x: Tensor) -> Tensor:
    """Matrix times vector."""
    return product(engine, a, x.unsqueeze(1)).squeeze(1)


@register("addmv.default", cls=OpClass.VARYING, native_when=_whole, version=2)
def addmv(engine: Engine, bias: Tensor, a: Tensor, x: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * bias + alpha * a @ x."""
    column = bias.expand(a.shape[0]).unsqueeze(1)
    return product(engine, a, x.unsqueeze(1), column, alpha, beta).squeeze(1)


@register("dot.default", "vdot.default", cls=OpClass.VARYING, native_when=_whole, version=2)
def dot(engine: Engine, a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two vectors."""
    return product(engine, a.unsqueeze(0), b.unsqueeze(1)).view(())
