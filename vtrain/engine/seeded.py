"""Initial weights that every machine makes alike, for models that are built before a run begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vtrain.engine.active import active_engine
from vtrain.engine.generators import reseeded
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UsageError
from vtrain.policy import Policy


@contextlib.contextmanager
def seeded(seed: int | str = 0, policy: Policy | None = None) -> Iterator[None]:
    """Within: random numbers come from the counter-based generator, and every result is rounded to the policy's target.

    Torch's own initialisation differs between processors in the last bits. Draws made here do not, nor do truncated
    normal ones: they are defined by IEEE operations. Results that a step would log (products, such as those of an
    orthogonal matrix) are rounded from float64 without a log, and so agree but for about one value in 10^8; where that
    matters, give ``record`` and ``replay`` a function that makes the model.

    A generator that is seeded here, ``torch.manual_seed(7)`` or one of your own, gives the same numbers whatever
    ``seed`` is, and the same as in a step. The global generators of other threads, and those outside, are not touched.

    Inside a step (in such a function, say) draws are the same as outside one, and the rest is the step's: recorded, and
    rounded to the run's policy.

    Args:
        seed: below 2^128.
        policy: precision; float32 by default, or inside a step that of the run.

    Raises:
        UsageError: inside a step, with another policy than the run's.
    """
    engine = active_engine()
    if engine is None:
        with Session(Plain(), policy or Policy(), seed).step(0):
            yield
        return
    if policy is not None and policy != engine.policy:
        raise UsageError("vtrain.seeded(policy=...) inside a step: the run's own holds there; leave it out")
    with reseeded(engine.own, seed):
        yield
