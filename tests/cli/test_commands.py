"""The command line in processes of its own: without torch, under profiles, interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import HERE, KEY, STEPS, evidence_bytes, honest, values

from auditor.evidence import open_run
from vtrain.cli import COMMANDS
from vtrain.commit import keys

NAMES_THE_RUN = ("run.json", "transcript.jsonl", "attestation.json")  # each training has a nonce of its own

# Any import of torch fails in a process that has this first on its path.
NO_TORCH = "raise ImportError('torch must not be needed here')\n"


def call(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vtrain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, cwd=HERE)


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "torch.py").write_text(NO_TORCH)
    return {"PYTHONPATH": str(tmp_path / "stub")}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keys.save_private(tmp_path / "k.key", KEY)
    (tmp_path / "k.key.pub").write_text(keys.public_text(KEY))
    return tmp_path / "k.key"


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    from run_helpers import toml

    path = tmp_path / "job.toml"
    path.write_text(toml(values()))
    return path


def assert_plain(text: str) -> None:
    assert "\x1b" not in text, "escape codes where there is no terminal"


# ---- help -----------------------------------------------------------------------------------------------------------
def test_help_lists_all_commands_without_torch(no_torch: dict[str, str]) -> None:
    done = call("--help", env=no_torch)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_has_help_with_an_example(name: str, no_torch: dict[str, str]) -> None:
    done = call(name, "--help", env=no_torch)
    assert done.returncode == 0, done.stderr
    assert f"vtrain {name}" in done.stdout.split("Example")[1]


# ---- without torch --------------------------------------------------------------------------------------------------
def test_verify_and_inspect_without_torch(no_torch: dict[str, str], key_file: Path) -> None:
    assert call("doctor", env=no_torch).returncode != 0  # the stub works
    done = call("verify", honest(), "--trainer-key", f"{key_file}.pub", env=no_torch)
    assert done.returncode == 0, done.stderr
    assert "well-formed" in done.stdout
    done = call("verify", honest(), "--json", env=no_torch)
    assert json.loads(done.stdout)["result"] == "well-formed"
    done = call("inspect", honest(), "--json", env=no_torch)
    rows = {row["operation"]: row for row in json.loads(done.stdout)["operations"]}
    totals = ("total logged", "total canonical")
    values = {
        kind: sum(r["values"] for n, r in rows.items() if n not in totals and r["canonical"] == kind)
        for kind in (False, True)
    }
    assert [rows[name]["values"] for name in totals] == [values[False], values[True]]
    assert min(values.values()) > 0
    assert rows["aten.addmm.default"]["sites"] == 3 * STEPS
    table = call("inspect", honest(), "--steps", "1:2", env=no_torch)
    assert "aten.addmm.default" in table.stdout
    assert_plain(table.stdout)
    assert call("inspect", honest(), "--steps", "1:99", env=no_torch).returncode == 2


# ---- processes ---------------------------------------------------------------------------------------------------
def test_doctor_says_where_it_runs() -> None:
    for name in ("native", "baseline"):
        done = call("doctor", "--json", "--profile", name)
        found = json.loads(done.stdout)
        assert done.returncode == 0
        assert found["environment"]["profile"] == name
        assert all(found["arithmetic"].values())
        assert found["integerProducts"]["cpu"].startswith("by float64" if name == "baseline" else "by ")
        assert found["profiles"]["baseline"] in ("DEFAULT", "fails", "NO AVX")


def test_the_profile_is_left_for_native(tmp_path: Path) -> None:
    done = call("doctor", "--json", "--profile", "native", env={"ATEN_CPU_CAPABILITY": "default"})
    assert json.loads(done.stdout)["environment"]["profile"] == "native"


def heeding_ctrl_c() -> None:
    """As from a terminal: a shell starts background jobs, such as these tests may be, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.timeout(120)
def test_ctrl_c_leaves_a_run_to_resume(job_file: Path, key_file: Path, tmp_path: Path) -> None:
    job_file.write_text(job_file.read_text().replace(f"steps = {STEPS}", "steps = 40"))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "vtrain", "train", str(job_file), "--out", str(out), "--key", str(key_file)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE, preexec_fn=heeding_ctrl_c
    )
    while not (out / "checkpoints" / "000004").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "vtrain resume" in stderr
    assert "Traceback" not in stderr
    done = call("audit", out)
    assert done.returncode == 3  # not finished
    done = call("resume", out, "--key", key_file)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole"
    assert call("train", job_file, "--out", whole, "--key", key_file).returncode == 0
    mine, wanted = ({n: d for n, d in evidence_bytes(p).items() if n not in NAMES_THE_RUN} for p in (out, whole))
    assert mine == wanted and open_run(out).leaves == open_run(whole).leaves
    assert open_run(out).run != open_run(whole).run


@pytest.mark.timeout(200)
def test_calibrate_prints_a_table_for_the_job(job_file: Path, key_file: Path, tmp_path: Path) -> None:
    job_file.write_text(job_file.read_text() + '[policy]\ntarget = "bfloat16"\nthreshold = "adaptive"\n')
    done = call("calibrate", job_file, "--thresholds", "--steps", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[policy.calibration]"
    assert any(line.startswith('"mm:') for line in lines[1:])
    job_file.write_text(job_file.read_text() + done.stdout)
    out = tmp_path / "run"
    assert call("train", job_file, "--out", out, "--key", key_file).returncode == 0
    leaves = [json.loads(line) for line in (out / "transcript.jsonl").read_text().splitlines()]
    assert all(not leaf["calibration"] for leaf in leaves if leaf["type"] == "leaf")
    assert call("audit", out, "--job", job_file, "--profile", "baseline").returncode == 0
