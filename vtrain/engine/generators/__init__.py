"""The generators of a step: torch's, Python's and NumPy's global ones are the step's own in its thread, and only there.

``keys`` says which numbers a ``torch.Generator`` gives in a step; ``owner`` holds the step's own states; ``torches``,
``pythons`` and ``numpys`` lead what a script calls to them, by thread, whatever name it had imported before;
``unseeded`` gives those that a step makes without a seed one of the step's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vtrain.engine.generators.numpys import numpy_led, put_away
from vtrain.engine.generators.owner import Own, owned
from vtrain.engine.generators.pythons import python_led
from vtrain.engine.generators.torches import torch_led
from vtrain.engine.generators.unseeded import unseeded_led


@contextlib.contextmanager
def led(own: Own) -> Iterator[None]:
    """Within: in the step's threads the global generators are ``own``'s; in all others they are what they were."""
    with torch_led(), python_led(), numpy_led(), unseeded_led(), owned(own):
        yield


@contextlib.contextmanager
def reseeded(own: Own, seed: int | str) -> Iterator[None]:
    """Within: they begin as those of step 0 of a run with this seed; afterwards they go on as before."""
    put_away()
    before = own.taken()
    own.begin(seed, 0)
    try:
        yield
    finally:
        put_away()
        own.put(before)


__all__ = ["Own", "led", "reseeded"]
