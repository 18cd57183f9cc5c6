"""Error constants: kappa of each kind of operation, with its derivation or source (numerics §3).

Everywhere, ``u`` is the unit roundoff of the compute type C, and a scale ``s`` is meant with

    |y - exact| <= kappa * u * s + kappa * (half the least number of C)                                 (1)

for every faithful evaluation, in any order, with or without fused multiply-add. The doubt interval has half-width
``tau * s + eta`` with ``tau = 2 * kappa * u``, since trainer and auditor may err in opposite directions; where s is 0
it is 0: then all terms are zero or every order is exact, and nothing rounds or underflows.

A bound that is as wide as the values is none. Sums have at most ``LONGEST`` terms, so that kappa u < 2^-8 in float32,
and factors lie in ``FACTORS``, so that nothing in float64 leaves its range.
"""

from __future__ import annotations

from vtrain.errors import UnsupportedOperation

TENSOR_CORE = "tensor_core"  # float32 sums of 16-bit products on matrix units (``accumulators``)
U = {"float32": 2.0**-24, "float64": 2.0**-53, TENSOR_CORE: 2.0**-24}

# Smallest positive number of C: one operation that underflows errs by at most half of it, absolutely. Products of
# float32 values can't underflow in float64 (2^-298 against 2^-1074), so there eta is zero.
UNDERFLOW = {"float32": 2.0**-149, "float64": 0.0, TENSOR_CORE: 2.0**-149}

# Longest sum of each C. float32: at 2^15 terms the half-width of doubt is 2^-8 of norm times norm, and a sum of random
# terms of that length is itself about 2^-7.5 of it. float64: INFLATE has room for norms over so many elements. On
# matrix units a term counts four times; longer sums are computed elsewhere.
LONGEST = {"float32": 2**15, "float64": 2**31, TENSOR_CORE: 2**13 - 8}

# Room for the roundings in norms, in tau * r * c and in y - w, y + w themselves: each is a few u of float64 relative
# to a quantity below w / kappa. A norm over n <= 2^31 elements is right to n * 2^-54 <= 2^-23, two of them to 2^-22,
# and a sum of as many magnitudes to 2^-22.
INFLATE = 1.0 + 2.0**-20

# Magnitudes of factors (alpha, beta) other than 0. With operands of float32's range, 2^-149 to 2^128, no product of two
# of them and a factor falls below 2^-998, where float64 would lose bits, and no sum of 2^31 of them passes 2^987.
FACTORS = (2.0**-700, 2.0**700)


def sum_kappa(n: int, compute: str, extra: int = 0) -> float:
    """kappa of a sum of ``n`` products (or terms) in any order: gamma_n / u = n / (1 - n u).

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Lemma 3.1 and (3.5): any order of a sum of n
    products obeys |y - exact| <= gamma_n * sum|a||b|; fused multiply-add only removes roundings. ``extra`` counts
    further roundings after the sum (a bias, a scaling). One more unit covers y - w and y + w, which are rounded to
    float64 when they are formed.

    On matrix units a block of L products errs by (L + 1) 2^(24-F) + 2 units of u (``accumulators``), 12 for the worst,
    in which L is 4: 3 n. A library may split a sum into parts of at least 16 products, which it adds in float32:
    n / 16 + 1; and the last block may not be full: 12 more. 4 n + 16 covers that.

    Args:
        n: length of the sum.
        compute: dtype name of C.
        extra: further roundings applied to the sum.

    Raises:
        UnsupportedOperation: a sum of more than ``LONGEST`` terms.
    """
    if n > LONGEST[compute]:
        raise UnsupportedOperation(f"a sum of {n} terms in {compute}; at most {LONGEST[compute]} have a useful bound")
    k = (4 * n + 16 if compute == TENSOR_CORE else n) + extra + 1
    return k / (1.0 - k * U[compute])


def fit_float32(alpha: float, beta: float) -> bool:
    """Whether alpha * (sum of products) + beta * bias keeps (1) in float32: kappa and the least number as they are.

    A factor is rounded to float32 first, relatively only where it is normal there. An alpha above 1 would multiply what
    the products lost to underflow, and so the second part of (1).
    """
    least = 2.0**-126
    return (alpha == 0 or least <= abs(alpha) <= 1) and (beta == 0 or least <= abs(beta) <= 1 / least)


def product_kappa(k: int, compute: str) -> float:
    """kappa of alpha * (sum of ``k`` products) + beta * bias: alpha's own rounding, its product's, and the sum's."""
    return sum_kappa(k, compute, 3)


def forward_kappa(depth: int, compute: str) -> float:
    """kappa of a convolution's output, a sum of ``depth`` products and a bias."""
    return sum_kappa(depth, compute, 1)


def gradient_kappa(terms: int, compute: str) -> float:
    """kappa of a convolution's gradients, sums of ``terms`` products."""
    return sum_kappa(terms, compute)


def settled_sum_kappa(n: int) -> float:
    """kappa of a sum of ``n`` terms (or exact squares) in float64 over a divisor."""
    return sum_kappa(n, "float64", 2)


# Elementwise functions in float64, s = |y| unless said otherwise. The constant covers, with room:
#   SLEEF (PyTorch's vectorised CPU functions): below 1.0 ulp = 2 u (Shibata and Petrogalli 2020, "u10" functions);
#   Intel VML, HA mode: below 1 ulp (oneMKL vector statistics documentation);
#   glibc libm: 1-2 ulp for exp, log, sin, cos, tanh, erf, pow, 5 for erfc (glibc manual, "Known maximum errors in math
#   functions");
#   CUDA math library, float64: 1-2 ulp for these functions, 5 for erfc (CUDA C++ programming guide, table of
#   standard functions); and the rounding of y - w, y + w.
FUNCTION_KAPPA = 16.0


def tau_certified(kappa: float, compute: str) -> float:
    """Half-width of the doubt in units of s, complete by proof (numerics §3)."""
    return 2.0 * kappa * U[compute] * INFLATE


def eta_certified(kappa: float, compute: str) -> float:
    """Absolute part of the half-width: what ``kappa`` underflowing operations can add on either side, twice over."""
    return 2.0 * kappa * UNDERFLOW[compute]
