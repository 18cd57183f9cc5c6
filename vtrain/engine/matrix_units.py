"""Products of 16-bit operands on matrix units (tensor cores), in logged runs that allow for them (numerics §3).

Whether a run allows for them is its policy's choice and decides the bound, on every machine. What computes a product
then is each machine's own: units where the device has them and they keep the bound, else float32 by IEEE arithmetic,
which keeps it anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vtrain.engine.definition import dtype_name
from vtrain.engine.pins import full_precision
from vtrain.errors import BackendError
from vtrain.kernels import device
from vtrain.policy import Policy
from vtrain.rounding.accumulators import modelled_sums, sampled
from vtrain.rounding.bounds import LONGEST, TENSOR_CORE, UNDERFLOW, U, product_kappa
from vtrain.rounding.formats import BFLOAT16, FLOAT16, Format

Tensor = torch.Tensor
_SIXTEEN = (torch.bfloat16, torch.float16)


def compute_name(policy: Policy, c: torch.dtype, terms: int) -> str:
    """By which constants of ``bounds`` sums of ``terms`` products in C are bounded."""
    units = policy.accumulator == TENSOR_CORE and c is torch.float32 and terms <= LONGEST[TENSOR_CORE]
    return TENSOR_CORE if units else dtype_name(c)


def product(a: Tensor, b: Tensor, fmt: Format) -> Tensor | None:
    """a @ b in float32 on this device's matrix units; None where it has none, or an operand is no 16-bit number.

    Args:
        a, b: ``(m, k)`` and ``(k, n)``, or with a batch before; bfloat16 or float16, or float32 that hold values of
            ``fmt``, as far as nothing else came into the step.
        fmt: of the result.

    Raises:
        BackendError: its units break the bound.
    """
    backend = device.of(a.device) if device.has_kernels(a.device) else None
    if backend is None or backend.matrix_units(a.device) is None:
        return None
    narrow = _narrow(a, b, fmt)
    if narrow is None:
        return None
    check(a.device)
    return backend.matrix_product(*narrow)


def _narrow(a: Tensor, b: Tensor, fmt: Format) -> tuple[Tensor, Tensor] | None:
    if a.dtype in _SIXTEEN:
        return a, b
    to = torch.bfloat16 if fmt.p <= BFLOAT16.p else torch.float16
    if to is torch.float16 and fmt.emax > FLOAT16.emax:
        return None  # 9 to 11 bits with float32's exponents: no type of the units'
    cast = a.to(to), b.to(to)
    same = [(t.to(x.dtype) == x).all() for t, x in zip(cast, (a, b), strict=True)]
    return cast if bool(same[0] & same[1]) else None


def modelled(a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """a @ b as the worst units of all give it, at evenly spread elements, NaN elsewhere: float32 of ``shape``."""
    batch, m, n = (1, *shape)[-3:]
    where = sampled(batch * m * n, a.device)
    rows, cols = a.reshape(batch * m, -1), b.mT.reshape(batch * n, -1)
    i = where // n
    sums = modelled_sums(rows[i], cols[i // m * n + where % n])
    out = torch.full((batch * m * n,), float("nan"), dtype=torch.float32, device=a.device)
    out[where] = sums.to(torch.float32)
    return out.view(shape)


# ---- trying to break the bound ---------------------------------------------------------------------------------------
def hard_operands(k: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns whose sums lose most on units that cut: ``(8, k)`` and ``(k, 8)`` in ``dtype``.

    One large term, and others just below what alignment keeps beside it, or what the accumulator keeps; growing and
    shrinking terms; terms that cancel; all of one sign.
    """
    i = torch.arange(k, dtype=torch.float64)
    below = 2.0 - 2.0**-7  # the largest bfloat16 below 2
    for depth in (23, 24, 25, 26):  # of the small terms below 1, the leading bit of the large one
        for first in (0, k // 2, k - 1):
            left = torch.full((k,), below * 2.0**-12, dtype=torch.float64)
            right = torch.full((k,), 2.0 ** (11 - depth), dtype=torch.float64)
            left[first] = right[first] = 1.0
            yield _spread(left, dtype), _spread(right, dtype).mT
    for left in (1 + i % 128 / 128, torch.ldexp(1 + i % 127 / 128, (i * 16 / k).floor() - 8)):
        signs = 1 - 2 * (i % 2)
        for right in (left, left.flip(0), left * signs, left.flip(0) * signs):
            yield _spread(left, dtype), _spread(right, dtype).mT


def _spread(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Eight rotations of a vector, so that each place of a block gets each term; the diagonal keeps the pairs."""
    return torch.stack([x.roll(shift) for shift in range(8)]).to(dtype)


def worst_ratio(where: torch.device) -> float:
    """Largest error of a device's units over the bound that runs rely on; above 1 it is broken, and so by a NaN."""
    backend, worst = device.of(where), torch.zeros((), dtype=torch.float64)
    for dtype in _SIXTEEN:
        for k in (1, 7, 16, 64, 1000, LONGEST[TENSOR_CORE]):
            kappa = product_kappa(k, TENSOR_CORE)
            for a, b in hard_operands(k, dtype):
                found = backend.matrix_product(a.to(where), b.to(where)).cpu().double()
                wide_a, wide_b = a.double(), b.double()
                s = wide_a.norm(dim=1).unsqueeze(1) * wide_b.norm(dim=0)
                bound = kappa * (U[TENSOR_CORE] * s + UNDERFLOW[TENSOR_CORE])
                worst = torch.maximum(worst, ((found - wide_a @ wide_b).abs() / bound).max())  # a NaN stays
    return float(worst)


@functools.cache
def check(where: torch.device) -> float:
    """Check once a process that a device's units keep the bound; gives the worst ratio found.

    Raises:
        BackendError: they don't.
    """
    # As for any check of a device, it may be a step, or a factory under torch.device(...), that asks first.
    with torch._C.DisableTorchFunction(), _disable_current_modes(), full_precision(), torch.no_grad():
        worst = worst_ratio(where)
    if not worst <= 1:
        raise BackendError(
            f"the matrix units of {where} ({device.described(where)}) err by {worst:.3g} of the bound that "
            "accumulator='tensor_core' relies on; use accumulator='float32', or another device"
        )
    return worst


def note(where: torch.device) -> str:
    """What a device's matrix units are, for people.

    Raises:
        BackendError: as ``check``.
    """
    found = device.of(where).matrix_units(where)
    if found is None:
        return "none that a bound is known for; accumulator='tensor_core' computes in float32 here"
    return f"blocks of {found.block}, {found.bits} bits; at worst {check(where):.2f} of the bound in a search"
