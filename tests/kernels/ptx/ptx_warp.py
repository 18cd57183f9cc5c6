"""Instructions in which the lanes of a warp take part together: shfl, vote, redux, activemask, bar.warp.sync.

Lanes that reach one wait until all lanes named in its mask that have not ended are there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx_arithmetic import BOOL, U32
from ptx_decode import IDLE, RESCHEDULE, Context, Handler, State, Step
from ptx_lanes import Active, Array, Fault, Reader
from ptx_model import Group, Operand

WARP = 32
Together = Callable[[Active], None]


def bits_by_warp(state: State, mask: Array) -> Array:
    """For each thread, those of its warp for which mask holds, as bits."""
    whole = np.zeros(-(-state.threads // WARP) * WARP, np.bool_)
    whole[: state.threads] = mask
    words = np.packbits(whole, bitorder="little").view(np.uint32)
    return np.repeat(words, WARP)[: state.threads]


def _disagreeing(state: State, arrived: Array) -> int | None:
    """A lane that another lane takes for a partner while it names other members itself."""
    for first in range(0, state.threads, WARP):
        lanes = first + np.flatnonzero(arrived[first : first + WARP])
        named = state.members[lanes]
        if named.size and (named != named[0]).any():
            shared = named[:, None] >> (lanes % WARP).astype(np.uint32)[None, :] & np.uint32(1) != 0
            bad = (shared & (named[:, None] != named[None, :])).any(axis=0)
            if bad.any():
                return int(lanes[np.argmax(bad)])
    return None


def ready(state: State, arrived: Array) -> Array:
    """Those of the arrived threads whose warp's lanes are all there."""
    thread = _disagreeing(state, arrived)
    if thread is not None:
        raise Fault("lanes that take part in one instruction name different members", thread)
    missing = state.members & bits_by_warp(state, state.live) & ~bits_by_warp(state, arrived)
    return arrived & (missing == 0)


def wake(state: State) -> bool:
    """Let parked threads go on whose missing lanes have ended meanwhile; False if there are none."""
    woken = False
    for here in np.unique(state.parked[state.parked >= 0]):
        go = ready(state, state.parked == here)
        state.counters[go] = here
        state.parked[go] = -1
        woken |= bool(go.any())
    return woken


def _together(c: Context, members: Reader, act: Together) -> Step:
    """A step that lanes take when all the members are there."""
    state, here = c.state, c.here
    lane_bits = np.uint32(1) << (np.arange(state.threads) % WARP).astype(np.uint32)

    def step(active: Active) -> int | None:
        wanted = members(active)
        state.members[active.index] = wanted
        if active.full and (wanted == 0xFFFFFFFF).all():
            act(active)
            return None
        outside = (state.members & lane_bits == 0) & active.mask
        if outside.any():
            raise Fault("a lane takes part that the mask does not name", int(np.argmax(outside)))
        arrived = active.mask | (state.parked == here)
        go = ready(state, arrived)
        if (go == active.mask).all() and (go == arrived).all():
            act(active)
            return None
        state.parked[arrived] = here
        state.counters[arrived] = IDLE
        if go.any():
            act(active.pool.get(go))
            state.parked[go] = -1
            state.counters[go] = here + 1
        return RESCHEDULE

    return step


def _source(mode: str, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Lane that each one reads, and whether it is within the segment (PTX ISA, ``shfl.sync``)."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    lowest = lane & segment
    limit = lowest | (clamp & ~segment)
    if mode == "up":
        source = lane - b
        inside = source >= limit
    else:
        source = {"down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~segment)}[mode]
        inside = source <= limit
    return np.where(inside, source, lane), inside


def _shfl(c: Context) -> Step:
    s = c.suffixes()
    s.choice(("sync",))
    mode, dtype = s.choice(("up", "down", "bfly", "idx")), s.type()
    c.want(5)
    target = c.operands[0]
    targets: tuple[Operand, ...] = target.items if isinstance(target, Group) else (target,)
    write = c.writer(targets[0], dtype)
    write_inside = c.writer(targets[1], BOOL) if len(targets) > 1 else None
    value, b, clamp, members = (c.reader(o, U32) for o in c.operands[1:])
    state = c.state

    def act(active: Active) -> None:
        values = np.zeros(state.threads, dtype)
        values[active.index] = value(active)
        lane = active.index % WARP
        source, inside = _source(mode, lane, b(active).astype(np.int64), clamp(active).astype(np.int64))
        at = active.index - lane + source
        _check_sources(state, active, at, source)
        write(active, values[at])
        if write_inside is not None:
            write_inside(active, inside)

    return _together(c, members, act)


def _check_sources(state: State, active: Active, at: Array, source: Array) -> None:
    """A lane's value is defined only if that lane takes part."""
    if active.full and state.threads % WARP == 0:
        return
    absent = at >= state.threads
    absent |= ~active.mask[np.minimum(at, state.threads - 1)]
    if absent.any():
        bad = int(np.argmax(absent))
        raise Fault(f"shfl reads lane {int(source[bad])}, which does not take part", int(active.index[bad]))


def _vote(c: Context) -> Step:
    s = c.suffixes()
    s.choice(("sync",))
    mode = s.choice(("all", "any", "uni", "ballot"))
    output = BOOL if s.types()[0] == "pred" else U32
    c.want(3)
    write = c.writer(c.operands[0], output)
    value, members = c.reader(c.operands[1], BOOL), c.reader(c.operands[2], U32)
    state = c.state

    def act(active: Active) -> None:
        votes = np.zeros(state.threads, np.bool_)
        votes[active.index] = value(active)
        yes, here = (bits_by_warp(state, mask)[active.index] for mask in (votes, active.mask))
        named = state.members[active.index] & here
        yes = yes & named
        results = {"all": yes == named, "any": yes != 0, "uni": (yes == 0) | (yes == named), "ballot": yes}
        write(active, results[mode])

    return _together(c, members, act)


_REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _redux(c: Context) -> Step:
    s = c.suffixes()
    s.choice(("sync",))
    reduce, dtype = _REDUCTIONS[s.choice(_REDUCTIONS)], s.type()
    c.want(3)
    if dtype.kind == "f":
        raise c.unsupported()
    write = c.writer(c.operands[0], dtype)
    value, members = c.reader(c.operands[1], dtype), c.reader(c.operands[2], U32)

    def act(active: Active) -> None:
        values = np.broadcast_to(value(active), active.index.shape)
        group = active.index // WARP * (1 << 32) + c.state.members[active.index]
        result = np.empty_like(values)
        for each in np.unique(group):
            chosen = group == each
            result[chosen] = reduce.reduce(values[chosen], dtype=dtype)
        write(active, result)

    return _together(c, members, act)


def _activemask(c: Context) -> Step:
    c.want(1)
    write, state = c.writer(c.operands[0], U32), c.state
    return lambda active: write(active, bits_by_warp(state, active.mask)[active.index])


def _bar_warp(c: Context) -> Step:
    s = c.suffixes()
    s.choice(("warp",))
    s.choice(("sync",))
    s.types(0)
    c.want(1)
    return _together(c, c.reader(c.operands[0], U32), lambda active: None)


def bar(other: Handler) -> Handler:
    """bar.warp.sync is decoded here, other barriers by another handler."""
    return lambda c: _bar_warp(c) if "warp" in c.instruction.parts else other(c)


HANDLERS: dict[str, Handler] = {
    "activemask": _activemask,
    "redux": _redux,
    "shfl": _shfl,
    "vote": _vote,
}
