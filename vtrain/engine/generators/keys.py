"""Which numbers a ``torch.Generator`` gives in a step (numerics §2, class 5). All state is the generator's own.

A seeded generator gives one 64-bit integer w, drawn natively, for each draw: the same on every machine, and the
generator goes on by it. The draw is (w >> 1, w & 1) of the Philox stream "torch-generator" of its initial seed. One on
another device, whose state is a seed and an offset, gives what the CPU's of that seed gives: draw number offset / 4.

The global generator is not seeded as a step begins. Its draws are numbered instead: (step, number) of the run's stream.
Key, step and number stand in its state, in place of words of the Mersenne twister that are never used; so whoever reads
and sets that state, such as ``torch.utils.checkpoint`` for a forward pass that is done again, repeats the draws.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from vtrain.engine.generators.draws import PhiloxSource
from vtrain.errors import UnsupportedOperation
from vtrain.kernels.device import has_kernels
from vtrain.kernels.device import kinds as device_kinds
from vtrain.random import StreamKey, WordKey

Draw = tuple[PhiloxSource, tuple[int, int]]
"""A stream, and the (step, site) of one draw in it."""

_MARK = 0x56AD_C0DE  # upper half of the initial seed of a generator that is counted
_MAGIC = 0x9D2C_74E1  # and in the last of its words
_LOW = 0xFFFFFFFF
_SITES = 2**32
# The state of torch's CPU generator in 64-bit words: initial seed, left and seeded, next, 624 words of 32 bits, more.
_SEED, _NUMBER, _LAST = 0, 7, 3 + 623
_HELD = slice(3, _NUMBER + 1)  # key (2), step (2), number
_PHILOX_CALL = 4  # a device's offset moves in steps of one Philox block
_LONGEST = 2**22


def count_from(generator: torch.Generator, key: StreamKey, step: int) -> None:
    """Let a CPU generator number its draws from 0 in ``step`` of the stream ``key``."""
    generator.manual_seed((key.key[0] ^ step) & _LOW)  # so that its other words are no constants
    state = generator.get_state()
    held = state.numpy().view(np.uint64)
    held[_SEED] |= np.uint64(_MARK << 32)
    held[_HELD] = (*key.key, step & _LOW, step >> 32, 0)
    held[_LAST] = _MAGIC
    generator.set_state(state)


def next_draw(generator: torch.Generator) -> Draw:
    """The generator's next draw; it goes on by one.

    Raises:
        UnsupportedOperation: it is on a device whose generators have no definition here.
    """
    seed = generator.initial_seed()
    kind = generator.device.type
    if kind == "cpu":
        if seed >> 32 == _MARK and (counted := _next_counted(generator)) is not None:
            return counted
        drawn = torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=generator)
        word = int(drawn) & (2**64 - 1)
        return _stream(seed), (word >> 1, word & 1)
    if not has_kernels(generator.device):
        kinds = ", ".join(device_kinds())
        raise UnsupportedOperation(f"a generator on {generator.device}; want one of torch's for {kinds}")
    offset = generator.get_offset()
    word = _twin(seed).word(offset // _PHILOX_CALL)
    generator.set_offset(offset + _PHILOX_CALL)
    return _stream(seed), (word >> 1, word & 1)


class _Twin:
    """The CPU generator of a seed, by the number of its draw: a device's generator holds a seed and an offset."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._words: list[int] = []
        self._generator = torch.Generator().manual_seed(seed)

    def word(self, number: int) -> int:
        if number >= _LONGEST:
            raise UnsupportedOperation(f"draw {number} of a device's generator; at most {_LONGEST} are covered")
        missing = number + 1 - len(self._words)
        if missing > 0:
            more = torch.empty(missing, dtype=torch.int64).random_(-(2**63), None, generator=self._generator)
            self._words += [w & (2**64 - 1) for w in more.tolist()]
        return self._words[number]


@functools.lru_cache(maxsize=16)
def _twin(seed: int) -> _Twin:
    return _Twin(seed)


def _next_counted(generator: torch.Generator) -> Draw | None:
    """The next draw of a generator that is counted; None if it is a seeded one after all."""
    state = generator.get_state()
    held = state.numpy().view(np.uint64)
    if held[_LAST] != _MAGIC:  # the first native draw makes all words anew
        return None
    low, high, step_low, step_high, number = held[_HELD].tolist()
    if number + 1 >= _SITES:
        raise UnsupportedOperation(f"{_SITES} draws in a step: they are numbered in 32 bits")
    held[_NUMBER] = number + 1
    generator.set_state(state)
    return _counted_stream((low, high)), (step_high << 32 | step_low, number)


@functools.lru_cache(maxsize=256)
def _stream(seed: int) -> PhiloxSource:
    return PhiloxSource(StreamKey(seed, "torch-generator"))


@functools.lru_cache(maxsize=16)
def _counted_stream(key: tuple[int, int]) -> PhiloxSource:
    return PhiloxSource(WordKey(key))
