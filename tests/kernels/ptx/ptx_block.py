"""One block of threads: its registers and memories, and the choice of who runs next."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import ptx_access
import ptx_control
import ptx_warp
from ptx_decode import (
    IDLE,
    Context,
    Frame,
    Handler,
    Place,
    State,
    Step,
    allocate,
    decode,
    has_results_later,
    order,
    positions,
)
from ptx_lanes import Active, ActivePool, Array, Deadlock, Fault, Lanes, StepLimit, Unsupported
from ptx_memory import Generic, Memory
from ptx_model import Function, Instruction, Module

_HANDLERS: dict[str, Handler] = {
    **ptx_access.HANDLERS,
    **ptx_control.HANDLERS,
    **ptx_warp.HANDLERS,
    "bar": ptx_warp.bar(ptx_control.HANDLERS["bar"]),
}
_WARP = ptx_warp.WARP
Extent = tuple[int, int, int]


def _specials(threads: Extent) -> dict[str, Array]:
    """Special registers; those that depend on grid and block index are set later, in place."""
    linear = np.arange(prod(threads), dtype=np.uint32)
    lane = linear % np.uint32(_WARP)
    bit = np.uint32(1) << lane
    found = {
        "%laneid": lane,
        "%tid.x": linear % np.uint32(threads[0]),
        "%tid.y": linear // np.uint32(threads[0]) % np.uint32(threads[1]),
        "%tid.z": linear // np.uint32(threads[0] * threads[1]),
        "%lanemask_eq": bit,
        "%lanemask_lt": bit - np.uint32(1),
        "%lanemask_le": bit | (bit - np.uint32(1)),
        "%lanemask_ge": ~(bit - np.uint32(1)),
        "%lanemask_gt": ~(bit | (bit - np.uint32(1))),
    }
    for axis, extent in zip("xyz", threads, strict=True):
        found[f"%ntid.{axis}"] = np.array([extent], np.uint32)
        found[f"%ctaid.{axis}"] = np.zeros(1, np.uint32)
        found[f"%nctaid.{axis}"] = np.zeros(1, np.uint32)
    return found


class Block:
    """A kernel decoded for blocks of a certain shape; it runs any number of them, one after the other."""

    @staticmethod
    def place_globals(module: Module, memory: Memory) -> dict[str, Place]:
        """Places for the module's variables in global memory."""
        return allocate((v for v in module.variables if v.space in ("global", "const")), {"global": memory})

    def __init__(
        self, module: Module, kernel: str, threads: Extent, shared: int, memory: Memory, places: dict[str, Place]
    ) -> None:
        self._kernel, self._threads = kernel, prod(threads)
        self._state = self._new_state(threads, memory)
        self._pool = ActivePool()
        functions = order(module, kernel)
        shape = positions(functions)
        outer = places | self._place_shared(module, functions, shared)
        self._frames = {f.name: self._frame(f, outer, shape[f.name]) for f in functions}
        self._code: list[Step] = []
        self._source: list[tuple[str, Instruction | None]] = []
        for frame in self._frames.values():
            self._decode(frame)
        self._start = self._frames[kernel].start
        self._parameters = [self._frames[kernel].places[p.name] for p in module.functions[kernel].parameters]

    def _new_state(self, threads: Extent, memory: Memory) -> State:
        n = self._threads
        spaces = {
            "global": memory,
            "shared": Memory("shared", 0),
            "local": Memory("local", 0, threads=n),
            "call": Memory("call parameters", 0, threads=n),
            "param": Memory("param", 0),
        }
        spaces[""] = Generic(memory, spaces["shared"], spaces["local"])
        return State(
            threads=n,
            counters=np.zeros(n, np.int64),
            live=np.ones(n, np.bool_),
            barrier=np.full(n, -1, np.int64),
            votes=np.zeros(n, np.bool_),
            tally=np.zeros(0, np.bool_),
            parked=np.full(n, -1, np.int64),
            members=np.zeros(n, np.uint32),
            specials=_specials(threads),
            spaces=spaces,
        )

    def _place_shared(self, module: Module, functions: list[Function], dynamic: int) -> dict[str, Place]:
        """Shared variables of the module; those without a bound all lie at the start of the dynamic part."""
        spaces = self._state.spaces
        ours = [v for v in module.variables if v.space == "shared"]
        places = allocate((v for v in ours if not v.external), spaces)
        inner = [v for f in functions for v in f.variables if v.space == "shared"]
        for name, place in allocate(inner, spaces).items():
            places[name] = place
        start = spaces["shared"].allocate(dynamic, 128)
        return places | {v.name: Place(spaces["shared"], start, dynamic) for v in ours if v.external}

    def _frame(self, function: Function, outer: dict[str, Place], places: list[int]) -> Frame:
        spaces = self._state.spaces
        calls = spaces | {"param": spaces["call"]}
        inner = [v for v in function.variables if v.space != "shared"]
        mine = allocate(function.parameters, spaces if function.entry else calls)
        mine |= allocate([*function.returns, *inner], calls)
        used = {n: Lanes(n, t, self._threads) for n, t in function.registers.items()}
        return Frame(function, used, outer | mine, places[0], places, np.zeros(self._threads, np.int64))

    def _decode(self, frame: Frame) -> None:
        name = frame.function.name
        for i, here in zip(frame.function.body, frame.positions, strict=False):  # one position more: the end
            context = Context(self._state, frame, self._frames, i, here)
            try:
                self._add(name, i, decode(context, _HANDLERS))
                if has_results_later(i):
                    self._add(name, i, ptx_control.later(context))
            except Unsupported as error:
                raise Unsupported(f"{name}: line {i.line}: {i.text}: unsupported: {error}") from error
        self._add(name, None, _past_the_end)

    def _add(self, function: str, i: Instruction | None, step: Step) -> None:
        self._code.append(step)
        self._source.append((function, i))

    def set_arguments(self, values: list[bytes]) -> None:
        for place, value in zip(self._parameters, values, strict=True):
            place.memory.write_bytes(place.address, value)

    def set_grid(self, grid: Extent) -> None:
        self._grid = grid
        for axis, extent in zip("xyz", grid, strict=True):
            self._state.specials[f"%nctaid.{axis}"][0] = extent

    def _reset(self, linear: int) -> None:
        state = self._state
        state.counters[:] = self._start
        state.live[:] = True
        state.barrier[:] = state.parked[:] = -1
        for name in ("shared", "local", "call"):
            state.spaces[name].clear()
        for frame in self._frames.values():
            for register in frame.registers.values():
                register.clear()
        x, y, _ = self._grid
        index = (linear % x, linear // x % y, linear // (x * y))
        for axis, value in zip("xyz", index, strict=True):
            state.specials[f"%ctaid.{axis}"][0] = value

    def run(self, linear: int, warps: Sequence[int] | None, limit: int) -> int:
        """Run the block of a linear index; returns the number of instructions."""
        self._reset(linear)
        self._last = self._start
        steps = 0
        try:
            while (chosen := self._choose(warps)) is not None:
                steps = self._together(*chosen, steps, limit)
        except Fault as error:
            raise self._located(error, linear) from None
        return steps

    def _together(self, active: Active, at: int, stop: int, steps: int, limit: int) -> int:
        """Run threads that stand at one instruction until they part, end, wait, or reach stop."""
        code = self._code
        while True:
            if steps >= limit:
                raise StepLimit(f"more than {limit} instructions")
            self._last = at
            target = code[at](active)
            steps += 1
            if target is None:
                at += 1
            elif target < 0:
                return steps
            else:
                at = target
            if at >= stop:
                self._state.counters[active.index] = at
                return steps

    def _choose(self, warps: Sequence[int] | None) -> tuple[Active, int, int] | None:
        """Who runs next, from where, and the first place where somebody else stands; None when all have ended."""
        counters = self._state.counters
        while (lowest := int(counters.min())) == IDLE:
            if not self._state.live.any():
                return None
            self._release()
        if warps is not None:
            counters = self._only_first(warps)
            lowest = int(counters.min())
        mask = counters == lowest
        others = counters[~mask]
        stop = int(others.min()) if others.size else IDLE
        return self._pool.get(mask), lowest, stop

    def _only_first(self, warps: Sequence[int]) -> Array:
        """Program counters of the first warp, in this order, that can run; the others seem idle."""
        counters = np.full_like(self._state.counters, IDLE)
        for warp in warps:
            mine = slice(warp * _WARP, (warp + 1) * _WARP)
            if self._state.counters[mine].min(initial=IDLE) < IDLE:
                counters[mine] = self._state.counters[mine]
                return counters
        raise ValueError(f"warps {list(warps)} do not name all warps of the block")

    def _release(self) -> None:
        """Nobody can run: open the barrier if all are there, or find lanes whose partners have ended."""
        state = self._state
        if ptx_warp.wake(state):
            return
        waiting = state.barrier[state.live]
        if (waiting < 0).any():
            thread = int(np.flatnonzero(state.live & (state.barrier < 0))[0])
            raise Deadlock("a lane waits for others of its warp that are elsewhere", thread)
        if (waiting != waiting[0]).any():
            lines = sorted({self._line(int(at)) for at in waiting})
            raise Deadlock(f"threads wait at different barriers, lines {lines}")
        state.tally = state.votes[state.live]
        state.counters[state.live] = waiting[0] + 1
        state.barrier[:] = -1

    def _line(self, at: int) -> int:
        i = self._source[at][1]
        return i.line if i else 0

    def _located(self, error: Fault, linear: int) -> Fault:
        function, i = self._source[self._last]
        where = f"line {i.line}: {i.text}" if i else "its end"
        who = "" if error.thread is None else f", thread {error.thread}"
        return type(error)(f"{function}: block {linear}{who}: {where}: {error}", error.thread)


def _past_the_end(active: Active) -> int | None:
    raise Fault("control runs past the end of a function", int(active.index[0]))
