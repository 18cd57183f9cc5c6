"""Process settings that change arithmetic, read at every step (numerics §2, §7).

``pins.py`` puts torch's own choices where they belong; what is here can be changed behind its back: the processor's
floating-point control, which threads have each for themselves, and torch's flags, by code inside the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from vtrain.engine.callsite import user_line
from vtrain.errors import BackendError, StateError
from vtrain.kernels import device

_LEAST_NORMAL, _LEAST, _ONE, _HALF_ULP = 2.0**-1022, 2.0**-1074, 1.0, 2.0**-53
_GRAIN = 32768  # elements that torch gives a thread at least


_FLAGS: dict[str, Callable[[], object]] = {
    "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    "torch.backends.mha.set_fastpath_enabled": torch.backends.mha.get_fastpath_enabled,
}


def _flags() -> dict[str, Callable[[], object]]:
    found = dict(_FLAGS)
    for backend in device.backends():
        found |= backend.flags
        for place in backend.precisions:
            name = f"torch.backends.{place[0]}.{place[1]}.fp32_precision"
            found[name] = functools.partial(torch._C._get_fp32_precision_getter, *place)
    return found


def read() -> dict[str, object]:
    """The flags by the name under which a user sets them."""
    return {name: value() for name, value in _flags().items()}


def check_unchanged(before: dict[str, object]) -> None:
    """Check that a step's code left the flags as the step found them.

    Raises:
        StateError: it did not; names them.
    """
    now = read()
    if changed := [f"{name} ({before[name]!r} to {now[name]!r})" for name in before if now[name] != before[name]]:
        raise StateError(
            f"code inside the step changed what decides how numbers are computed: {', '.join(changed)}; "
            "set it before the first step: inside steps vtrain pins it"
        )


def check_threads() -> None:
    """``check_float_unit`` and ``check_workers``."""
    check_float_unit()
    check_workers()


def check_float_unit() -> None:
    """Check this thread's floating-point control: subnormals kept, rounding to nearest.

    Raises:
        StateError: it is otherwise; names what sets it.
    """
    # Read from module variables, so that nothing is folded when this file is compiled.
    if _LEAST_NORMAL * 0.5 == 0.0 or _LEAST * _ONE == 0.0:
        raise StateError(_FLUSHED.format(where="this thread", line=user_line()))
    if _ONE + _HALF_ULP != _ONE or _ONE + 3 * _HALF_ULP != _ONE + 4 * _HALF_ULP:
        raise StateError("this thread does not round to nearest: something called fesetround; want FE_TONEAREST")


_FLUSHED = (
    "subnormal numbers are flushed to zero in {where}: torch.set_flush_denormal(True), or a library built with "
    "fast-math, has set it; it holds for one thread only, so that results depend on how work is split; call "
    "torch.set_flush_denormal(False) before the step (noticed at {line})"
)


def check_workers() -> None:
    """Check that the threads which share torch's loops keep subnormals: they copy their maker's control.

    Raises:
        BackendError: they do not; a thread's control can't be changed from outside.
    """
    x, out = _probe(torch.get_num_threads())
    torch.mul(x, 0.5, out=out)
    if not bool((out[::_SPARSE].view(torch.int32) == 1).all()):  # as integers: a comparison would flush too
        where = _FLUSHED.format(where="threads that share the work", line=user_line())
        raise BackendError(f"{where}; such threads stay as they were made: restart the process without it")


_SPARSE = 1024  # some processors take a hundred cycles for each subnormal


@functools.lru_cache(maxsize=4)
def _probe(threads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Work for every thread, float32, one in 1024 elements being 2^-148; and room for the result."""
    x = torch.ones(threads * _GRAIN)
    x[::_SPARSE] = 2.0**-148
    return x, torch.empty_like(x)
