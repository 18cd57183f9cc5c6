"""Canonical functions are correctly rounded: a stratified part of their inputs here, all 2^32 in ``make slow``."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import pytest
import torch

from benchmarks import exhaust
from vtrain.kernels import canonical
from vtrain.profiles import PROFILES, profile_environment
from vtrain.rounding.functions import CORRECT

PART = 4099  # every 4099th: a million inputs, of each binade 2047


@pytest.mark.parametrize("name", sorted(CORRECT))
def test_a_part_of_all_inputs(name: str) -> None:
    found = exhaust.sweep(name, PART)
    assert found.inputs >= exhaust.ALL // PART and found.differences == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", sorted(CORRECT))
def test_all_inputs(name: str, profile: str) -> None:
    command = [sys.executable, "-m", "benchmarks.exhaust", name]
    done = subprocess.run(command, env=profile_environment(profile), capture_output=True, text=True, check=True)
    row = done.stdout.splitlines()[3].split("|")
    assert (row[1].strip(), row[2].strip(), row[4].strip()) == (name, f"{exhaust.ALL:,}", "0"), done.stdout


def test_the_blocks_are_all_numbers() -> None:
    first = next(exhaust.blocks())
    assert first.view(torch.int32).tolist() == list(range(exhaust.BLOCK)) and exhaust.ALL % exhaust.BLOCK == 0
    seen = [x.view(torch.int32) for x in exhaust.blocks(PART)]
    assert len({int(b) for x in seen for b in (x >> 23).unique()}) == 512  # both signs and all exponents


# ---- and differences would be found ---------------------------------------------------------------------------------
def _with(change: object) -> mock._patch:
    real = canonical.function

    def function(name: str, x: torch.Tensor, to: torch.dtype) -> torch.Tensor:
        return change(x, real(name, x, to), to)  # type: ignore[operator]

    return mock.patch.object(canonical, "function", function)


def _next(y: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    bits = y.view(torch.int32 if y.dtype is torch.float32 else torch.int64)
    return (bits + where.to(bits.dtype)).view(y.dtype)


@pytest.mark.parametrize("x", [1.0, 2.0**-20, -(2.0**-140), 5.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_unit_in_the_last_place_is_found(x: float, dtype: torch.dtype) -> None:
    """In float32 anywhere; in float64 where a format's rounding hangs on it."""
    inputs = torch.full((4,), x)
    units = 1 if dtype is torch.float32 else 1 << (53 - 24)
    with _with(lambda x, y, to: _next(y, torch.full_like(x, units if to is dtype else 0))):
        found = exhaust.Found("tanh")
        exhaust.tried(found, inputs)
    assert found.differences
    found = exhaust.Found("tanh")
    exhaust.tried(found, inputs)
    assert not found.differences


def test_the_wrong_side_of_a_number_is_found() -> None:
    """sin x is below x: float64's x itself would be half-way between two values of a narrower format."""
    with _with(lambda x, y, to: x.to(to)):
        found = exhaust.Found("sin")
        exhaust.tried(found, torch.full((4,), 2.0**-40))
    assert "not as near to x" in found.differences[0]


def test_hard_cases_are_decided_by_mpmath() -> None:
    """The logarithm of 1000 is a short number, which no distance in float64 tells from a neighbour of one."""
    found = exhaust.Found("log10")
    exhaust.tried(found, torch.tensor([1000.0, 1e10, 7.0]))
    assert found.hard == 2 and not found.differences
