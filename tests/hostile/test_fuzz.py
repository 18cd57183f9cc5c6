"""Parsers of what a trainer wrote, fed with valid input that was spoilt: a typed error or a right answer, in bounds.

A target fails on any exception but a ``VtrainError``, on an input that takes longer than its deadline, on a write
outside its folder, on starting a process, and (in the long version) on taking more than 1 GiB. Several also compare two
ways to read the same thing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, Fuzz
from guard import GIB, TooSlow, confined
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import Step, plans, spoil_bytes, spoil_json

from vtrain.errors import VtrainError

HERE = Path(__file__).parent
# Seconds of the long version, over all targets.
SECONDS = float(os.environ.get("VTRAIN_FUZZ_SECONDS", "600"))
DEADLINE = 20.0
EXAMPLES = {"log": 200, "whole": 80, "meta": 300, "key": 300, "transcript": 300, "safetensors": 300}


@pytest.mark.parametrize("target", TARGETS)
def test_spoilt_input(template: Path, tmp_path: Path, target: str) -> None:
    feed = getattr(Fuzz(template, tmp_path), target)
    ends = {"accepted": 0, "refused": 0}

    @settings(
        max_examples=EXAMPLES.get(target, 600), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(plans, st.floats(0, 1, exclude_max=True))
    def one(plan: list[Step], pick: float) -> None:
        try:
            with confined(tmp_path, DEADLINE):
                feed(plan, pick)
            ends["accepted"] += 1
        except VtrainError:
            ends["refused"] += 1

    one()
    assert ends["refused"] > 10, "the input is hardly spoilt"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_spoilt_input_for_long(template: Path, tmp_path: Path) -> None:
    """Each target in a process that may map 1 GiB more than it began with."""
    done = []
    for target in TARGETS:
        scratch = tmp_path / target
        scratch.mkdir()
        command = [sys.executable, str(HERE / "fuzz_worker.py"), str(template), str(scratch), target]
        found = subprocess.run([*command, str(SECONDS / len(TARGETS))], capture_output=True, text=True)
        assert found.returncode == 0, f"{target}: {found.stderr[-5000:]}"
        done.append(json.loads(found.stdout))
        print(done[-1])
    assert all(d["inputs"] > 0 and d["grown"] < GIB for d in done)
    assert sum(d["inputs"] for d in done) > SECONDS


# ---- what would make the tests above unable to fail -----------------------------------------------------------------
def hang(folder: Path) -> None:
    while True:
        pass


ESCAPES: dict[str, tuple[Callable[[Path], object], type[BaseException]]] = {
    "write": (lambda folder: (folder.parent / "elsewhere").write_text("x"), AssertionError),
    "remove": (lambda folder: (folder.parent / "elsewhere").unlink(missing_ok=True), AssertionError),
    "process": (lambda folder: subprocess.run(["true"], check=True), AssertionError),
    "hang": (hang, TooSlow),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_guard(tmp_path: Path, case: str) -> None:
    act, error = ESCAPES[case]
    folder = tmp_path / "folder"
    folder.mkdir()
    with confined(folder, 5):
        (folder / "mine").write_text("x")
    with pytest.raises(error), confined(folder, 0.2):
        act(folder)


@settings(max_examples=200, deadline=None)
@given(plans)
def test_mutations_change_something_and_never_fail(plan: list[Step]) -> None:
    data = b'{"a":{"b":[1,2,{"c":"d"}]},"e":[]}'
    for made in (spoil_bytes(data, plan, data), spoil_json(data, plan, data)):
        assert isinstance(made, bytes) and len(made) < 1 << 20
