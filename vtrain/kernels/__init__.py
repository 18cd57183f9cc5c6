"""Kernels of the host target, called on tensors: dtype, device and layout are checked here, once.

On other devices ``vtrain.rounding.generic`` does the same with tensor operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vtrain.kernels import _host  # type: ignore[attr-defined]
from vtrain.rounding.formats import Format
from vtrain.rounding.scale import Scale

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
Sink = _host.Sink
ZEROS, ENDLESS = -1, -2  # what Sink.settle and Sink.add return in place of a number of entries (host/module.cpp)
FEW_ZEROS = 32  # entries of sums that may be of zeros alone, up to which they are logged (host/module.cpp)
ENCODINGS = {"sparse": 0, "ternary": 1, "auto": 2}


def variant() -> str:
    """Instruction set of the kernels in use: generic, avx2 or avx512 (forced by VTRAIN_CPU)."""
    return str(_host.variant())


SettledGeometry = tuple[int, bool, int, int, int, int, int, bool]
ScaleKey = tuple[float, float, int, int, int, int, bool]


def _pointer(t: torch.Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def scale_key(scale: Scale, tau: float, eta: float) -> ScaleKey:
    """A scale as the kernels take it: tau, eta, addresses of the vectors (which must outlive the call), relative.

    Raises:
        ValueError: a vector is not float64, contiguous and as long as the scale's shape says.
    """
    batch, rows, cols = scale.shape
    lengths = (
        (scale.row, batch * rows),
        (scale.col, batch * cols),
        (scale.bias, cols),
        (scale.full, batch * rows * cols),
    )
    for vector, length in lengths:
        if vector is not None and not (
            vector.numel() == length and vector.dtype is torch.float64 and vector.is_contiguous()
        ):
            raise ValueError(f"a scale of shape {scale.shape} with a vector {tuple(vector.shape)} of {vector.dtype}")
    vectors = (_pointer(scale.row), _pointer(scale.col), _pointer(scale.bias), _pointer(scale.full))
    return (tau, eta, *vectors, scale.relative)


def geometry(y: torch.Tensor, out: torch.Tensor, shape: tuple[int, int, int], signed: bool = True) -> SettledGeometry:
    """Address and shape of a settled tensor as the kernels take them.

    Args:
        signed: whether a zero keeps its sign; otherwise all zeros become +0.

    Raises:
        ValueError: y is not a contiguous CPU tensor of float32 or float64, or out does not match it.
    """
    if y.dtype is torch.float64:
        wide = True
    elif y.dtype is torch.float32:
        wide = False
    else:
        raise ValueError(f"y is {y.dtype}, want float32 or float64")
    if not (y.is_contiguous() and out.is_contiguous() and y.numel() == out.numel() == shape[0] * shape[1] * shape[2]):
        raise ValueError(f"y {tuple(y.shape)} and out {tuple(out.shape)} must be contiguous and of shape {shape}")
    return y.data_ptr(), wide, out.data_ptr(), *shape, torch.get_num_threads(), signed


def round_to(y: torch.Tensor, out: torch.Tensor, fmt: Format, signed: bool = True) -> torch.Tensor:
    """Round y (float32 or float64, contiguous, CPU) to ``fmt`` into ``out``; ties to even."""
    _host.round_only(geometry(y, out, (1, 1, y.numel()), signed), fmt.key)
    return out


@dataclass(frozen=True)
class Replayed:
    """What replaying one site's log found.

    Attributes:
        corrections: entries whose value is not the rounding of the auditor's own.
        fault: 0, or a value of ``enum Fault`` (host/codes.hpp): the first thing wrong.
        index: flat index of the element at fault.
        y, w, logged: there, the auditor's value and half-width, and the logged value.
    """

    corrections: int
    fault: int
    index: int
    y: float
    w: float
    logged: float


def replay(
    geometry: SettledGeometry, fmt: Format, scale: ScaleKey,
    site: tuple[int, int, int, int], gaps: bytes, codes: bytes, values: bytes,
) -> Replayed:  # fmt: skip
    """Round y with a site's logged decisions, each checked against the half-width (numerics §5).

    Args:
        site: numel, encoding, short codes, whole values, as its row of the log says; hostile, as are the bytes.
    """
    return Replayed(*_host.replay(geometry, fmt.key, scale, site, gaps, codes, values))


_NORM, _SUM, _SQUARES = 0, 1, 2


def _reduce(op: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x as ``(batch, outer, rows, cols)``, reduced over outer and cols: ``(batch, rows)``."""
    y = torch.empty((x.shape[0], x.shape[2]), dtype=torch.float64)
    s = torch.empty_like(y)
    if y.numel():
        layout = TYPES[x.dtype], tuple(x.shape), x.stride()
        _host.reduce(op, x.data_ptr(), *layout, y.data_ptr(), s.data_ptr(), torch.get_num_threads())
    return y, s


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x[None, None] if x.dim() == 2 else x[:, None]


def norms(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norms along the last dimension.

    Args:
        x: ``(rows, cols)`` or ``(batch, rows, cols)``, float32, bfloat16 or float64, CPU, any strides >= 0.

    Returns:
        float64 of x's shape without the last dimension; relative error below cols * 2^-53.
    """
    return _reduce(_NORM, _rows(x))[0].view(x.shape[:-1])


def sums(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums along the last dimension, and their error scales: sums of magnitudes, or 0 where every order is exact.

    Both float64; x as in ``norms``.
    """
    y, s = _reduce(_SUM, _rows(x))
    return y.view(x.shape[:-1]), s.view(x.shape[:-1])


def squares(x: torch.Tensor) -> torch.Tensor:
    """Sums of squares along the last dimension, float64; x as in ``norms``."""
    return _reduce(_SQUARES, _rows(x))[0].view(x.shape[:-1])


def channel_sums(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``sums`` of x ``(n, channels, area)`` over n and area: float64 ``(channels,)``."""
    y, s = _reduce(_SUM, x[None])
    return y[0], s[0]


def channel_squares(x: torch.Tensor) -> torch.Tensor:
    """``squares`` of x ``(n, channels, area)`` over n and area: float64 ``(channels,)``."""
    return _reduce(_SQUARES, x[None])[0][0]


Geometry = tuple[int, ...]  # n, c, h, w, kh, kw, stride (2), padding (2), dilation (2), oh, ow: see host/columns.hpp


def _array(t: torch.Tensor) -> tuple[int, int]:
    """Address and number of elements: the kernels compare it with what the geometry says."""
    if not t.is_contiguous() or t.device.type != "cpu":
        raise ValueError(
            f"an operand {tuple(t.shape)} on {t.device}, strides {t.stride()}; want a contiguous one in memory"
        )
    return t.data_ptr(), t.numel()


def to_columns(x: torch.Tensor, cols: torch.Tensor, g: Geometry) -> None:
    """Patches of x ``(n, c, h, w)`` as ``(c * kh * kw, n * oh * ow)`` in C, both contiguous.

    Raises:
        ValueError: operands that are not as the geometry says; so do the others.
    """
    wide = _is_wide(cols)
    _host.columns(g, TYPES[x.dtype], _array(x), wide, _array(cols), torch.get_num_threads())


def from_columns(cols: torch.Tensor, x: torch.Tensor, g: Geometry) -> None:
    """The transpose of ``to_columns``: x becomes the sum of the columns' elements that read it, in C."""
    if cols.dtype is not x.dtype:
        raise ValueError(f"columns of {cols.dtype} into {x.dtype}")
    _host.image(g, _is_wide(cols), _array(cols), _array(x), torch.get_num_threads())


def tap_squares(x: torch.Tensor, g: Geometry) -> torch.Tensor:
    """Sum of squares of what each kernel tap reads of x ``(n, c, h, w)``, contiguous: float64 ``(c, kh * kw)``."""
    out = torch.empty((g[1], g[4] * g[5]), dtype=torch.float64)
    _host.taps(g, TYPES[x.dtype], _array(x), _array(out), torch.get_num_threads())
    return out


def _is_wide(t: torch.Tensor) -> bool:
    if t.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"columns of {t.dtype}, want float32 or float64")
    return t.dtype is torch.float64


Block = tuple[int, int, int]  # addresses of a copy and of what it is a copy of, bytes


def block(mine: torch.Tensor, theirs: torch.Tensor) -> Block:
    """Two tensors' memory, for ``copy_blocks`` and ``differing_blocks``; they must outlive the call.

    Raises:
        ValueError: not contiguous tensors in host memory of one size.
    """
    size = theirs.nbytes
    if not (mine.is_cpu and theirs.is_cpu and mine.is_contiguous() and theirs.is_contiguous() and mine.nbytes == size):
        raise ValueError(
            f"{tuple(mine.shape)} of {mine.dtype} on {mine.device} and {tuple(theirs.shape)} of {theirs.dtype} on "
            f"{theirs.device}; want contiguous tensors of one size in memory"
        )
    return mine.data_ptr(), theirs.data_ptr(), size


def copy_blocks(blocks: Sequence[Block]) -> None:
    """Copy the second memory of each block into the first, all in one parallel region."""
    _host.copy(blocks, torch.get_num_threads())


def differing_blocks(blocks: Sequence[Block]) -> list[int]:
    """Numbers, in order, of the blocks whose memories differ in any byte."""
    return list(_host.differing(blocks, torch.get_num_threads()))
