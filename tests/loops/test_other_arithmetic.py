"""The same loops, interrupted once and resumed, audited by a process with other arithmetic, threads and kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loop_cases import CASES
from test_resuming import Stop, train

from vtrain.profiles import profile_environment

REPLAY = """
import sys
from pathlib import Path
from auditor import replay
from loop_cases import CASES
for name, case in CASES.items():
    with replay(Path(sys.argv[1]) / name, **case.arguments()) as run:
        case.body(run, lambda step: None)
    print(name, run.verdict.result, run.verdict.first_bad_step, run.verdict.detail, sep=": ")
"""


def test_resumed_runs_are_verified_elsewhere(tmp_path: Path) -> None:
    for name, case in CASES.items():
        with pytest.raises(Stop):
            train(tmp_path / name, case, 5)
        train(tmp_path / name, case, resume=True)
    other = profile_environment("baseline") | {"OMP_NUM_THREADS": "1", "VTRAIN_CPU": "generic"}
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **other, **paths},
    )
    assert done.returncode == 0, done.stderr
    found = [line.split(": ") for line in done.stdout.splitlines()]
    assert {name: rest for name, *rest in found} == {name: ["verified", "None", ""] for name in CASES}
