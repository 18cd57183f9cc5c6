"""What the kernels' PTX must not contain: what depends on the hardware, the assembler or the order of threads.

``--fmad=false`` makes the compiler write ``add.rn`` and ``mul.rn``. The same without a rounding mode means "to nearest"
too, but leaves the assembler free to fuse the two (PTX ISA, ``add``), so it is a violation.
"""

from __future__ import annotations

from ptx import parse
from ptx_model import Function, Instruction, Module, Symbol

FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"}
_INEXACT = {"approx", "ftz", "full"}
_ROUNDING = {"rn", "rz", "rm", "rp"}


def _module(ptx: str | bytes | Module) -> Module:
    return ptx if isinstance(ptx, Module) else parse(ptx)


def _is_float(i: Instruction) -> bool:
    return bool(FLOATS.intersection(i.parts))


def _broken(i: Instruction) -> list[str]:
    """Rules that one instruction breaks."""
    found = [f".{part} is inexact" for part in i.parts if part in _INEXACT]
    if i.parts[0] in ("atom", "red") and _is_float(i):
        found.append("a floating atomic depends on the order of threads")
    if i.parts[0] in ("add", "sub", "mul") and _is_float(i) and not _ROUNDING.intersection(i.parts):
        found.append("without a rounding mode the assembler may fuse it")
    return found


def violations(ptx: str | bytes | Module) -> list[str]:
    """One line for each rule broken by an instruction of any function, called or not."""
    return [
        f"{function.name}: line {i.line}: {i.text}: {rule}"
        for function in _module(ptx).functions.values()
        for i in function.body
        for rule in _broken(i)
    ]


def _callees(module: Module, function: Function) -> set[str]:
    """Functions that one calls; all of them where it calls through a pointer."""
    names: set[str] = set()
    for i in function.body:
        if i.parts[0] == "call":
            targets = {o.name for o in i.operands if isinstance(o, Symbol)} & module.functions.keys()
            names |= targets or {f.name for f in module.functions.values() if not f.entry}
    return names


def reachable(ptx: str | bytes | Module, kernel: str) -> list[Function]:
    """A kernel and all functions that it may call."""
    module = _module(ptx)
    seen: list[str] = []
    todo = [kernel]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.append(name)
            todo += sorted(_callees(module, module.functions[name]))
    return [module.functions[name] for name in seen]


def fused_operations(ptx: str | bytes | Module) -> dict[str, int]:
    """For each kernel, the number of floating ``fma`` and ``mad`` instructions in it and in what it calls."""
    module = _module(ptx)
    return {
        kernel: sum(i.parts[0] in ("fma", "mad") and _is_float(i) for f in reachable(module, kernel) for i in f.body)
        for kernel in module.kernels
    }
