"""Canonical kernels on tensors: one defined order of arithmetic, so every machine gives the same bits (numerics §3).

Operands are float32 (16-bit ones are widened by the caller, exactly) on the CPU or on one CUDA device, of any strides
unless said otherwise. Results are new contiguous tensors. A wrong operand is an ``OperandError`` that names kernel and
tensor. The order of arithmetic of each kernel is documented beside it, in the ``.hpp`` file of its family.
"""

from __future__ import annotations

import math

import torch

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.rounding.formats import Format
from vtrain.rounding.generic import container
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
F32, F64 = torch.float32, torch.float64
FUNCTIONS = frozenset(
    "exp exp2 expm1 log log2 log10 log1p tanh sigmoid erf erfc sin cos sqrt rsqrt".split()
)  # pow has its own form


def _checked(kernel: str, like: Tensor, dtypes: tuple[torch.dtype, ...] = (F32,), **operands: Tensor | None) -> None:
    for name, t in operands.items():
        if t is None:
            continue
        if t.dtype not in dtypes:
            want = " or ".join(str(d) for d in dtypes)
            raise OperandError(f"kernel {kernel}: {name} is {t.dtype}, want {want}")
        if t.device != like.device:
            raise OperandError(f"kernel {kernel}: {name} is on {t.device}, want {like.device}")
    if like.device.type not in ("cpu", "cuda"):
        raise OperandError(
            f"kernel {kernel}: {next(iter(operands))} is on {like.device}, want the CPU or a CUDA device"
        )


def _same_shape(kernel: str, like: Tensor, **operands: Tensor) -> None:
    for name, t in operands.items():
        if t.shape != like.shape:
            raise OperandError(f"kernel {kernel}: {name} is {list(t.shape)}, want {list(like.shape)}")


def _sized(kernel: str, count: int, **operands: Tensor | None) -> None:
    for name, t in operands.items():
        if t is not None and t.numel() != count:
            raise OperandError(f"kernel {kernel}: {name} has {t.numel()} elements, want {count}")


# ---- products -------------------------------------------------------------------------------------------------------
def product(
    a: Tensor, b: Tensor, bias: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0, wide: bool = False
) -> Tensor:
    """alpha * a @ b + beta * bias: each element one chain of fused multiply-adds over k, ascending (gemm.hpp).

    Args:
        a: ``(batch, m, k)``.
        b: ``(batch, k, n)``.
        bias: broadcastable to ``(batch, m, n)``.
        wide: accumulate in float64 and round to float32 once.
    """
    name = "product_wide" if wide else "product"
    _checked(name, a, a=a, b=b, bias=bias)
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise OperandError(f"kernel {name}: a {list(a.shape)} and b {list(b.shape)}, want (batch, m, k), (batch, k, n)")
    batch, m, k = a.shape
    n = b.shape[2]
    y = torch.empty((batch, m, n), dtype=F32, device=a.device)
    if bias is not None:
        try:
            bias = bias.expand(y.shape)
        except RuntimeError as error:
            raise OperandError(f"kernel {name}: bias is {list(bias.shape)}, want {list(y.shape)} or less") from error
    at = (0, 0, 0) if bias is None else (bias.stride(1), bias.stride(2), bias.stride(0))
    if y.numel():
        launch.launch(
            name, a, b, bias, y, m, n, k, batch, a.stride(1), a.stride(2), a.stride(0), b.stride(2), b.stride(1),
            b.stride(0), n, m * n, *at, float(alpha), float(beta),
        )  # fmt: skip
    return y


def convolution(
    kind: str, x: Tensor, weight: Tensor, grad: Tensor, bias: Tensor | None, key: tuple[int, ...], wide: bool
) -> Tensor:
    """One of a 2-D convolution's three products, without its patches being materialised (gemm.hpp).

    Args:
        kind: ``convolution`` writes grad ``(n, o, oh, ow)``, ``input_gradient`` x ``(n, c, h, w)``, ``weight_gradient``
            weight ``(o, c / groups, kh, kw)``; each reads the other two. All contiguous.
        bias: ``(o,)``, of the forward convolution.
        key: n, c, h, w, o, kh, kw, stride (2), padding (2), dilation (2), oh, ow, groups.
    """
    name = f"{kind}_wide" if wide else kind
    _checked(name, x, x=x, weight=weight, grad=grad, bias=bias)
    for what, t in (("x", x), ("weight", weight), ("grad", grad)):
        if not t.is_contiguous():
            raise OperandError(f"kernel {name}: {what} is not contiguous")
    n, c, h, w, o, kh, kw, *_, oh, ow, groups = key
    shapes = {"x": (n, c, h, w), "weight": (o, c // groups, kh, kw), "grad": (n, o, oh, ow)}
    for what, t in (("x", x), ("weight", weight), ("grad", grad)):
        if tuple(t.shape) != shapes[what]:
            raise OperandError(f"kernel {name}: {what} is {list(t.shape)}, want {list(shapes[what])}")
    _sized(name, o, bias=bias)
    y = {"convolution": grad, "input_gradient": x, "weight_gradient": weight}[kind]
    if y.numel():
        launch.launch(name, x, weight, grad, None if bias is None else bias.contiguous(), y, *key)
    return y


# ---- elementwise ----------------------------------------------------------------------------------------------------
def function(name: str, x: Tensor, to: torch.dtype = F32, exponent: float = 0.0) -> Tensor:
    """One of ``FUNCTIONS``, or ``pow``, of each element, in float64 within an ulp; then rounded to ``to``.

    Args:
        x: float32 or float64.
        to: float32 or float64.
    """
    _checked(name, x, (F32, F64), x=x)
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=to, device=x.device)
    if x.numel():
        launch.launch(name, x, None, out, x.numel(), int(x.dtype is F64), int(to is F64), exponent, 0.0)
    return out


def power(x: Tensor, exponent: Tensor, to: torch.dtype = F32) -> Tensor:
    """x ** exponent elementwise in float64 within an ulp, then rounded to ``to``; both float64, of one shape."""
    _checked("power", x, (F64,), x=x, exponent=exponent)
    _same_shape("power", x, exponent=exponent)
    out = torch.empty(x.shape, dtype=to, device=x.device)
    if x.numel():
        launch.launch("power", x.contiguous(), exponent.contiguous(), out, x.numel(), 1, int(to is F64), 0.0, 0.0)
    return out


def activation(name: str, x: Tensor, grad: Tensor | None = None, p: float = 0.0, q: float = 0.0) -> Tensor:
    """``gelu_erf``, ``gelu_tanh``, ``silu`` or ``softplus`` (p: beta, q: threshold); with grad, its gradient."""
    name = name if grad is None else f"{name}_backward"
    _checked(name, x, x=x, grad=grad)
    x = x.contiguous()
    if grad is not None:
        _same_shape(name, x, grad=grad)
        grad = grad.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        launch.launch(name, x, grad, out, x.numel(), 0, 0, p, q)
    return out


# ---- sums -----------------------------------------------------------------------------------------------------------
_TERMS = {"value": 0, "wide": 1, "square": 2, "centred_square": 3, "product": 4, "centred_product": 5, "normalised": 6}


def _layout(x: Tensor, dims: list[int]) -> tuple[list[int], list[int]] | None:
    """(batch, outer, rows, cols) of x and strides, summing over outer and cols; None if x must be copied first."""
    kept = [d for d in range(x.dim()) if d not in dims]

    def merged(group: list[int]) -> tuple[int, int] | None:
        group = [d for d in group if x.shape[d] != 1]
        if not group:
            return 1, 0
        for left, right in zip(group, group[1:], strict=False):
            if x.stride(left) != x.stride(right) * x.shape[right]:
                return None
        size = 1
        for d in group:
            size *= x.shape[d]
        return size, x.stride(group[-1])

    def split(group: list[int]) -> list[tuple[int, int]] | None:
        """One or two stretches of dimensions that are one dimension each."""
        whole = merged(group)
        if whole is not None:
            return [(1, 0), whole]
        for cut in range(1, len(group)):
            parts = merged(group[:cut]), merged(group[cut:])
            if parts[0] is not None and parts[1] is not None:
                return [parts[0], parts[1]]
        return None

    rows, terms = split(kept), split(dims)
    if rows is None or terms is None:
        return None
    sizes = [rows[0][0], terms[0][0], rows[1][0], terms[1][0]]
    strides = [rows[0][1], terms[0][1], rows[1][1], terms[1][1]]
    return sizes, strides


def sum_terms(kind: str, dims: list[int], x: Tensor, *others: Tensor) -> Tensor:
    """Sums over dims in float64, in the order of sum.hpp; the kept dimensions in order.

    Args:
        kind: the terms: ``value`` x; ``square`` x^2; ``centred_square`` (x - mean)^2; ``product`` x * b;
            ``centred_product`` x * (b - mean); ``normalised`` x * ((b - mean) * rstd). Differences and products are
            rounded to float32, squares are exact.
        dims: ascending.
        others: b of x's shape; then mean, one a result, contiguous (``normalised``: mean and rstd, one a term).
    """
    for i, other in enumerate(others):
        _checked("sum", x, (F32,), **{f"operand {i + 1}": other})
    _checked("sum", x, (F32, F64) if kind == "value" else (F32,), x=x)
    pair = others[:1] if kind in ("product", "centred_product", "normalised") else ()
    rest = others[len(pair) :]
    for b in pair:
        _same_shape("sum", x, b=b)
    layout = _layout(x, dims) if not pair or pair[0].stride() == x.stride() else None
    if layout is None or (kind in ("centred_square", "centred_product") and layout[0][0] != 1):
        kept = [d for d in range(x.dim()) if d not in dims]
        x, *pair_ = (t.permute(*kept, *dims).contiguous() for t in (x, *pair))
        pair, dims = tuple(pair_), list(range(len(kept), x.dim()))
        layout = _layout(x, dims)
        assert layout is not None
    shape = [x.shape[d] for d in range(x.dim()) if d not in dims]
    for i, vector in enumerate(rest):
        terms = math.prod(x.shape[d] for d in dims)
        _sized("sum", terms if kind == "normalised" else math.prod(shape), **{f"operand {i + 1 + len(pair)}": vector})
    y = torch.empty(shape, dtype=F64, device=x.device)
    if y.numel():
        operands = [x, *pair, *(t.contiguous() for t in rest)]
        operands += [None] * (4 - len(operands))  # type: ignore[list-item]
        if kind == "value" and x.dtype is F64:
            kind = "wide"
        launch.launch("sum", *operands, y, _TERMS[kind], *layout[0], *layout[1])
    return y


def running_sum(x: Tensor, dim: int) -> Tensor:
    """Running sums along dim in float64, in ascending order."""
    _checked("running_sum", x, x=x)
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=F64, device=x.device)
    if x.numel():
        n = x.shape[dim] if x.dim() else 1
        inner = math.prod(x.shape[dim % x.dim() + 1 :]) if x.dim() else 1
        launch.launch("running_sum", x, y, x.numel() // (n * inner), n, inner)
    return y


def scatter(values: Tensor, index: Tensor, rows: int, x: Tensor | None = None, alpha: float = 1.0) -> Tensor:
    """y[r] = x[r] + the sum of alpha * values[t] over t with index[t] = r, ascending, in float64: ``(rows, width)``.

    Args:
        values: ``(terms, width)``.
        index: int64 ``(terms,)``, in [0, rows).
        x: ``(rows, width)``; none: zeros.

    Raises:
        OperandError: an index out of range.
    """
    _checked("scatter", values, values=values, x=x)
    _checked("scatter", values, (torch.int64,), index=index)
    if values.dim() != 2 or index.shape != values.shape[:1]:
        raise OperandError(f"kernel scatter: index is {list(index.shape)}, values {list(values.shape)}: want one a row")
    if x is not None and x.shape != (rows, values.shape[1]):
        raise OperandError(f"kernel scatter: x is {list(x.shape)}, want {[rows, values.shape[1]]}")
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < rows):
        raise OperandError(f"kernel scatter: index from {int(index.min())} to {int(index.max())}, want 0 to {rows - 1}")
    values = values.contiguous()
    y = torch.zeros((rows, values.shape[1]), dtype=F64, device=values.device) if x is None else x.to(F64).contiguous()
    if not values.numel() or not y.numel():
        return y
    sorted_index, order = torch.sort(index, stable=True)
    used, counts = torch.unique_consecutive(sorted_index, return_counts=True)
    starts = torch.zeros(used.numel() + 1, dtype=torch.int64, device=values.device)
    starts[1:] = counts.cumsum(0)
    base = None if x is None else x.contiguous()
    launch.launch("scatter", values, order, starts, used, base, y, used.numel(), values.shape[1], alpha)
    return y


# ---- composites -----------------------------------------------------------------------------------------------------
def _rows_of(x: Tensor, dim: int) -> Tensor:
    return (x.movedim(dim, -1) if x.dim() else x.view(1)).contiguous()


def softmax(
    name: str, dim: int, x: Tensor | None = None, y: Tensor | None = None, grad: Tensor | None = None
) -> Tensor:
    """``softmax`` or ``log_softmax`` of x along dim, or, from y and grad, its gradient."""
    like = x if x is not None else y
    assert like is not None
    name = name if grad is None else f"{name}_backward"
    _checked(name, like, x=x, y=y, grad=grad)
    if grad is not None:
        _same_shape(name, like, grad=grad)
    x, y, grad = (None if t is None else _rows_of(t, dim) for t in (x, y, grad))
    rows = x if x is not None else y
    assert rows is not None
    out = torch.empty_like(rows)
    n = rows.shape[-1]
    if rows.numel():
        launch.launch(name, x, y, grad, None, None, None, None, out, rows.numel() // n, n, 0.0)
    return out.movedim(-1, dim).contiguous() if like.dim() else out.view(())


def _check_rows(
    kernel: str, x: Tensor, n: int, grad: Tensor | None, per_row: tuple[Tensor, ...], *per_element: Tensor | None
) -> None:
    if n < 0 or (x.numel() and (n == 0 or x.numel() % n)):
        raise OperandError(f"kernel {kernel}: x has {x.numel()} elements, no multiple of rows of {n}")
    if grad is not None:
        _same_shape(kernel, x, grad=grad)
    for i, t in enumerate(per_row):
        _sized(kernel, x.numel() // max(1, n), **{("mean", "rstd")[i - len(per_row)]: t})
    for name, weight in zip(("weight", "bias"), per_element, strict=False):
        _sized(kernel, n, **{name: weight})


def layer_norm(
    x: Tensor, n: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) * rstd * weight + bias over the last n elements; mean and rstd ``(rows,)``."""
    _checked("layer_norm", x, x=x, weight=weight, bias=bias)
    _check_rows("layer_norm", x, n, None, (), weight, bias)
    x, weight, bias = (None if t is None else t.contiguous() for t in (x, weight, bias))  # type: ignore[assignment]
    out, rows = torch.empty_like(x), x.numel() // max(1, n)
    mean, rstd = torch.empty(rows, device=x.device), torch.empty(rows, device=x.device)
    if x.numel():
        launch.launch("layer_norm", x, None, None, weight, bias, mean, rstd, out, rows, n, eps)
    return out, mean, rstd


def layer_norm_backward(x: Tensor, n: int, grad: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
    """Gradient of x of ``layer_norm``."""
    _checked("layer_norm_backward", x, x=x, grad=grad, mean=mean, rstd=rstd, weight=weight)
    _check_rows("layer_norm_backward", x, n, grad, (mean, rstd), weight)
    x, grad = x.contiguous(), grad.contiguous()
    weight = None if weight is None else weight.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        launch.launch("layer_norm_backward", x, None, grad, weight, None, mean.contiguous(), rstd.contiguous(), out,
               x.numel() // n, n, 0.0)  # fmt: skip
    return out


def rms_norm(x: Tensor, n: int, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x * rstd * weight over the last n elements; rstd ``(rows,)``."""
    _checked("rms_norm", x, x=x, weight=weight)
    _check_rows("rms_norm", x, n, None, (), weight)
    x = x.contiguous()
    weight = None if weight is None else weight.contiguous()
    out, rows = torch.empty_like(x), x.numel() // max(1, n)
    rstd = torch.empty(rows, device=x.device)
    if x.numel():
        launch.launch("rms_norm", x, None, None, weight, None, None, rstd, out, rows, n, eps)
    return out, rstd


def rms_norm_backward(x: Tensor, n: int, grad: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
    """Gradient of x of ``rms_norm``."""
    _checked("rms_norm_backward", x, x=x, grad=grad, rstd=rstd, weight=weight)
    _check_rows("rms_norm_backward", x, n, grad, (rstd,), weight)
    x, grad = x.contiguous(), grad.contiguous()
    weight = None if weight is None else weight.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        launch.launch(
            "rms_norm_backward", x, None, grad, weight, None, None, rstd.contiguous(), out, x.numel() // n, n, 0.0
        )
    return out


_SMALL_AREA = 64


def _by_channel(x: Tensor, *values: Tensor | None) -> tuple[tuple[int, int, int], tuple[Tensor | None, ...]]:
    """samples, channels, area of x, and values a channel; small areas as channels of their own, for long rows."""
    samples, channels = x.shape[:2]
    area = x.numel() // (samples * channels)
    if area >= _SMALL_AREA:
        return (samples, channels, area), tuple(None if v is None else v.contiguous() for v in values)
    return (samples, channels * area, 1), tuple(None if v is None else v.repeat_interleave(area) for v in values)


def channel_norm(x: Tensor, mean: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """(x - mean) * gain + bias by channel of x ``(samples, channels, ...)``."""
    _checked("channel_norm", x, x=x, mean=mean, gain=gain, bias=bias)
    _sized("channel_norm", x.shape[1], mean=mean, gain=gain, bias=bias)
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        layout, values = _by_channel(x, mean, gain, bias)
        launch.launch("channel_norm", x, None, *values, None, None, out, *layout)
    return out


def channel_norm_backward(x: Tensor, grad: Tensor, mean: Tensor, offset: Tensor, slope: Tensor, gain: Tensor) -> Tensor:
    """((grad - offset) - (x - mean) * slope) * gain by channel of x ``(samples, channels, ...)``."""
    _checked("channel_norm_backward", x, x=x, grad=grad, mean=mean, offset=offset, slope=slope, gain=gain)
    _same_shape("channel_norm_backward", x, grad=grad)
    _sized("channel_norm_backward", x.shape[1], mean=mean, offset=offset, slope=slope, gain=gain)
    x, grad = x.contiguous(), grad.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        layout, values = _by_channel(x, mean, gain, None, offset, slope)
        launch.launch("channel_norm_backward", x, grad, *values, out, *layout)
    return out


# ---- settling on other devices --------------------------------------------------------------------------------------
_HOLDERS = {"float32": 0, "bfloat16": 1, "float16": 2}
STRIP = 4096  # elements counted together (doubt.hpp)


def _doubt(
    name: str, y: Tensor, out: Tensor | None, fmt: Format, scale: Scale | None, tau: float, eta: float, signed: bool,
    *found: Tensor | None,
) -> None:  # fmt: skip
    vectors = (None,) * 4 if scale is None else (scale.row, scale.col, scale.bias, scale.full)
    shape = (1, 1, y.numel()) if scale is None else scale.shape
    launch.launch(
        name, y, out, *vectors, *found, int(y.dtype is F64), _HOLDERS[fmt.container], fmt.p, fmt.emin, fmt.emax, *shape,
        int(scale is not None and scale.relative), tau, eta, -0.0 if signed else 0.0,
    )  # fmt: skip


def round_to(y: Tensor, fmt: Format, signed: bool = True) -> Tensor:
    """y (float32 or float64, contiguous) rounded to ``fmt``, in its container; unsigned: all zeros become +0."""
    _checked("round", y, (F32, F64), y=y)
    out = torch.empty(y.shape, dtype=container(fmt), device=y.device)
    if y.numel():
        _doubt("round", y.contiguous(), out, fmt, None, 0.0, 0.0, signed, None, None, None, None)
    return out


def in_doubt(
    y: Tensor, scale: Scale, tau: float, eta: float, fmt: Format, signed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices (int64, ascending), values and half-widths (float64) of the elements in doubt."""
    _checked("doubt_count", y, (F32, F64), y=y)
    y = y.contiguous()
    counts = torch.zeros(-(-y.numel() // STRIP), dtype=torch.int64, device=y.device)
    if not y.numel():
        return counts, torch.empty(0, dtype=F64, device=y.device), torch.empty(0, dtype=F64, device=y.device)
    _doubt("doubt_count", y, None, fmt, scale, tau, eta, signed, counts, None, None, None)
    ends = counts.cumsum(0)
    total, starts = int(ends[-1]), ends - counts
    index = torch.empty(total, dtype=torch.int64, device=y.device)
    value, width = (torch.empty(total, dtype=F64, device=y.device) for _ in range(2))
    if total:
        _doubt("doubt_write", y, None, fmt, scale, tau, eta, signed, starts, index, value, width)
    return index, value, width


# ---- optimizer steps ------------------------------------------------------------------------------------------------
def optimizer_step(name: str, param: Tensor, grad: Tensor, state: tuple[Tensor | None, ...], *numbers: float) -> None:
    """``sgd`` or ``adam`` in place on contiguous float32 tensors.

    Args:
        state: first, second, most: buffers, contiguous; None where the optimizer has none.
        numbers: maximize, decoupled, fresh, nesterov (0 or 1), then lr, decay, beta1, beta2, eps, step_size,
            root_correction, momentum, dampening (optimizer.hpp).
    """
    _checked(name, param, param=param, grad=grad, first=state[0], second=state[1], most=state[2])
    _sized(name, param.numel(), grad=grad, first=state[0], second=state[1], most=state[2])
    for what, t in (("param", param), ("first", state[0]), ("second", state[1]), ("most", state[2])):
        if t is not None and not t.is_contiguous():
            raise OperandError(f"kernel {name}: {what} is not contiguous")
    if param.numel():
        flags, reals = (int(n) for n in numbers[:4]), (float(n) for n in numbers[4:])
        launch.launch(name, param, grad.contiguous(), *state, param.numel(), *flags, *reals)
