"""Draws as torch tensors: what the engine gives instead of torch's generators (numerics §2, class 5).

All bits are made on the host by ``vtrain.random`` and moved to the device, because integers are the same everywhere and
torch's generators are not. An element of a tensor is named by its flat index in C order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from vtrain.errors import UnsupportedOperation, UsageError
from vtrain.random import (
    Key,
    StreamKey,
    bernoulli_threshold,
    box_muller,
    for_each_chunk,
    permutation,
    randint,
    uint64s,
    uniform24,
    words,
)
from vtrain.random.philox import U32

_UNIFORM_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _positive_unit(pairs: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """``((w >> 11) + 1) * 2^-53``: in (0, 1], exact, and with a logarithm."""
    return ((pairs >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def _float32(what: str, value: float) -> np.float32:
    """A Python scalar as a kernel would take it: rounded once to float32 (numerics §2, class 2)."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if not math.isfinite(rounded):
        raise UsageError(f"{what} is {value!r}; wanted a number that is finite in float32")
    return rounded


class PhiloxSource:
    """Draws of one stream. Has no state: the same (step, site) gives the same tensor whenever it is asked for.

    Two draws of one (step, site) overlap, whatever their kind: give each draw a site of its own.

    Args:
        key: of the stream, or the seed for one that is called "torch".

    Raises:
        UsageError: by any method: step, site or a parameter is out of range.
    """

    def __init__(self, key: Key | int | str) -> None:
        self.key = StreamKey(key, "torch") if isinstance(key, int | str) else key

    def part(self, name: str) -> PhiloxSource:
        """A stream of its own for each name, for draws that take several."""
        low, high = self.key.key
        return PhiloxSource(StreamKey(low | high << 32, name))

    def words(self, step: int, site: int, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """The first n words, their bits as int32 (torch computes little on uint32): int32 (n,)."""
        return torch.from_numpy(words(self.key, step, site, n).view(np.int32)).to(device)

    def uniform(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        low: float,
        high: float,
        step: int,
        site: int,
    ) -> torch.Tensor:
        """Uniform in [low, high), one word an element.

        Defined as: u = (word >> 8) * 2^-24; low and high rounded to float32; d = high - low, t = u * d, r = t + low,
        each one float32 operation, never fused; r rounded once to ``dtype``; and low (so rounded) in place of every r
        that is not below high (so rounded), which happens where the roundings carried r up to it.

        Args:
            dtype: float32, float16 or bfloat16.

        Returns:
            ``dtype``, of the given shape.

        Raises:
            UnsupportedOperation: another dtype: there is none wider than float64 to define it in (numerics §1).
            UsageError: low is above high, or low, high or high - low is not finite in float32, or
                low or high not in ``dtype``.
        """
        if dtype not in _UNIFORM_DTYPES:
            raise UnsupportedOperation(f"uniform draws of {dtype}; wanted one of {_UNIFORM_DTYPES}")
        low32, high32 = _float32("low", low), _float32("high", high)
        if low32 > high32:
            raise UsageError(f"uniform draws from [{low!r}, {high!r}); wanted low <= high")
        width = _float32("high - low", float(high32) - float(low32))
        out = np.empty(math.prod(shape), dtype=np.float32)

        def convert(piece: U32, start: int, stop: int) -> None:
            part = out[start:stop]
            np.multiply(uniform24(piece), width, out=part)
            np.add(part, low32, out=part)

        for_each_chunk(self.key, step, site, out.size, 1, convert)
        drawn = torch.from_numpy(out).to(dtype)
        floor, ceiling = (torch.from_numpy(np.array(bound)).to(dtype) for bound in (low32, high32))
        if not (floor.isfinite() and ceiling.isfinite()):
            raise UsageError(f"uniform draws from [{low!r}, {high!r}); wanted bounds that are finite in {dtype}")
        return torch.where(drawn < ceiling, drawn, floor).reshape(tuple(shape)).to(device)

    def normal(self, shape: Sequence[int], step: int, site: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Standard normal draws, defined by IEEE operations (``vtrain.random.box_muller``) and rounded once to float32.

        Element i takes block i: its first 64-bit word makes u1 = ((w >> 11) + 1) * 2^-53 in (0, 1], its second
        u2 = (w >> 11) * 2^-53 in [0, 1). Both are exact.

        Returns:
            float32, of the given shape.
        """
        out = np.empty(math.prod(shape), dtype=np.float32)

        def convert(piece: U32, start: int, stop: int) -> None:
            pairs = uint64s(piece)
            u2 = (pairs[1::2] >> np.uint64(11)).astype(np.float64) * 2.0**-53
            out[start:stop] = box_muller(_positive_unit(pairs[0::2]), u2)

        for_each_chunk(self.key, step, site, out.size, 4, convert)
        return torch.from_numpy(out).reshape(tuple(shape)).to(device)

    def exponential_parts(
        self, shape: Sequence[int], step: int, site: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """What exponential draws are made of: u in (0, 1], for -ln(u) / rate, which the caller settles.

        Returns:
            ((w >> 11) + 1) * 2^-53 of 64-bit word i for element i: float64, of the given shape.
        """
        out = np.empty(math.prod(shape), dtype=np.float64)

        def convert(piece: U32, start: int, stop: int) -> None:
            out[start:stop] = _positive_unit(uint64s(piece))

        for_each_chunk(self.key, step, site, out.size, 2, convert)
        return torch.from_numpy(out).reshape(tuple(shape)).to(device)

    def bernoulli_mask(
        self, shape: Sequence[int], p: float, step: int, site: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Coins that are True with probability p: word i is below ``bernoulli_threshold(p)``.

        For dropout, p is the probability to *keep*.

        Returns:
            bool, of the given shape.
        """
        threshold = bernoulli_threshold(p)
        out = np.empty(math.prod(shape), dtype=np.bool_)

        def convert(piece: U32, start: int, stop: int) -> None:
            np.less(piece, threshold, out=out[start:stop])  # as a Python integer: 2^32 is no uint32

        for_each_chunk(self.key, step, site, out.size, 1, convert)
        return torch.from_numpy(out).reshape(tuple(shape)).to(device)

    def randint(
        self,
        shape: Sequence[int],
        low: int,
        high: int,
        step: int,
        site: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.int64,
    ) -> torch.Tensor:
        """Integers in [low, high), 64-bit word i for element i, as ``vtrain.random.randint`` defines.

        Returns:
            ``dtype``, of the given shape.

        Raises:
            UnsupportedOperation: ``dtype`` is no integer type.
            UsageError: the range is empty, or does not fit ``dtype``.
        """
        if dtype not in _INTEGER_DTYPES:
            raise UnsupportedOperation(f"integer draws of {dtype}; wanted one of {_INTEGER_DTYPES}")
        info = torch.iinfo(dtype)
        if low < info.min or high > info.max + 1:
            raise UsageError(f"integer draws from [{low}, {high}); wanted a range within {dtype}")
        randint(np.empty(0, dtype=np.uint32), low, high)  # a bad range is an error for an empty tensor too
        out = np.empty(math.prod(shape), dtype=np.int64)

        def convert(piece: U32, start: int, stop: int) -> None:
            out[start:stop] = randint(piece, low, high)

        for_each_chunk(self.key, step, site, out.size, 2, convert)
        return torch.from_numpy(out).to(dtype).reshape(tuple(shape)).to(device)

    def randperm(self, n: int, step: int, site: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """A permutation of 0..n-1, as ``vtrain.random.permutation`` defines: int64 (n,)."""
        return torch.from_numpy(permutation(self.key, step, site, n)).to(device)
