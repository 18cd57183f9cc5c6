"""Every model of the zoo: trained under this machine's own arithmetic, audited under another, equal in every bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import zoo

from vtrain.profiles import profile_environment

SCRIPT = Path(__file__).parent / "zoo.py"
# The auditor differs in everything that changes arithmetic: instruction sets, thread count, kernel variant.
AUDITOR = {"OMP_NUM_THREADS": "1", "VTRAIN_CPU": "generic"}
Outcomes = dict[str, dict[str, Any]]


def check(name: str, recorded: dict[str, Any], replayed: dict[str, Any]) -> None:
    """Both sides went through, and agree in every bit."""
    assert "error" not in recorded, recorded.get("trace")
    assert "error" not in replayed, replayed.get("trace")
    assert recorded["finite"]
    assert replayed["result"] == "verified", replayed["detail"]
    assert replayed["violations"] == 0
    assert replayed["replayed"] == [[0, zoo.STEPS]]


def start(mode: str, root: Path, names: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), mode, str(root), *names]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gather(processes: list[subprocess.Popen[str]]) -> Outcomes:
    found: Outcomes = {}
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err[-3000:]
        found.update({line["case"]: line for line in map(json.loads, out.splitlines())})
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    """What recording and replaying each case came to; two processes at a time, each with half of the cases."""
    root = tmp_path_factory.mktemp("zoo")
    names = list(zoo.CASES)
    halves = [names[::2], names[1::2]]
    recorded = gather([start("record", root, half, profile_environment("native")) for half in halves])
    env = profile_environment("baseline") | AUDITOR
    return recorded, gather([start("replay", root, half, env) for half in halves])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(zoo.CASES))
def test_trained_here_audited_there(name: str, outcomes: tuple[Outcomes, Outcomes]) -> None:
    recorded, replayed = (found[name] for found in outcomes)
    check(name, recorded, replayed)
    # nothing was compared if nothing was settled
    assert replayed["settled"] > 1000


def test_the_two_sides_really_differ(outcomes: tuple[Outcomes, Outcomes]) -> None:
    """The profiles change torch's own results, or the test above would say nothing."""
    code = (
        "import torch; g = torch.Generator().manual_seed(1); a = torch.rand(300, 300, generator=g);"
        "print([float((a @ a).sum()), float(a.double().exp().sum()), torch.backends.cpu.get_cpu_capability()])"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout
        for env in (profile_environment("native"), profile_environment("baseline") | AUDITOR)
    }
    assert len(found) == 2, found
    assert "DEFAULT" in "".join(found)
    assert os.environ.get("ATEN_CPU_CAPABILITY") is None
