"""The parts of ``make gpu``, on the CPU and in tiny sizes: each runs alone, and none stops the others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.table import page
from vtrain import children

ROOT = Path(__file__).parents[2]


def test_parts_run_and_are_written(tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = children.bounded(
        200, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out), "kernels", "speed", folder=ROOT
    )
    assert done.code == 0, done.err
    found = json.loads((out / "results.json").read_text())["parts"]
    assert list(found) == ["kernels", "speed"] and all("error" not in part for part in found.values())
    assert len(found["kernels"]["found"]) > 15 and all(row["same"] for row in found["kernels"]["found"])
    text = (out / "results.md").read_text()
    assert "| products | yes |" in text and "| gpt2, tiny | canonical |" in text


def test_a_part_that_fails_says_so() -> None:
    found = command.run_part("speed", "abacus", True, 60)
    assert found["found"] == [] and "abacus" in found["error"]
    found = command.run_part("speed", "cpu", True, 0.1)
    assert found["error"] == "not done after 0 s"
    text = page({"device": "cpu", "tiny": True, "parts": {"speed": found}})
    assert "Stopped: not done after 0 s" in text


def test_all_parts_fit_in_their_time() -> None:
    assert sum(part.seconds for part in PARTS.values()) <= 8 * 60


def test_other_bits_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import bits, parts

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(bits, "same", lambda a, b: False)
    parts.kernels("cpu", True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows and not any(row["same"] for row in rows)
    assert "| NO |" in page({"device": "cpu", "tiny": True, "parts": {"kernels": {"found": rows}}})
