"""The engine on a device beside the CPU: each file ``on_*.py`` is a session of pytest in a process that has one.

A process of its own, because autograd counts a process's devices once, and because a process with an accelerator is
another one for every other test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("on_*.py"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the compiled device's folder: compiled once a session."""
    code = f"import sys; sys.path.append({str(HERE)!r}); import emulated"
    environment = {**os.environ, "VTRAIN_EMULATED": str(tmp_path_factory.mktemp("emulated"))}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "AssertionError: no C++ compiler" in done.stderr:
        pytest.skip("no C++ compiler, by which the emulated device is made (CXX, c++ or g++)")
    assert done.returncode == 0, done.stderr[-3000:]
    return environment


def inner(file: str, environment: dict[str, str], mark: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", mark, str(HERE / file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode in (0, 5), done.stdout[-8000:] + done.stderr[-2000:]  # 5: none has the mark


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", FILES)
def test_on_an_emulated_device(file: str, environment: dict[str, str]) -> None:
    inner(file, environment, "not slow")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", FILES)
def test_more_on_an_emulated_device(file: str, environment: dict[str, str]) -> None:
    inner(file, environment, "slow")
