"""Operations that PyTorch's own decompositions reduce to others of the table (numerics §2, class 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtrain.engine.optable import composed, decompose

Tensor = torch.Tensor
aten = torch.ops.aten

decompose(
    """
    huber_loss.default huber_loss_backward.default binary_cross_entropy.default binary_cross_entropy_backward.default
    soft_margin_loss.default soft_margin_loss_backward.default multi_margin_loss.default
    xlogy.Tensor xlogy.Scalar_Self xlogy.Scalar_Other logaddexp.default std_mean.correction nan_to_num.default
    celu.default softshrink.default hardshrink.default _prelu_kernel.default _prelu_kernel_backward.default
    _unsafe_masked_index.default _unsafe_masked_index_put_accumulate.default linalg_cross.default addr.default
    trace.default sinc.default _weight_norm_interface.default
    """.split()
)


# ---- what PyTorch has a kernel for, and these are --------------------------------------------------------------------
@composed("allclose.default")
def allclose(x: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements are close, as ``isclose`` has it."""
    return bool(torch.isclose(x, other, rtol, atol, equal_nan).all())


@composed("nansum.default")
def nansum(
    x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Sum of what is a number."""
    kept = x.masked_fill(x.isnan(), 0) if x.is_floating_point() else x
    return torch.sum(kept, list(range(x.dim()) if dim is None else dim), keepdim, dtype=dtype)


@composed("round.decimals")
def round_decimals(x: Tensor, *, decimals: int) -> Tensor:
    """x times 10^decimals, rounded to an integer, and divided again; a rounding after each."""
    if not decimals:
        return torch.round(x)
    power = 10.0 ** abs(decimals)
    return torch.div(torch.round(x * power), power) if decimals > 0 else torch.round(torch.div(x, power)) * power


@composed("deg2rad.default")
def deg2rad(x: Tensor) -> Tensor:
    """x times pi / 180."""
    return x * (torch.pi / 180)


@composed("rad2deg.default")
def rad2deg(x: Tensor) -> Tensor:
    """x times 180 / pi."""
    return x * (180 / torch.pi)


@composed("isin.Tensor_Scalar")
def isin_number(x: Tensor, number: float, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each element is a number, or is not."""
    return torch.ne(x, number) if invert else torch.eq(x, number)


@composed("isin.Scalar_Tensor")
def number_isin(number: float, among: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether a number is among the elements, or is not."""
    return torch.eq(among, number).any().logical_xor(torch.full((), invert, device=among.device))


@composed("_unique.default")
def unique(x: Tensor, sorted: bool = True, return_inverse: bool = False) -> tuple[Tensor, Tensor]:
    """As ``_unique2`` without counts."""
    return aten._unique2.default(x, sorted, return_inverse)[:2]


@composed("unique_dim_consecutive.default")
def unique_dim_consecutive(
    x: Tensor, dim: int, return_inverse: bool = False, return_counts: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``unique_consecutive`` along dim."""
    return aten.unique_consecutive.default(x, return_inverse, return_counts, dim)
