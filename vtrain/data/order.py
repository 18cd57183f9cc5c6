"""Which samples a step sees, from the seed alone (protocol §2).

Epochs count from 0 and steps from 1, as leaves do. The order of an epoch is a Philox permutation of (seed, epoch); a
step takes the next ``batch_size`` samples of it, and an epoch's last, incomplete batch is dropped. So the batch of any
step is known without the steps before it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vtrain.errors import UsageError
from vtrain.random import MAX_STEP, StreamKey, permutation
from vtrain.random.philox import check_range

ORDER_STREAM = "data-order"
"""The stream of the epochs' permutations: step = epoch, site = 0."""


# Two, as a batch reads one epoch and a loader that runs ahead may already read the next.
@lru_cache(maxsize=2)
def _epoch_order(key: StreamKey, epoch: int, n: int) -> npt.NDArray[np.int64]:
    order = permutation(key, epoch, 0, n)
    order.setflags(write=False)
    return order


def epoch_order(seed: int | str, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order of the n samples in an epoch.

    Args:
        seed: in [0, 2^128), as an integer or in decimal digits.
        epoch: from 0.
        n: the number of samples.

    Returns:
        int64 (n,), a permutation of 0..n-1; cached, so read-only.

    Raises:
        UsageError: an argument is out of range.
    """
    return _epoch_order(StreamKey(seed, ORDER_STREAM), epoch, n)


def batch_indices(seed: int | str, step: int, batch_size: int, n: int) -> npt.NDArray[np.int64]:
    """The indices of the samples that a step is trained on, in order.

    Args:
        seed: in [0, 2^128), as an integer or in decimal digits.
        step: from 1.
        batch_size: in samples.
        n: the number of samples in the data set; at least ``batch_size``.

    Returns:
        int64 (batch_size,).

    Raises:
        UsageError: an argument is out of range, or a batch is larger than the data set.
    """
    if check_range("step", step, MAX_STEP) < 1:
        raise UsageError("step is 0; wanted 1 or more, as step 0 is the initialisation")
    if not 1 <= batch_size <= n:
        raise UsageError(f"batch size is {batch_size} for {n} samples; wanted 1 to {n}")
    epoch, position = divmod(step - 1, n // batch_size)
    return epoch_order(seed, epoch, n)[position * batch_size : (position + 1) * batch_size].copy()


def augmentation_key(seed: int | str, epoch: int, index: int) -> StreamKey:
    """The stream from which sample ``index`` draws its random augmentation in an epoch.

    It has a stream to itself, so that an augmentation may use steps and sites as it likes.

    Raises:
        UsageError: an argument is out of range.
    """
    epoch, index = check_range("epoch", epoch, MAX_STEP), check_range("index", index, MAX_STEP)
    return StreamKey(seed, f"augmentation/{epoch}/{index}")
