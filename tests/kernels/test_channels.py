"""Batch norm's passes against their sequences of float32 operations, in every bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import array, assert_same, numbers, strange

from vtrain.kernels import canonical

AREAS = [1, 2, 4, 16, 25, 32, 49, 63, 64, 65, 196]


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("channels", [1, 3, 37])
def test_channel_norm(channels: int, area: int) -> None:
    for make in (numbers, strange):
        for shape in ((4, channels, area), (1, channels, 1, area), (3, channels, area, 1)):
            x, grad = make(*shape, seed=30), make(*shape, seed=31)
            mean, gain, bias, offset, slope = (make(channels, seed=s) for s in range(32, 37))
            views = [x] if len(shape) < 4 else [x, x.to(memory_format=torch.channels_last)]
            for view in views:
                for b in (None, bias):
                    got = canonical.channel_norm(view, mean, gain, b)
                    assert_same(got, naive.channel_norm(array(x), array(mean), array(gain), array(b)))
                got = canonical.channel_norm_backward(view, grad, mean, offset, slope, gain)
                want = [array(t) for t in (x, grad, mean, offset, slope, gain)]
                assert_same(got, naive.channel_norm_backward(*want))


def test_channel_norm_of_two_dimensions_and_of_nothing() -> None:
    x, mean, gain = numbers(7, 33, seed=37), numbers(33, seed=38), numbers(33, seed=39)
    assert_same(
        canonical.channel_norm(x, mean, gain, mean), naive.channel_norm(array(x), *map(array, (mean, gain, mean)))
    )
    assert canonical.channel_norm(torch.empty(0, 33, 4), mean, gain, None).shape == (0, 33, 4)
