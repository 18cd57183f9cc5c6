"""Progress: a bar with a total on a terminal, lines in a file."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import HERE, honest, toml, values

from vtrain.console import Lines


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(capsys: pytest.CaptureFixture[str], seconds: float, steps: int, tenths: bool, first: int = 1) -> list[str]:
    clock = Clock()
    said = Lines("training", None, tenths, clock)
    said(0, "", steps)
    for step in range(first, steps + 1):
        clock.now += seconds
        said(step, "loss 1.0")
    return capsys.readouterr().err.splitlines()


def test_a_line_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 2.0, 100, True)
    assert found[0] == "training 10/100, loss 1.0, 0:03:00 left" and found[-1] == "training 100/100, loss 1.0"
    assert len(found) == 10


def test_at_most_a_line_a_second_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(lines(capsys, 0.05, 100, True)) == 5
    assert lines(capsys, 0.001, 100, True) == ["training 100/100, loss 1.0"]


def test_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 10.0, 1000, False)
    assert len(found) == 333 and found[0].startswith("training 3/1000")
    assert lines(capsys, 0.01, 1000, False) == []


def test_a_resumed_run_tells_its_own_speed(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 2.0, 100, True, first=51)
    assert found[0] == "training 51/100, loss 1.0, 0:01:38 left"


def test_no_total_yet(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    said = Lines("reading", None, False, clock)
    clock.now = 31.0
    said(7)
    assert capsys.readouterr().err == "reading 7/?\n"


COMMAND = [sys.executable, "-m", "vtrain"]


def test_commands_say_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(toml(values()))
    done = subprocess.run(
        [*COMMAND, "train", "job.toml", "--out", "run"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and re.search(r"^training 6/6, loss \d\.\d{4}$", done.stderr, re.MULTILINE), done.stderr
    assert done.stdout == "trained 6 steps: run\n"
    done = subprocess.run([*COMMAND, "audit", honest(), "--steps", "3:6"], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "auditing 4/4, step 6", done.stderr


def test_the_bar_has_a_total(tmp_path: Path) -> None:
    seen = b""

    def read(descriptor: int) -> bytes:
        nonlocal seen
        data = os.read(descriptor, 65536)
        seen += data
        return data

    status = pty.spawn([*COMMAND, "audit", str(honest())], read)
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"\n", seen).decode(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 0
    assert re.search(r"[1-7]/7\b", text) and "step " in text
    assert not re.search(r"[1-9]\d*/\?", text)
