"""The commands, in processes of their own: a trainer that listens and an auditor that connects, on other arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from parties import changed, ulps
from run_helpers import HERE, KEY, copied, honest, toml, values
from test_dispute import PRODUCT, trained

from vtrain.commit import keys
from vtrain.profiles import profile_environment

AUDITOR_ENVIRONMENT = {**profile_environment("baseline"), "OMP_NUM_THREADS": "1", "VTRAIN_CPU": "generic"}
SERVER = """
import sys
sys.path[:0] = [{here!r}, {attacks!r}]
from pathlib import Path
from parties import changed, ulps
from auditor.dispute import rerun
rerun.Rerun.__init__.__defaults__ = (None, changed({step}, {seq}, ulps(5, 1000)))
sys.argv = ["vtrain", "dispute", {run!r}, "--listen", "127.0.0.1:0", "--key", {key!r}]
from vtrain.cli import main
main()
"""


def call(*arguments: Any, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vtrain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=HERE, timeout=1700)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keys.save_private(tmp_path / "k", KEY)
    (tmp_path / "k.pub").write_text(keys.public_text(KEY))
    return tmp_path / "k"


@contextmanager
def listening(command: list[str], env: dict[str, str] | None = None) -> Iterator[str]:
    """A process that answers one challenger; its address."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=HERE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        try:
            yield line.removeprefix("listening on ").strip()
            assert process.wait(timeout=60) == 0
            assert process.stdout.read().startswith("answered")
        finally:
            process.kill()


def trainer(run: Path, key: Path) -> list[str]:
    return [sys.executable, "-m", "vtrain", "dispute", str(run), "--listen", "127.0.0.1:0", "--key", str(key)]


def test_an_honest_run_over_a_socket(key_file: Path, tmp_path: Path) -> None:
    run = honest("certified16")
    with listening([*trainer(run, key_file), "--out", str(tmp_path / "kept")]) as address:
        done = call("dispute", run, "--connect", address, "--out", tmp_path / "out", env=AUDITOR_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no step differs\n"
    transcript = tmp_path / "out" / "transcript.jsonl"
    assert (tmp_path / "kept" / "transcript.jsonl").read_bytes() == transcript.read_bytes()
    done = call("referee", transcript, "--trainer-key", f"{key_file}.pub")
    assert done.returncode == 0 and "nobody broke a rule" in done.stdout
    lines = transcript.read_bytes().splitlines(keepends=True)
    transcript.write_bytes(b"".join(lines[:-1]))
    done = call("referee", transcript, "--trainer-key", f"{key_file}.pub")
    assert done.returncode == 1 and "not proved" in done.stdout and "challenger  key" in done.stdout
    assert not json.loads(call("referee", transcript, "--trainer-key", f"{key_file}.pub", "--json").stdout)["proved"]


def test_a_cheat_over_a_socket(key_file: Path, tmp_path: Path) -> None:
    """From `vtrain audit --dispute` to the record that convicts, which `vtrain referee` judges alone."""
    run = trained(tmp_path, changed(3, PRODUCT, ulps(5, 1000)))
    code = SERVER.format(
        here=str(Path(__file__).parent), attacks=str(HERE), step=3, seq=PRODUCT, run=str(run), key=str(key_file)
    )
    verdict = tmp_path / "verdict.json"
    with listening([sys.executable, "-c", code]) as address:
        done = call(
            "audit", run, "--dispute", address, "--records", tmp_path / "out", "--json", "--verdict", verdict,
            "--key", key_file, env=AUDITOR_ENVIRONMENT,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["firstBadStep"], found["what"], found["dispute"]["wrong"]) == (3, "operation", ["run"])
    (record,) = (tmp_path / "out").glob("record-*")
    done = call("referee", record, "--trainer-key", f"{key_file}.pub", "--json")
    assert done.returncode == 1, done.stderr
    judged = json.loads(done.stdout)
    assert (judged["result"], judged["wrong"], judged["answered"]) == ("refuted", ["run"], True)
    assert [e["index"] for e in judged["elements"]] == [5]
    assert "REFUTED" in call("referee", record).stdout


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "config,steps,corrections",
    [
        ({"layers": 2, "width": 128, "block": 64}, 2, 50),
        pytest.param({"layers": 2, "width": 256, "block": 128}, 4, 100, marks=pytest.mark.slow),
    ],
)
def test_a_tight_threshold_on_another_machine(
    config: dict[str, int], steps: int, corrections: int, key_file: Path, tmp_path: Path
) -> None:
    """bfloat16 trained on native arithmetic, audited on baseline: many corrections a step, repairs, VERIFIED."""
    job = values(
        program={"entry": "vtrain.programs.language:gpt2", "config": config},
        data={"name": "topics", "config": {"block": config["block"]}},
        train={"steps": steps, "batch_size": 8, "checkpoint_every": 2},
        policy={"target": "bfloat16", "threshold": 1e-8},
    )
    (tmp_path / "job.toml").write_text(toml(job))
    run = tmp_path / "run"
    native = {**profile_environment("native"), "OMP_NUM_THREADS": "2"}
    done = call("train", tmp_path / "job.toml", "--out", run, "--key", key_file, env=native)
    assert done.returncode == 0, done.stderr
    with listening(trainer(run, key_file), native) as address:
        done = call("audit", run, "--dispute", address, "--json", env=AUDITOR_ENVIRONMENT)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["result"] == "verified" and found["dispute"] is None
    assert len(found["repairs"]) > 3
    assert found["corrections"] > corrections * steps


def test_two_directories(tmp_path: Path) -> None:
    from run_helpers import other_hardware

    run, other = honest("certified16"), other_hardware("certified16")
    done = call("dispute", run, "--against", other, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["result"] == "benign" and len(found["repairs"]) == 1
    (record,) = (tmp_path / "out").glob("record-*")
    judged = json.loads(call("referee", record, "--json").stdout)
    assert (judged["result"], judged["answered"]) == ("benign", False), "no trainer signed this side"
    assert call("dispute", run, "--against", copied(run, tmp_path / "same")).stdout == "no step differs\n"


def test_two_directories_of_which_one_cheats(tmp_path: Path) -> None:
    run = trained(tmp_path, changed(3, PRODUCT, ulps(5, 1000)))
    done = call("dispute", run, "--against", honest(), "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["dispute"]
    assert (found["wrong"], found["step"]) == (["run"], 4)
    assert "its leaf commits to" in found["why"]


def test_a_run_alone(run: Path) -> None:
    done = call("dispute", run, "--replay")
    assert (done.returncode, done.stdout) == (0, "no step differs\n"), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--replay", "--connect", "127.0.0.1:1"), ("--connect", "nowhere"), ("--connect", "127.0.0.1:1"),
        ("--listen", "127.0.0.1:0"), ("--replay", "--steps", "5:99"),
    ],
)  # fmt: skip
def test_usage(run: Path, arguments: tuple[str, ...]) -> None:
    done = call("dispute", run, *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_another_key_can_not_answer(run: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    keys.save_private(tmp_path / "other", Ed25519PrivateKey.generate())
    done = call("dispute", run, "--listen", "127.0.0.1:0", "--key", tmp_path / "other")
    assert done.returncode == 2 and "is signed by key" in done.stderr


def test_records_are_not_put_into_the_run(run: Path) -> None:
    before = sorted(os.listdir(run))
    assert call("dispute", run, "--replay", "--out", run / "out").returncode == 2
    assert sorted(os.listdir(run)) == before
