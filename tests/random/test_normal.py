"""Box-Muller from IEEE operations: its error, and the same bits under other arithmetic."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import mpmath as mp
import numpy as np

from vtrain.profiles import PROFILES, profile_environment
from vtrain.random import box_muller
from vtrain.random.normal import cos_turns, log

RNG = np.random.default_rng(3)
UNITS = np.concatenate([
    [2.0**-53, 2.0**-52, 0.5, 0.5 + 2.0**-53, 1.0 - 2.0**-53, 1.0, np.sqrt(0.5), np.nextafter(np.sqrt(0.5), 0)],
    RNG.integers(1, 2**53, 500) * 2.0**-53,
    2.0 ** -RNG.uniform(0, 53, 200),
])  # fmt: skip
TURNS = np.concatenate([np.arange(64) / 64, np.arange(64) / 64 + 2.0**-53, RNG.integers(0, 2**53, 580) * 2.0**-53])


def test_log_errs_by_less_than_two_ulp() -> None:
    with mp.workprec(200):
        for u, y in zip(UNITS.tolist(), log(UNITS).tolist(), strict=True):
            exact = mp.log(mp.mpf(u))
            assert abs(y - exact) <= 4 * mp.mpf(2) ** -53 * abs(exact)


def test_cos_errs_by_less_than_two_ulp_of_one() -> None:
    with mp.workprec(200):
        for u, y in zip(TURNS.tolist(), cos_turns(TURNS).tolist(), strict=True):
            assert abs(y - mp.cos(2 * mp.pi * mp.mpf(u))) <= 4 * mp.mpf(2) ** -53


def test_draws_are_within_the_stated_error() -> None:
    pairs = list(zip(UNITS.tolist(), TURNS.tolist(), strict=True))
    with mp.workprec(200):
        for (a, b), y in zip(pairs, box_muller(UNITS, TURNS).tolist(), strict=True):
            radius = mp.sqrt(-2 * mp.log(mp.mpf(a)))
            assert abs(y - radius * mp.cos(2 * mp.pi * mp.mpf(b))) <= mp.mpf(2) ** -49 * radius


DRAW = """
import hashlib, torch
from vtrain.engine.generators.draws import PhiloxSource
print(hashlib.sha256(PhiloxSource(1).normal((100_003,), 2, 3).numpy().tobytes()).hexdigest())
"""


def test_the_same_bits_under_every_profile() -> None:
    """Also numpy's own vector units are switched off: its dispatch follows NPY_DISABLE_CPU_FEATURES."""
    found = set()
    for name in PROFILES:
        env = profile_environment(name)
        if name == "baseline":
            env["NPY_DISABLE_CPU_FEATURES"] = "AVX2 FMA3"
        out = subprocess.run([sys.executable, "-c", DRAW], env=env, capture_output=True, text=True)
        found.add(out.stdout or out.stderr)
    assert len(found) == 1, found
    assert len(next(iter(found)).strip()) == len(hashlib.sha256().hexdigest())
