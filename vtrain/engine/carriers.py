"""What multiplies the integers of ``matmul="integer"``: any library's product that is exact (numerics §10).

``int8``: signed bytes by ``torch._int_mm``, 32-bit sums. ``float64``: whole numbers below 2^53 by ``torch.bmm``, whose
sums are exact in every order. Both give the same integers; which is quicker depends on the machine.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F

from vtrain.errors import BackendError

Tensor = torch.Tensor
CARRIERS = ("int8", "float64")
VARIABLE = "VTRAIN_INTEGER"
# Shapes (m, k, n) of the check; odd ones take other paths of a library than multiples of its tiles.
_SHAPES = ((64, 256, 64), (17, 33, 19), (128, 1024, 32), (1, 64, 8), (40, 4096, 24))


def int_mm(a: Tensor, b: Tensor, ready: Tensor | None = None) -> Tensor:
    """a @ b of signed bytes ``(m, k)``, ``(k, n)``, in int32; exact while k * 2^14 is below 2^31.

    ``ready`` is memory that the result may lie in: on a CPU fresh memory costs more than what is done with it.

    On CUDA torch wants more than 16 rows and multiples of 8 otherwise: zeros fill up. There the right factor's columns
    lie in memory one after the other, which every generation's matrix units take.
    """
    if a.device.type == "cpu":
        return _with_onednn(a, b, ready)
    wide_a, wide_b = filled(a, b)
    return torch._int_mm(wide_a.contiguous(), wide_b.t().contiguous().t())[: a.shape[0], : b.shape[1]]


def filled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Operands of a product with zeros around them, so that torch takes them on CUDA."""
    rows, terms, columns = max(17, a.shape[0]) - a.shape[0], -a.shape[1] % 8, -b.shape[1] % 8
    if rows or terms:
        a = F.pad(a, (0, terms, 0, rows))
    if columns or terms:
        b = F.pad(b, (0, columns, 0, terms))
    return a, b


def _with_onednn(a: Tensor, b: Tensor, ready: Tensor | None) -> Tensor:
    """The product with oneDNN, which steps switch off for layers: without it torch multiplies one by one."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(True)
    try:
        return torch._int_mm(a, b) if ready is None else torch._int_mm(a, b, out=ready)
    finally:
        torch._C._set_mkldnn_enabled(before)


def _extremes(m: int, k: int, n: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Operands whose partial sums are as large as they get: vector products of bytes in pairs saturate there."""
    ends = torch.tensor([127, -128, -127, 126], dtype=torch.int8)
    made = [(ends[i].expand(m, k), ends[j].expand(k, n)) for i in range(2) for j in range(2)]
    i, j = torch.arange(m * k) * 2654435761 >> 9, torch.arange(k * n) * 2246822519 >> 9
    made.append((ends[i % 4].view(m, k), ends[j % 4].view(k, n)))
    return [(a.contiguous().to(device), b.contiguous().to(device)) for a, b in made]


@functools.cache
def int8_is_exact(device: torch.device) -> bool:
    """Whether this device's product of bytes has the integers' bits at the extremes, or saturates (or is missing)."""
    for m, k, n in _SHAPES:
        for a, b in _extremes(m, k, n, device):
            wanted = a.double() @ b.double()
            try:
                for right in (b, b.t().contiguous().t()):
                    if not torch.equal(int_mm(a, right).double(), wanted):
                        return False
            except RuntimeError:  # a device without it
                return False
    return True


@functools.cache
def float64_is_exact(device: torch.device) -> bool:
    """Whether float64 products of integers are exact up to 2^53."""
    for m, k, n in _SHAPES:
        a = (torch.arange(m * k) * 2654435761 % (1 << 21)).view(m, k)
        b = (torch.arange(k * n) * 2246822519 % (1 << 20)).view(k, n)
        if not torch.equal((a.double().to(device) @ b.double().to(device)).cpu(), (a @ b).double()):
            return False
    return True


def note(device: torch.device) -> str:
    """What multiplies on a device under ``matmul="integer"``, and what that costs; for people."""
    name = carrier(device)
    if name == "int8":
        return "by int8, which is exact here"
    why = "" if int8_is_exact(device) else ", as int8 products saturate here"
    return f"by float64{why}: slow, two to four float32 products' time; for auditing rather than for training"


_EXACT: dict[str, Callable[[torch.device], bool]] = {"int8": int8_is_exact, "float64": float64_is_exact}


@functools.cache
def carrier(device: torch.device) -> str:
    """What multiplies on a device: bytes where their product is exact, else float64; or what VTRAIN_INTEGER says.

    Raises:
        BackendError: it is not exact here.
    """
    forced = os.environ.get(VARIABLE, "")
    if forced not in ("", *CARRIERS):
        raise BackendError(f"{VARIABLE} is {forced!r}; want one of {', '.join(CARRIERS)}")
    for name in (forced,) if forced else CARRIERS:
        if _EXACT[name](device):
            return name
    raise BackendError(f"products of integers ({forced or 'int8 and float64'}) are not exact on {device}")
