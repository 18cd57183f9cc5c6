"""Generators that a step makes without a seed are seeded by the step; nothing else is."""

from __future__ import annotations

import random
import secrets
import tempfile
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

from vtrain import seeded
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.policy import Policy

UNSEEDED: dict[str, Callable[[], Any]] = {
    "default_rng": lambda: default_rng().integers(2**60),
    "RandomState": lambda: np.random.RandomState().randint(2**31, size=2).tolist(),
    "Generator": lambda: np.random.Generator(np.random.Philox()).random(),
    "SeedSequence": lambda: np.random.SeedSequence().entropy,
    "spawned": lambda: default_rng().spawn(1)[0].random(),
    "Random": lambda: Random().random(),
    "Random, none": lambda: random.Random(None).gauss(0, 1),
    "seeded anew": lambda: _seeded_anew(),
}


def _seeded_anew() -> int:
    generator = Random(3)
    generator.seed()
    return generator.getrandbits(60)


def step(number: int, f: Callable[[], Any], seed: int = 3) -> list[Any]:
    with Session(Plain(), Policy(), seed).step(number):
        return [f(), f()]


@pytest.mark.parametrize("name", list(UNSEEDED))
def test_of_a_step(name: str) -> None:
    f = UNSEEDED[name]
    first = step(1, f)
    assert step(1, f) == first and first[0] != first[1]
    assert not {*map(str, first)} & {*map(str, step(2, f)), *map(str, step(1, f, 4))}
    assert len({str(f()) for _ in range(3)}) == 3


def test_seeded_ones_are_what_they_are() -> None:
    wanted = [default_rng(5).random(), Random(5).random(), Random("a").random()]
    assert step(1, lambda: [default_rng(5).random(), Random(5).random(), Random("a").random()])[1] == wanted


@pytest.mark.parametrize("f", [lambda: secrets.token_hex(8), lambda: random.SystemRandom().random()])
def test_secrets_stay_secret(f: Callable[[], Any]) -> None:
    assert not {*step(1, f)} & {*step(1, f)}


def test_the_standard_library_s_own_are_not_the_step_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def f() -> tuple[str, float]:
        monkeypatch.setattr(tempfile, "_name_sequence", None)
        return tempfile.mktemp(), Random().random()

    one, other = step(1, f), step(1, f)
    assert [x for _, x in one] == [x for _, x in other]
    assert not {name for name, _ in one} & {name for name, _ in other}


def test_another_thread_s_are_its_own() -> None:
    def elsewhere() -> tuple[float, float]:
        found: list[tuple[float, float]] = []
        thread = threading.Thread(target=lambda: found.append((default_rng().random(), Random().random())))
        thread.start()
        thread.join()
        return found[0]

    assert not {x for pair in step(1, elsewhere) for x in pair} & {x for pair in step(1, elsewhere) for x in pair}


def test_a_block_of_its_own_seed_counts_for_itself() -> None:
    def f() -> list[float]:
        found = [Random().random()]
        with seeded(8):
            found.append(Random().random())
        return [*found, Random().random()]

    one, two = step(1, f)
    assert one[1] == two[1] and len({*one, *two}) == 5
    with seeded(8):
        assert Random().random() == one[1]
