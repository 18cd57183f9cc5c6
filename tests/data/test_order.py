"""The order of samples: permutations, and batches that can be rebuilt alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtrain.data.order import augmentation_key, batch_indices, epoch_order
from vtrain.errors import UsageError
from vtrain.random import StreamKey, permutation, words


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**40), st.integers(0, 200))
def test_an_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == permutation(StreamKey(seed, "data-order"), epoch, 0, n).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_order(seed, epoch, 50).tobytes() for seed in (1, 2) for epoch in (0, 1, 2**32)]
    assert len(set(orders)) == 6


def test_an_order_is_pinned() -> None:
    digest = hashlib.sha256(epoch_order("12345678901234567890", 2, 1000).astype("<i8").tobytes()).hexdigest()
    assert digest == "5f252baad626c8a5b789a540f39f489e94671a3116205cf5d42ba566a99c16fd"


def test_a_cached_order_can_not_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(1, 0, 10)[0] = 5
    batch_indices(1, 1, 4, 10)[:] = 0  # a copy
    assert sorted(epoch_order(1, 0, 10).tolist()) == list(range(10))


@given(st.integers(1, 40), st.integers(1, 40), st.randoms())
def test_a_batch_alone_is_the_batch_of_the_sequence(n: int, batch_size: int, random: object) -> None:
    n = max(n, batch_size)
    sequence = []
    for epoch in range(4):
        order = epoch_order(3, epoch, n).tolist()
        sequence += [order[i : i + batch_size] for i in range(0, n - batch_size + 1, batch_size)]
    steps = list(range(1, len(sequence) + 1))
    random.shuffle(steps)  # type: ignore[attr-defined]
    for step in steps:
        got = batch_indices(3, step, batch_size, n)
        assert got.dtype == np.int64
        assert got.tolist() == sequence[step - 1]


@pytest.mark.parametrize(
    ("step", "batch_size", "n", "named"),
    [(0, 2, 4, "step"), (-1, 2, 4, "step"), (1, 5, 4, "batch size"), (1, 0, 4, "batch size"), (1, 1, 0, "batch size")],
)
def test_bad_batches(step: int, batch_size: int, n: int, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        batch_indices(1, step, batch_size, n)


def test_augmentations_have_streams_of_their_own() -> None:
    places = [(seed, epoch, index) for seed in (1, 11) for epoch in (0, 1, 11) for index in (0, 1, 11, 111)]
    drawn = {words(augmentation_key(*place), 0, 0, 4).tobytes() for place in places}
    assert len(drawn) == len(places)
    assert augmentation_key(5, 2, 9) == StreamKey(5, "augmentation/2/9")


@pytest.mark.parametrize(("epoch", "index"), [(-1, 0), (0, -1), (0, 1.0)])
def test_bad_augmentations(epoch: int, index: int) -> None:
    with pytest.raises(UsageError, match=r"epoch is|index is"):
        augmentation_key(1, epoch, index)
