"""Every example: recorded in this machine's arithmetic, verified in another, refuted where it was told to differ."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vtrain.profiles import profile_environment

EXAMPLES = Path(__file__).parents[2] / "examples"
LOSS = re.compile(r"\bloss'?:? '?([0-9.]+)")


def start(name: str, *arguments: str, profile: str = "native") -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = profile_environment(profile)
    if "replay" in arguments:  # two at a time; and another number of threads is other hardware, too
        environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=90)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("name", "steps", "change", "bad_step", "what"),
    [
        ("custom_loop", 6, ["--data-seed", "1"], 1, "data"),
        ("resnet_digits", 3, ["--decay", "0.5"], 3, "scalars"),
        ("finetune_hf", 4, ["--learning-rate", "2e-3"], 2, "scalars"),
    ],
    ids=["custom_loop", "resnet_digits", "finetune_hf"],
)
def test_an_example(tmp_path: Path, name: str, steps: int, change: list[str], bad_step: int, what: str) -> None:
    run = str(tmp_path / "run")
    code, recorded, error = finish(start(name, "record", run))
    assert code == 0, error
    assert len(LOSS.findall(recorded)) >= steps
    honest, other = start(name, "replay", run, profile="baseline"), start(name, "replay", run, *change)
    code, replayed, error = finish(honest)
    assert code == 0, replayed + error
    assert re.search(r"^VERIFIED: ", replayed, re.M) and f"steps replayed  0-{steps} of 0-{steps}" in replayed
    if name != "finetune_hf":  # which also prints evaluations, in native arithmetic
        assert LOSS.findall(replayed) == LOSS.findall(recorded)
    code, refuted, error = finish(other)
    assert code == 1, refuted + error
    assert re.search(rf"^REFUTED: first bad step {bad_step}: {what}: ", refuted, re.M), refuted
    assert "Traceback" not in error


def test_no_example_is_left_out() -> None:
    tested = {"custom_loop", "resnet_digits", "finetune_hf"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    for name in tested:
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
        assert f"python examples/{name}.py record" in text and f"python examples/{name}.py replay" in text
        assert 5 <= len(text.strip().splitlines()) <= 10
