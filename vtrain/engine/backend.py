"""What this machine is, and whether its arithmetic keeps the contract (numerics §2, §3, §7)."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vtrain import kernels, searchpath
from vtrain.engine.pins import full_precision
from vtrain.errors import BackendError
from vtrain.kernels import device, nvrtc, scalars, selftest
from vtrain.profiles import DEVICE, profile
from vtrain.rounding import generic
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32

CPU = torch.device("cpu")


def _hard_vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of float32 whose sums, products and quotients are ties, subnormals or at binade edges."""
    special = [
        0.0, -0.0, 1.0, -1.0, 2.0**-149, 2.0**-126, 2.0**-126 - 2.0**-149, 2.0**-127, 2.0**-75, 3 * 2.0**-150 * 2,
        1 + 2.0**-23, 1 - 2.0**-24, 2 - 2.0**-23, 2.0**24, 2.0**24 + 2, 2.0**127, (2 - 2.0**-23) * 2.0**127, 1 / 3, 3.0,
        2.0**-24, 2.0**-25, 3 * 2.0**-25, 0.1, 1e-38, 1e38, float("inf"), float("-inf"), float("nan"), 7.0, 1e-45,
    ]  # fmt: skip
    x = torch.tensor(special, dtype=torch.float32)
    bits = (torch.arange(4096, dtype=torch.int64) * 2654435761 % 2**32).to(torch.int32)
    y = torch.cat([x, bits.view(torch.float32)])
    pairs = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(y)))
    return x[pairs[:, 0]], y[pairs[:, 1]]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return selftest.same_bits(a.cpu(), b)


def arithmetic_report() -> dict[str, bool]:
    """Checks of the CPU by name, True if kept: native operations round correctly, keep subnormals, no fast modes."""
    b = _hard_vectors()[1]
    report = _native_report(CPU)
    wide = b.double()
    report["subnormals are kept (torch.set_flush_denormal(False))"] = report.pop(_SUBNORMALS)
    out = torch.empty_like(b)
    report["kernels round as tensor operations do"] = _same(kernels.round_to(wide, out, FLOAT32), b)
    report["Python's ** and math, and NumPy's functions, are ours while a run is open"] = not scalars.missing()
    return report


def device_report(where: torch.device) -> dict[str, bool]:
    """The same of another device; and its kernels, where it has any, give the host's bits.

    Raises:
        BackendError: its kernels can't be launched at all.
    """
    with torch.no_grad():
        return {**_native_report(where), **(selftest.report(where) if device.has_kernels(where) else {})}


def device_reports() -> dict[str, dict[str, bool]]:
    """``device_report`` of every device beside the CPU, by its name; a device that can't be used keeps nothing."""
    found = {}
    for where in device.present():
        try:
            found[str(where)] = device_report(where)
        except BackendError as error:
            found[str(where)] = {str(error): False}
    return found


_SUBNORMALS = "subnormals are kept"


def _native_report(where: torch.device) -> dict[str, bool]:
    """Checks of a device's own operations, against the CPU's in float64, rounded."""
    a, b = _hard_vectors()
    wide_a, wide_b = a.double(), b.double()
    on = [t.to(where) for t in (a, b)]
    report = {}
    for name, op in (("add", torch.add), ("sub", torch.sub), ("mul", torch.mul), ("div", torch.div)):
        report[f"{name} is correctly rounded"] = _same(op(*on), op(wide_a, wide_b).to(torch.float32))
    for name, op, single in (("add", torch.add, float.__add__), ("mul", torch.mul, float.__mul__)):
        report[f"float64 {name} is Python's"] = _as_python(op, single, wide_a / 3, wide_b / 7, where)
    half = a.to(torch.bfloat16), b.to(torch.bfloat16)
    for name, op in (("add", torch.add), ("mul", torch.mul), ("div", torch.div)):
        exact = generic.round_to(op(half[0].double(), half[1].double()), BFLOAT16)
        report[f"bfloat16 {name} is correctly rounded"] = _same(op(*(t.to(where) for t in half)), exact)
    for fmt in (BFLOAT16, FLOAT16):
        cast = on[0].to(generic.container(fmt))
        report[f"float32 to {fmt.name} rounds to even"] = _same(cast, generic.round_to(wide_a, fmt))
    narrow = wide_b.to(where).to(torch.float32)
    report["float64 to float32 rounds to even"] = _same(narrow, generic.round_to(wide_b, FLOAT32))
    tiny = torch.full((64,), 2.0**-140, device=where)
    # as integers: a comparison of floats would flush both sides; 2^-141 is 2^8 times the least one
    report[_SUBNORMALS] = bool(((tiny * 0.5).view(torch.int32) == 1 << 8).all())
    report["matrix products are not reduced"] = _product_is_exact(where)
    return report


def _as_python(
    op: Callable[..., torch.Tensor], single: Callable[[float, float], float], a: torch.Tensor, b: torch.Tensor,
    where: torch.device,
) -> bool:  # fmt: skip
    """Whether float64 vector code gives what the processor's single operations give, on some of the pairs."""
    a, b = a[::61], b[::61]
    wanted = [single(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return _same(op(a.to(where), b.to(where)), torch.tensor(wanted, dtype=torch.float64))


def _product_is_exact(where: torch.device) -> bool:
    """Integers below 2^24 survive a float32 product: TF32 and BF16 reductions lose them."""
    a = torch.full((64, 64), 2049.0, device=where)
    b = torch.eye(64, device=where) * 4095.0
    return bool((a @ b == 2049.0 * 4095.0).all())


@functools.cache
def check_arithmetic() -> None:
    """Check once a process that native operations keep the contract.

    Raises:
        BackendError: names the checks that fail.
    """
    failed = [name for name, kept in arithmetic_report().items() if not kept]
    if failed:
        raise BackendError("this machine's arithmetic does not keep the contract: " + "; ".join(failed))


@functools.cache
def check_device(where: torch.device) -> None:
    """Check once a process that a device keeps the contract, before anything is computed on it that others rely on.

    Raises:
        BackendError: names the checks that fail, and says what to do.
    """
    if where.type in ("cpu", "meta"):
        return
    # It may be a step, or a factory under torch.device(...), that meets the device first.
    with torch._C.DisableTorchFunction(), _disable_current_modes(), full_precision():
        failed = [name for name, kept in device_report(where).items() if not kept]
    if failed:
        raise BackendError(
            f"{where} ({device.described(where)}) does not keep the contract; not so: {'; '.join(failed)}. Use another "
            "device, such as the CPU; `vtrain doctor` checks all devices of a machine"
        )


def check_devices(tensors: Iterable[torch.Tensor]) -> None:
    """``check_device`` of every device that holds one of them."""
    for where in {t.device for t in tensors}:
        check_device(where)


def environment() -> dict[str, Any]:
    """Hardware and library versions, for statements and reports; JSON values."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "customized": searchpath.customized(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernels.variant(),
        "kernel_sources": nvrtc.source_digest(),
        "threads": torch.get_num_threads(),
        "profile": profile(),
        "device": os.environ.get(DEVICE) or "cpu",
        "devices": [device.described(found) for found in device.present()],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
