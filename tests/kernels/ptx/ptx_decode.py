"""A kernel's instructions as closures over the registers and memories of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from ptx_arithmetic import BOOL, OPERATIONS, Operation, Suffixes
from ptx_lanes import Active, Array, Lanes, Reader, Unsupported, Writer
from ptx_memory import Memory
from ptx_model import (
    Float,
    Function,
    Group,
    Instruction,
    Integer,
    Module,
    Operand,
    Register,
    Special,
    Symbol,
    Variable,
)

RESCHEDULE = -1
Step = Callable[[Active], int | None]  # None: go on; >= 0: all go there; RESCHEDULE: counters are set, choose again


@dataclass(frozen=True)
class Place:
    """Where a variable lies."""

    memory: Memory
    address: int
    size: int


@dataclass
class Frame:
    """What the instructions of one function refer to.

    Attributes:
        start: position of the first instruction in the code.
        positions: position of each of its instructions.
        back: where each thread returns to (a function is never active twice in a thread).
    """

    function: Function
    registers: dict[str, Lanes]
    places: dict[str, Place]
    start: int
    positions: list[int]
    back: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def entry(self) -> bool:
        return self.function.entry


@dataclass
class State:
    """Registers, memories and program counters of the block that runs.

    Attributes:
        counters: next instruction of each thread, or IDLE.
        live: threads that have not ended.
        barrier: barrier instruction at which each thread waits, or -1.
        votes: what each thread brings to a barrier; tally: these of the live threads when it opened last.
        parked: instruction at which each thread waits for lanes of its warp, or -1.
        members: the lanes it waits for, as bits.
        spaces: memories by the name of the state space; "" is generic.
    """

    threads: int
    counters: Array
    live: Array
    barrier: Array
    votes: Array
    tally: Array
    parked: Array
    members: Array
    specials: dict[str, Array]
    spaces: dict[str, Memory]


IDLE = 1 << 62


def constant(array: Array) -> Reader:
    return lambda active: array


class Context:
    """Operands of one instruction, as readers and writers."""

    def __init__(self, state: State, frame: Frame, frames: dict[str, Frame], i: Instruction, here: int) -> None:
        self.state, self.frame, self.frames, self.instruction, self.here = state, frame, frames, i, here

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.instruction.operands

    def suffixes(self) -> Suffixes:
        return Suffixes(self.instruction.parts)

    def unsupported(self) -> Unsupported:
        return Unsupported(self.instruction.text)

    def want(self, *counts: int) -> None:
        """Check the number of operands."""
        if len(self.operands) not in counts:
            raise self.unsupported()

    def register(self, operand: Operand) -> Lanes:
        if not isinstance(operand, Register):
            raise self.unsupported()
        return self.frame.registers[operand.name]

    def place(self, symbol: Symbol) -> Place:
        if symbol.name not in self.frame.places:
            raise self.unsupported()
        return self.frame.places[symbol.name]

    def reader(self, operand: Operand, dtype: np.dtype) -> Reader:
        """How to read an operand as dtype."""
        if isinstance(operand, Register):
            read = self.register(operand).reader(dtype)
            return (lambda active: ~read(active)) if operand.negated else read
        if isinstance(operand, Special):
            return self._special(operand, dtype)
        if isinstance(operand, Integer) and dtype.kind != "f":
            return constant(_integer(operand.value, dtype))
        if isinstance(operand, Float) and operand.size == dtype.itemsize:
            return constant(np.array([operand.bits], f"u{operand.size}").view(dtype))
        if isinstance(operand, Symbol) and dtype.kind != "f" and dtype.itemsize >= 4:
            return constant(_integer(self.place(operand).address, dtype))
        raise self.unsupported()

    def _special(self, operand: Special, dtype: np.dtype) -> Reader:
        values = self.state.specials.get(operand.name)
        if values is None or dtype.itemsize != values.itemsize:
            raise self.unsupported()
        view = values.view(dtype)
        return lambda active: view if view.size == 1 or active.full else view[active.index]

    def writer(self, operand: Operand, dtype: np.dtype) -> Writer:
        """How to write values of dtype to an operand; ``_`` takes what nobody wants."""
        if operand == Symbol("_"):
            return lambda active, values: None
        return self.register(operand).writer(dtype)


def _integer(value: int, dtype: np.dtype) -> Array:
    if dtype == BOOL:
        return np.array([value != 0])
    bits = 8 * dtype.itemsize
    return np.array([value & ((1 << bits) - 1)], f"u{dtype.itemsize}").view(dtype)


def operation(c: Context, op: Operation) -> Step:
    """A closure that computes one value from registers."""
    c.want(1 + len(op.inputs))
    compute, write = op.compute, c.writer(c.operands[0], op.output)
    reads = [c.reader(o, t) for o, t in zip(c.operands[1:], op.inputs, strict=True)]
    if len(reads) == 1:
        (a,) = reads
        return lambda active: write(active, compute(a(active)))
    if len(reads) == 2:
        a, b = reads
        return lambda active: write(active, compute(a(active), b(active)))
    return lambda active: write(active, compute(*[read(active) for read in reads]))


Handler = Callable[[Context], Step]


def decode(c: Context, handlers: dict[str, Handler]) -> Step:
    """The closure of one instruction.

    Raises:
        Unsupported: it is not known, or an operand is not what it should be.
    """
    name = c.instruction.parts[0]
    if name in OPERATIONS:
        step = operation(c, OPERATIONS[name](c.suffixes()))
    elif name in handlers:
        step = handlers[name](c)
    else:
        raise c.unsupported()
    guard = c.instruction.predicate
    return step if guard is None else _guarded(c, step, c.reader(guard, BOOL))


def _guarded(c: Context, step: Step, condition: Reader) -> Step:
    """A step that only the threads take for which condition holds."""
    counters, after = c.state.counters, c.here + 1

    def guarded(active: Active) -> int | None:
        chosen = active.narrow(condition(active))
        if chosen is None:
            return None
        target = step(chosen)
        if target is None or chosen is active:
            return target
        counters[active.mask & ~chosen.mask] = after
        if target >= 0:
            counters[chosen.index] = target
        return RESCHEDULE

    return guarded


def order(module: Module, kernel: str) -> list[Function]:
    """A kernel after the functions that it calls, directly or not.

    Raises:
        Unsupported: recursion, or a call of what is not defined here.
    """
    done: list[Function] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in path:
            raise Unsupported(f"{name} is recursive")
        if name not in module.functions:
            raise Unsupported(f"call of {name}, which is not defined")
        if module.functions[name] not in done:
            path.append(name)
            for callee in _called(module.functions[name]):
                visit(callee)
            done.append(module.functions[path.pop()])

    visit(kernel)
    return done


def _called(function: Function) -> Iterable[str]:
    for i in function.body:
        if i.parts[0] == "call":
            target = call_target(i)
            if target is None:
                raise Unsupported(i.text)
            yield target


def call_target(i: Instruction) -> str | None:
    """Name of the function that is called, unless it is called through a pointer."""
    return next((o.name for o in i.operands if isinstance(o, Symbol)), None)


def call_arguments(i: Instruction) -> tuple[list[Operand], list[Operand]]:
    """Variables that take the results, and those that hold the arguments."""
    at = next(k for k, o in enumerate(i.operands) if isinstance(o, Symbol))
    groups = [[x for o in part if isinstance(o, Group) for x in o.items] for part in (i.operands[:at], i.operands[at:])]
    return groups[0], groups[1]


def has_results_later(i: Instruction) -> bool:
    """Whether threads go elsewhere, or wait, between an instruction and the arrival of its results."""
    return i.parts[0] == "call" or (i.parts[0] in ("bar", "barrier") and "red" in i.parts)


def positions(functions: list[Function]) -> dict[str, list[int]]:
    """Where each function's instructions stand in the code; some take a second place, where their results arrive.

    Each function ends with a place of its own, so that a label at its end has a position.
    """
    result: dict[str, list[int]] = {}
    at = 0
    for function in functions:
        mine = []
        for i in function.body:
            mine.append(at)
            at += 2 if has_results_later(i) else 1
        result[function.name] = [*mine, at]
        at += 1
    return result


def allocate(variables: Iterable[Variable], spaces: dict[str, Memory]) -> dict[str, Place]:
    """Places for variables, with their initial values."""
    places = {}
    for v in variables:
        memory = spaces["global" if v.space == "const" else v.space]
        address = memory.allocate(v.size, v.align)
        places[v.name] = Place(memory, address, v.size)
        if v.initial or v.space in ("global", "const"):
            memory.write_bytes(address, v.initial.ljust(v.size, b"\0"))
    return places
