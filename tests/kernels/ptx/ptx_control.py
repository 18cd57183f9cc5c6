"""Instructions that say where threads go on: branches, calls, ends, barriers, fences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx_arithmetic import BOOL, U32
from ptx_decode import IDLE, RESCHEDULE, Context, Handler, Step, call_arguments, call_target
from ptx_lanes import Active, Array, Trap
from ptx_model import Integer, Symbol


def _goto(c: Context, active: Active, targets: Array) -> int:
    """Send each thread to its target."""
    if (targets == targets[0]).all():
        return int(targets[0])
    c.state.counters[active.index] = targets
    return RESCHEDULE


def _position(c: Context, label: str) -> int:
    if label not in c.frame.function.labels:
        raise c.unsupported()
    return c.frame.positions[c.frame.function.labels[label]]


def _bra(c: Context) -> Step:
    s = c.suffixes()
    s.ignore({"uni"})
    s.types(0)
    c.want(1)
    if not isinstance(c.operands[0], Symbol):
        raise c.unsupported()
    target = _position(c, c.operands[0].name)
    return lambda active: target


def _brx(c: Context) -> Step:
    """``brx.idx index, table``"""
    s = c.suffixes()
    s.ignore({"idx", "uni"})
    s.types(0)
    c.want(2)
    if not isinstance(c.operands[1], Symbol) or c.operands[1].name not in c.frame.function.tables:
        raise c.unsupported()
    table = np.array([_position(c, label) for label in c.frame.function.tables[c.operands[1].name]])
    read = c.reader(c.operands[0], np.dtype(np.uint32))

    def step(active: Active) -> int:
        index = read(active)
        if (index >= table.size).any():
            raise Trap(f"brx.idx: {int(index.max())} of {table.size} targets", int(active.index[np.argmax(index)]))
        return _goto(c, active, table[index])

    return step


def _exit(c: Context) -> Step:
    state = c.state

    def step(active: Active) -> int:
        state.live[active.index] = False
        state.counters[active.index] = IDLE
        return RESCHEDULE

    return step


def _ret(c: Context) -> Step:
    if c.frame.entry:
        return _exit(c)
    back = c.frame.back
    return lambda active: _goto(c, active, back[active.index])


def _move(c: Context, active: Active, pairs: list[tuple[int, int, int]]) -> None:
    """Copy parameters, ``(from, to, size)``, of the active threads."""
    data = c.state.spaces["call"].bytes
    for source, target, size in pairs:
        data[active.index, target : target + size] = data[active.index, source : source + size]


def _pairs(c: Context, callee: str, results: bool) -> list[tuple[int, int, int]]:
    """What a call copies: arguments to the callee's parameters, or its results to where they are wanted."""
    function = c.frames[callee].function
    inner = function.returns if results else function.parameters
    outer = call_arguments(c.instruction)[0 if results else 1]
    if len(inner) != len(outer) or not all(isinstance(o, Symbol) for o in outer):
        raise c.unsupported()
    found = []
    for variable, symbol in zip(inner, outer, strict=True):
        there, here = c.frames[callee].places[variable.name], c.place(symbol)
        if there.size != here.size:
            raise c.unsupported()
        found.append((there.address, here.address, here.size) if results else (here.address, there.address, here.size))
    return found


def _call(c: Context) -> Step:
    callee = call_target(c.instruction)
    if callee is None or c.instruction.predicate is not None:
        raise c.unsupported()
    frame, pairs, after = c.frames[callee], _pairs(c, callee, results=False), c.here + 1

    def step(active: Active) -> int:
        _move(c, active, pairs)
        frame.back[active.index] = after
        return frame.start

    return step


def _receive(c: Context) -> Step:
    """What follows a call: its results arrive."""
    callee = call_target(c.instruction)
    pairs = _pairs(c, callee or "", results=True)
    return lambda active: _move(c, active, pairs)


def _wait(c: Context) -> Step:
    state, here = c.state, c.here

    def step(active: Active) -> int:
        state.barrier[active.index] = here
        state.counters[active.index] = IDLE
        return RESCHEDULE

    return step


def _bar(c: Context) -> Step:
    """``bar.sync 0``: all live threads of the block; ``bar.red`` also collects votes."""
    s = c.suffixes()
    s.ignore({"cta", "aligned"})
    if s.choice(("sync", "red")) == "red":
        return _bar_red(c)
    s.types(0)
    if c.operands != (Integer(0),):
        raise c.unsupported()
    return _wait(c)


def _bar_red(c: Context) -> Step:
    """``bar.red.or.pred p, 0, q``"""
    c.want(3)
    if c.operands[1] != Integer(0) or c.instruction.predicate is not None:
        raise c.unsupported()
    vote, wait, votes = c.reader(c.operands[2], BOOL), _wait(c), c.state.votes

    def step(active: Active) -> int | None:
        votes[active.index] = vote(active)
        return wait(active)

    return step


_TALLIES: dict[str, Callable[[Array], Array]] = {
    "popc": lambda votes: np.array([votes.sum()], np.uint32),
    "and": lambda votes: votes.all(keepdims=True),
    "or": lambda votes: votes.any(keepdims=True),
}


def _counted(c: Context) -> Step:
    """What follows ``bar.red``: the result arrives."""
    s = c.suffixes()
    s.ignore({"cta", "aligned", "red"})
    name = s.choice(_TALLIES)
    if s.types() != ["u32" if name == "popc" else "pred"]:
        raise c.unsupported()
    tally, state = _TALLIES[name], c.state
    write = c.writer(c.operands[0], U32 if name == "popc" else BOOL)
    return lambda active: write(active, tally(state.tally))


def later(c: Context) -> Step:
    """The second step of an instruction whose results arrive later."""
    return _receive(c) if c.instruction.parts[0] == "call" else _counted(c)


def _nothing(c: Context) -> Step:
    """Fences: threads see each other's writes at once here."""
    c.want(0)
    return lambda active: None


def _trap(c: Context) -> Step:
    def step(active: Active) -> None:
        raise Trap("trap", int(active.index[0]))

    return step


HANDLERS: dict[str, Handler] = {
    "bra": _bra,
    "brx": _brx,
    "exit": _exit,
    "ret": _ret,
    "call": _call,
    "bar": _bar,
    "barrier": _bar,
    "membar": _nothing,
    "fence": _nothing,
    "trap": _trap,
}
