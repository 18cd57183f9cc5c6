"""Numbers to try, and bits compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Array = np.ndarray
F32, F64 = np.float32, np.float64


def quietly(f: Callable[..., Any]) -> Callable[..., Any]:
    """f without NumPy's warnings of overflow and of operations on infinities."""

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(*args, **kwargs)

    return wrapped


def assert_same(got: torch.Tensor, want: Array, what: str = "") -> None:
    """Equal shape, type and bits; any NaN equals any other."""
    have = got.detach().cpu().numpy()
    assert have.shape == want.shape and have.dtype == want.dtype, (what, have.shape, want.shape, have.dtype, want.dtype)
    words = {4: np.uint32, 8: np.uint64}[want.dtype.itemsize]
    a, b = np.ascontiguousarray(have).view(words), np.ascontiguousarray(want).view(words)
    wrong = np.argwhere((a != b) & ~(np.isnan(have) & np.isnan(want)))
    at = tuple(wrong[0]) if len(wrong) else ()
    assert not len(wrong), (
        f"{what}: {len(wrong)} differ, first at {at}: {float(have[at]).hex()} {float(want[at]).hex()}"
    )


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 1.0]


def numbers(*shape: int, seed: int = 0, spread: int = 16, special: float = 0.0) -> torch.Tensor:
    """Normal variates times powers of two up to 2^spread either way; a share of them special numbers."""
    rng = np.random.default_rng([seed, *shape])
    x = np.ldexp(rng.standard_normal(shape), rng.integers(-spread, spread + 1, shape)).astype(F32)
    x = np.where(rng.random(shape) < special, rng.choice(np.array(SPECIAL, F32), shape), x)
    return torch.from_numpy(x)


def strange(*shape: int, seed: int = 0) -> torch.Tensor:
    """As ``numbers`` across the whole range of float32, subnormals and infinities included, a twentieth special."""
    rng = np.random.default_rng([seed, *shape])
    with np.errstate(over="ignore"):
        x = np.ldexp(rng.standard_normal(shape), rng.integers(-150, 128, shape)).astype(F32)
    return torch.from_numpy(np.where(rng.random(shape) < 0.05, rng.choice(np.array(SPECIAL, F32), shape), x))


def half_way(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (1, n, 2) and (1, 2, 1) whose sums lie beside the middle of two floats, too close to it for float64.

    A float with an odd last bit, plus or minus half a unit of that bit less 2^-46 of it: the float itself is nearest,
    but from the middle, which float64 makes of the sum, one rounds to an even last bit.
    """
    rng = np.random.default_rng([seed, n])
    odd, unit = 2 * rng.integers(2**22, 2**23, n) + 1, np.ldexp(1.0, rng.integers(-90, 90, n))
    signs = rng.choice([-1.0, 1.0], (2, n))
    a = np.stack([signs[0] * odd * unit, signs[1] * unit / 2 * (1 + 2.0**-23)], 1).astype(F32)
    return torch.from_numpy(a)[None], torch.tensor([[[1.0], [1 - 2.0**-23]]])


def array(t: torch.Tensor | None) -> Array | None:
    """The tensor's values in an array of its own."""
    return None if t is None else np.array(t.numpy())
