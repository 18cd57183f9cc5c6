"""Many steps at a learning rate that lets any difference grow: identical at every checkpoint across profiles.

Attention's key biases are the hardest values there are: their exact gradient is zero, so what is computed is all
rounding noise. Without dropout, momentum carries every bit of it into the weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vtrain.profiles import profile_environment

JOB = """
[program]
entry = "vtrain.programs.language:gpt2"
config = {{ vocab = 512, layers = {layers}, width = {width}, heads = {heads}, block = {block}, dropout = 0.0 }}
[data]
name = "random-tokens"
config = {{ n = 256, block = {block}, vocab = 512 }}
[train]
steps = {steps}
batch_size = 8
checkpoint_every = 5
seed = {seed}
[optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
[policy]
target = "{target}"
threshold = "{threshold}"
"""
SHORT = {"layers": 2, "width": 256, "heads": 4, "block": 32, "steps": 15}
LONG = {"layers": 4, "width": 256, "heads": 4, "block": 64, "steps": 100}
AUDITOR = {"OMP_NUM_THREADS": "1", "VTRAIN_CPU": "generic"}


def vtrain(env: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "vtrain", *arguments], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def train_and_audit(folder: Path, size: dict[str, int], seed: int, target: str, threshold: str) -> dict[str, Any]:
    job = folder / "job.toml"
    job.write_text(JOB.format(**size, seed=seed, target=target, threshold=threshold))
    code, _, err = vtrain(profile_environment("native"), "train", str(job), "--out", str(folder / "run"))
    assert code == 0, err
    env = profile_environment("baseline") | AUDITOR
    code, out, err = vtrain(env, "audit", str(folder / "run"), "--job", str(job), "--json")
    assert code in (0, 1), err
    return dict(json.loads(out))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("target", "threshold"),
    [("float32", "certified"), pytest.param("bfloat16", "adaptive", marks=pytest.mark.slow)],
)
def test_fifteen_steps(tmp_path: Path, target: str, threshold: str) -> None:
    verdict = train_and_audit(tmp_path, SHORT, 0, target, threshold)
    assert verdict["result"] == "verified", verdict["detail"]
    assert verdict["replayed"] == [[0, 15]]
    assert verdict["entries"] > 0
    if target == "bfloat16":
        assert verdict["corrections"] > 0


@pytest.mark.timeout(300)
def test_what_the_log_is_for(tmp_path: Path) -> None:
    """Without decisions a narrow target departs at once: the ablation."""
    verdict = train_and_audit(tmp_path, SHORT, 0, "bfloat16", "off")
    assert verdict["result"] == "refuted"
    assert verdict["entries"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("target", "threshold"), [("float32", "certified"), ("bfloat16", "adaptive")])
def test_a_hundred_steps(tmp_path: Path, seed: int, target: str, threshold: str) -> None:
    verdict = train_and_audit(tmp_path, LONG, seed, target, threshold)
    print(target, seed, verdict["settled"], verdict["entries"], verdict["corrections"])
    assert verdict["result"] == "verified", verdict["detail"]
    assert verdict["replayed"] == [[0, 100]]
