"""Every kernel of the host target under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vtrain.kernels.launch import SIGNATURES

MAIN = Path(__file__).with_name("sanitizer_main.cpp")
KERNELS = Path(__file__).parents[2] / "vtrain" / "kernels"
COLUMNS = Path(__file__).with_name("columns_main.cpp"), KERNELS / "host" / "columns.cpp"
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-math-errno", f"-I{KERNELS}", "-fopenmp"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREAD = ["-fsanitize=thread", "-DVTRAIN_STD_THREADS"]  # ThreadSanitizer does not know OpenMP's barriers


def built(folder: Path, flags: list[str], *sources: Path) -> Path:
    """The program; the test is skipped where there is no compiler or no sanitizer."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = folder / "program"
    probe = subprocess.run([compiler, *flags, "-x", "c++", "-", "-o", str(program)], input="int main() {}", text=True,
                           capture_output=True)  # fmt: skip
    if probe.returncode:
        pytest.skip(f"the compiler has no {flags[0]}: {probe.stderr[:100]}")
    subprocess.run([compiler, *FLAGS, *flags, *map(str, sources or (MAIN,)), "-o", str(program)], check=True)
    return program


def run(program: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
    return subprocess.run([str(program)], capture_output=True, text=True, env=env, timeout=500)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "flags", [pytest.param(ADDRESS, id="address"), pytest.param(THREAD, id="thread", marks=pytest.mark.slow)]
)
def test_no_kernel_is_reported(flags: list[str], tmp_path: Path) -> None:
    done = run(built(tmp_path, flags))
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stderr == ""
    assert set(SIGNATURES) <= set(done.stdout.split())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("flags", "broken", "report"),
    [
        (ADDRESS, "BREAK_BOUNDS", "heap-buffer-overflow"),
        (ADDRESS, "BREAK_SHIFT", "runtime error: shift"),
        (THREAD, "BREAK_RACE", "data race"),
    ],
)
@pytest.mark.slow
def test_what_is_broken_is_reported(flags: list[str], broken: str, report: str, tmp_path: Path) -> None:
    done = run(built(tmp_path, [*flags, f"-D{broken}"]))
    assert done.returncode != 0
    assert report in done.stderr


@pytest.mark.timeout(600)
def test_columns_of_hard_geometries(tmp_path: Path) -> None:
    done = run(built(tmp_path, ADDRESS, *COLUMNS))
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stderr == ""
    assert int(done.stdout.split()[0]) > 1000


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "report"), [("BREAK_LENGTH", "elements, want"), ("BREAK_CHECK", "heap-buffer-overflow")]
)
@pytest.mark.slow
def test_columns_that_are_too_short_are_reported(broken: str, report: str, tmp_path: Path) -> None:
    done = run(built(tmp_path, [*ADDRESS, f"-D{broken}"], *COLUMNS))
    assert done.returncode != 0
    assert report in done.stderr
