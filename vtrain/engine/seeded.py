"""Initial weights that every machine makes alike, for models that are built before a run begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.policy import Policy


@contextlib.contextmanager
def seeded(seed: int | str = 0, policy: Policy | None = None) -> Iterator[None]:
    """Within: random numbers come from the counter-based generator, and every result is rounded to the policy's target.

    Torch's own initialisation differs between processors in the last bits. Uniform draws and normal draws made here do
    not: they are defined by IEEE operations. Other inexact results (``erfinv`` of a truncated normal, an orthogonal
    matrix) are rounded from float64 without a log, and so agree but for about one value in 10^8; where that matters,
    give ``record`` and ``replay`` a function that makes the model.

    Args:
        seed: below 2^128.
        policy: precision; float32 by default.
    """
    with Session(Plain(), policy or Policy(), seed).step(0):
        yield
