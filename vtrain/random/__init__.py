"""Counter-based random numbers and exact draws from them, in numpy integers (numerics §2, class 5).

Nothing here has a state: a draw is a pure function of (seed, stream, step, site), so it is the same on every device,
and any step can be entered without the steps before it. Knows nothing of torch.
"""

from __future__ import annotations

from vtrain.random.draws import bernoulli_threshold, permutation, randint, uint64s, uniform24, uniform53
from vtrain.random.normal import box_muller
from vtrain.random.philox import (
    MAX_SITE,
    MAX_STEP,
    MAX_WORDS,
    Key,
    StreamKey,
    WordKey,
    for_each_chunk,
    philox4x32,
    words,
)

__all__ = [
    "MAX_SITE",
    "MAX_STEP",
    "MAX_WORDS",
    "Key",
    "StreamKey",
    "WordKey",
    "bernoulli_threshold",
    "box_muller",
    "for_each_chunk",
    "permutation",
    "philox4x32",
    "randint",
    "uint64s",
    "uniform24",
    "uniform53",
    "words",
]
