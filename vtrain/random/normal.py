"""Normal draws from IEEE operations alone: the same bits on every machine, with nothing to log (numerics §2, class 5).

Box and Muller 1958: sqrt(-2 ln u1) * cos(2 pi u2). numpy's add, subtract, multiply, divide and sqrt of float64 are the
IEEE operations, each a call of its own, so that none are fused; its log and cos are not used. The sequence below *is*
the definition; its error against the exact value is below 2^-49 relative to the radius (a test measures it), far below
the float32 that it is rounded to.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

# ln 2 in two parts: the first has 32 trailing zeros, so that its product with an exponent is exact (fdlibm, e_log.c).
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
# ln((1 + s) / (1 - s)) = 2s (1 + s^2/3 + s^4/5 + ...); |s| <= 3 - 2 sqrt 2, so the first term left out is below 2^-58.
_LOG = [1.0 / k for k in range(21, 0, -2)]
# Taylor series of cos and sin on [-pi/4, pi/4]; the first terms left out are below 2^-59.
_COS = [(-1.0) ** (k // 2) / math.factorial(k) for k in range(18, -1, -2)]
_SIN = [(-1.0) ** (k // 2) / math.factorial(k) for k in range(17, 0, -2)]


def _polynomial(coefficients: list[float], x: F64) -> F64:
    """Horner's scheme, highest coefficient first; a product and a sum at a time."""
    y = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        np.multiply(y, x, out=y)
        np.add(y, c, out=y)
    return y


def log(u: F64) -> F64:
    """Natural logarithm of u in (0, 1]."""
    m, e = np.frexp(u)
    low = m < math.sqrt(0.5)
    m = np.where(low, m + m, m)
    k = e - low
    f = m - 1.0
    s = f / (m + 1.0)
    near = (s + s) * _polynomial(_LOG, s * s)
    return k * _LN2_HIGH + (k * _LN2_LOW + near)


def cos_turns(u: F64) -> F64:
    """cos(2 pi u) of u in [0, 1): reduced exactly to an eighth of a turn."""
    quarter = np.floor(u * 4.0 + 0.5)
    t = (u - quarter * 0.25) * (2.0 * math.pi)
    square = t * t
    c, s = _polynomial(_COS, square), t * _polynomial(_SIN, square)
    q = quarter.astype(np.int64) & 3
    return np.where(q == 0, c, np.where(q == 1, -s, np.where(q == 2, -c, s)))


def box_muller(u1: F64, u2: F64) -> F64:
    """sqrt(-2 ln u1) * cos(2 pi u2).

    Args:
        u1: float64 in (0, 1].
        u2: float64 in [0, 1), the same shape.

    Returns:
        float64, the same shape; standard normal if u1 and u2 are uniform.
    """
    return np.sqrt(log(u1) * -2.0) * cos_turns(u2)
