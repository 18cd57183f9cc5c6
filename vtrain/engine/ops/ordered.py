"""Sorting, searching, sets and comparisons: of equal elements the lowest index first (numerics §2, class 1)."""

from __future__ import annotations

import torch

from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.ops.conversions import SIXTEEN, as_number, convert
from vtrain.engine.ops.extrema import plus_zero
from vtrain.engine.ops.scatter import index_add
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
aten = torch.ops.aten
EXACT = OpClass.EXACT


@register("sort.default", cls=EXACT, version=2)
def sort(engine: Engine, x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Values and indices in order, NaN above all; of equal ones the lowest index first, as no library promises."""
    if x.device.type == "cpu" or not x.is_floating_point():
        found = torch.sort(x, stable=True, dim=dim, descending=descending)
        return found.values, found.indices
    # A device that sorts by bits tells zeros apart, and NaNs by their sign.
    key = torch.where(x.isnan(), float("nan"), x + 0.0)
    indices = torch.sort(key, stable=True, dim=dim, descending=descending).indices
    return x.gather(dim, indices), indices


@register("sort.stable", cls=EXACT, version=2)
def sort_stable(
    engine: Engine, x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """As ``sort``."""
    return sort(engine, x, dim, descending)


@register("topk.default", cls=EXACT, version=2)
def topk(
    engine: Engine, x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:
    """The first k in order; of equal ones the lowest index first."""
    values, indices = sort(engine, x, dim, largest)
    if not x.dim():
        return values, indices
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


# ---- sets -----------------------------------------------------------------------------------------------------------
@register("_unique2.default", cls=EXACT, version=2)
def unique(
    engine: Engine, x: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct elements in ascending order, each the first of its equals; every NaN is one of its own."""
    flat = x.reshape(-1)
    values, order = sort(engine, flat.to(torch.uint8) if x.dtype is torch.bool else flat, 0)
    starts = torch.ones(flat.shape, dtype=torch.bool, device=x.device)
    if flat.numel():
        starts[1:] = values[1:] != values[:-1]
    at = starts.nonzero().view(-1)
    inverse = counts = torch.empty(0, dtype=torch.int64, device=x.device)
    if return_inverse:
        inverse = torch.zeros_like(order).index_copy_(0, order, starts.cumsum(0) - 1).view(x.shape)
    if return_counts:
        counts = torch.cat([at, at.new_full((1,), flat.numel())]).diff()
    return values[at].to(x.dtype), inverse, counts


@register("unique_dim.default", cls=EXACT, version=2)
def unique_dim(
    engine: Engine, x: Tensor, dim: int, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct slices along dim, in lexicographic order; every zero is +0."""
    return aten.unique_dim.default(_ordered(engine, x), dim, True, return_inverse, return_counts)


@register("unique_consecutive.default", cls=EXACT, version=2)
def unique_consecutive(
    engine: Engine, x: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first of each run of equal elements (or slices along dim); every zero is +0."""
    return aten.unique_consecutive.default(_ordered(engine, x), return_inverse, return_counts, dim)


def _ordered(engine: Engine, x: Tensor) -> Tensor:
    """x with zeros of one sign and nothing that compares with nothing."""
    if not x.is_floating_point():
        return x
    if bool(x.isnan().any()):
        engine.refuse("NaN among the elements, which has no place in an order")
    return plus_zero(x.clone())


@register("bincount.default", cls=OpClass.VARYING, version=2)
def bincount(engine: Engine, x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each number occurs; with weights, their sums in float32, as ``index_add`` has them."""
    if weights is None:
        return torch.bincount(x, minlength=minlength)
    if weights.dtype is not F32:
        engine.refuse(f"weights of {weights.dtype}, whose sums are float64; use float32")
    size = max(minlength, int(x.max()) + 1 if x.numel() else 0)
    return index_add(engine, torch.zeros(size, device=x.device), 0, x, weights)


@register("histc.default", cls=OpClass.ROUNDED, version=2)
def histc(engine: Engine, x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Counts of floor((x - min) * bins / (max - min)) in float64 IEEE operations; max is in the last bin."""
    whole = not x.is_floating_point()  # which torch takes on CUDA alone
    if not whole:
        engine.format(x.dtype)
    wide = x.to(F64).reshape(-1)
    low, high = (float(min), float(max)) if min != max else (float(wide.min()), float(wide.max()))
    if low == high:
        low, high = low - 1, high + 1
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        engine.refuse(f"a range from {low} to {high}")
    inside = wide[(wide >= low) & (wide <= high)]
    span = torch.full((), high - low, dtype=F64, device=x.device)
    position = torch.div((inside - low) * bins, span).floor().clamp_max_(bins - 1).to(torch.int64)
    counts = torch.bincount(position, minlength=bins)
    return counts.to(x.dtype) if whole else convert(engine, counts, x.dtype)


# ---- searching ------------------------------------------------------------------------------------------------------
def _check_sorted(engine: Engine, boundaries: Tensor) -> None:
    """A search in a sequence that is not in order finds what its steps happen to meet."""
    if not bool((boundaries[..., 1:] >= boundaries[..., :-1]).all()) or bool((boundaries != boundaries).any()):
        engine.refuse("boundaries that are not in ascending order, or NaN; sort them")


@register("searchsorted.Tensor", cls=EXACT, version=2)
def searchsorted(
    engine: Engine, boundaries: Tensor, x: Tensor, *, sorter: Tensor | None = None, **kwargs: object
) -> Tensor:
    """How many boundaries are below each element (or not above it, with right); NaN is above all."""
    _check_sorted(engine, boundaries if sorter is None else boundaries.gather(-1, sorter))
    return aten.searchsorted.Tensor(boundaries, x, sorter=sorter, **kwargs)


@register("bucketize.Tensor", cls=EXACT, version=2)
def bucketize(engine: Engine, x: Tensor, boundaries: Tensor, **kwargs: object) -> Tensor:
    """As ``searchsorted``."""
    _check_sorted(engine, boundaries)
    return aten.bucketize.Tensor(x, boundaries, **kwargs)


@register("searchsorted.Scalar", cls=EXACT)
def searchsorted_number(
    engine: Engine, boundaries: Tensor, number: float, *, sorter: Tensor | None = None, **kwargs: object
) -> Tensor:
    """As ``searchsorted``, of one number, taken as the boundaries' type has it."""
    _check_sorted(engine, boundaries if sorter is None else boundaries.gather(-1, sorter))
    value = as_number(number, boundaries.dtype) if boundaries.is_floating_point() else number
    return aten.searchsorted.Scalar(boundaries, value, sorter=sorter, **kwargs)


@register("bucketize.Scalar", cls=EXACT)
def bucketize_number(engine: Engine, number: float, boundaries: Tensor, **kwargs: object) -> Tensor:
    """As ``searchsorted``, of one number."""
    return searchsorted_number(engine, boundaries, number, **kwargs)


@register("repeat_interleave.Tensor", cls=EXACT, version=2)
def repeat_interleave(engine: Engine, repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    """Each index as often as it says; a wrong ``output_size`` is an error on every device."""
    found = aten.repeat_interleave.Tensor(repeats)
    if output_size is not None and output_size != found.numel():
        engine.refuse(f"output_size {output_size}, but the repeats add up to {found.numel()}")
    return found


# ---- comparisons ----------------------------------------------------------------------------------------------------
def _one_type(x: Tensor | float, other: Tensor | float) -> bool:
    """Whether no number has to become one of 16 bits, which kernels do before they compare, or not at all."""
    if not isinstance(other, Tensor):
        return x.dtype not in SIXTEEN  # type: ignore[union-attr]
    if not isinstance(x, Tensor):
        return other.dtype not in SIXTEEN
    return x.dtype is other.dtype or (x.dtype not in SIXTEEN and other.dtype not in SIXTEEN)


def _compared(name: str) -> None:
    native = getattr(torch, name)

    def handler(engine: Engine, x: Tensor | float, other: Tensor | float) -> Tensor:
        dtype = torch.result_type(x, other)
        a, b = (convert(engine, v, dtype) if isinstance(v, Tensor) else as_number(v, dtype) for v in (x, other))
        return native(a, b)

    handler.__doc__ = f"{name} of each pair, both in their common type."
    register(f"{name}.Tensor", f"{name}.Scalar", cls=EXACT, native_when=_one_type, version=2)(handler)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _compared(_name)
