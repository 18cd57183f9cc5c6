"""Loops around what can't round, recorded under the default settings and replayed under other arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import loops
import pytest

from vtrain.profiles import profile_environment

SCRIPT = Path(__file__).with_name("loops.py")
OTHER = {**profile_environment("baseline"), "VTRAIN_CPU": "generic", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("loops")
    for name in loops.LOOPS:
        loops.recorded(name, folder / name)
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env={**os.environ, **OTHER}, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", list(loops.LOOPS))
def test_a_loop_is_verified_under_other_arithmetic(name: str, results: dict[str, str]) -> None:
    assert results[name] == "verified"
