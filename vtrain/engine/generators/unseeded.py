"""Generators that a step makes without a seed: ``numpy.random.default_rng()``, ``random.Random()``.

They take their seed from the operating system, which no auditor can repeat. In a step's threads it is the step's
instead: the n-th such generator of a step is seeded alike by whoever repeats it. What the standard library makes for
itself (names of temporary files) and what is meant to be secret (``secrets``, ``SystemRandom``, ``os.urandom``) is left
alone.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np

from vtrain.engine.generators.owner import Own, mine

_entropy: Any = np.random.bit_generator
_native_randbits: Any = getattr(_entropy, "randbits", None)  # None where a NumPy has another way
_seed = random.Random.seed


def _randbits(k: int) -> int:
    """What NumPy calls for the entropy of a ``SeedSequence`` that is given none, as ``secrets.randbits``."""
    own = _owner()
    return _native_randbits(k) if own is None else own.fresh() & ((1 << k) - 1)


def _seed_led(self: random.Random, a: Any = None, version: int = 2) -> None:
    """``random.Random.seed``; the global generator and those with an entropy of their own have another one."""
    own = _owner() if a is None and type(self).seed is _seed_led else None
    _seed(self, a if own is None else own.fresh(), version)


def _owner() -> Own | None:
    """The step's, unless it is the standard library that asks."""
    frame: FrameType | None = sys._getframe(2)
    own = mine()
    if own is None:
        return None
    while frame is not None and frame.f_globals.get("__name__") == "random":
        frame = frame.f_back  # ``Random.__init__`` calls ``seed``
    asks = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    return None if asks.partition(".")[0] in sys.stdlib_module_names else own


@contextlib.contextmanager
def unseeded_led() -> Iterator[None]:
    """Within: they are led; ``owner.owned`` says by whom."""
    random.Random.seed = _seed_led  # type: ignore[method-assign]
    if _native_randbits is not None:
        _entropy.randbits = _randbits
    try:
        yield
    finally:
        random.Random.seed = _seed  # type: ignore[method-assign]
        if _native_randbits is not None:
            _entropy.randbits = _native_randbits
