"""``make gpu`` rehearsed: all parts on the emulated device, in tiny sizes; each alone, and none stops the others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bits
from benchmarks.gpu.parts import PARTS, TOOLS
from benchmarks.gpu.peaks import peak
from benchmarks.gpu.rehearsal import variables
from benchmarks.gpu.table import page
from benchmarks.gpu.zoo import POLICIES
from vtrain import children
from vtrain.kernels.selftest import FAMILIES

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The emulated device, compiled once."""
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
        pytest.skip("no C++ compiler, by which the emulated device is made (CXX, c++ or g++)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTRAIN_EMULATED", str(tmp_path_factory.mktemp("emulated")))
        yield


@pytest.mark.timeout(900)
def test_a_rehearsal(tmp_path: Path) -> None:
    out = tmp_path / "results"
    words = ("--device", "emulated", "--tiny", "--out", str(out))
    done = children.bounded(890, "-m", "benchmarks.gpu", *words, alone=True, folder=ROOT)
    assert done.code == 0, done.err
    parts = json.loads((out / "results.json").read_text())["parts"]
    assert list(parts) == list(PARTS) and not any("error" in part for part in parts.values()), done.out
    assert not any("error" in row and row["error"] for part in parts.values() for row in part["found"]), done.out
    for name, check in CHECKS.items():
        check(parts[name]["found"])
    text = (out / "results.md").read_text()
    assert "| fastest | products, small | yes |" in text and "| NO |" not in text and "Stopped" not in text


def _doctor(rows: Rows) -> None:
    (said,) = rows
    assert said["doctor"] == "ok" and said["broken"] == [] and said["of_the_device"] > len(FAMILIES)
    assert "emulated:0" in said["integers"]


def _kernels(rows: Rows) -> None:
    assert {row["host"] for row in rows} == {"generic", "fastest"} and all(row["same"] for row in rows)
    names = [row["kernels"] for row in rows if row["host"] == "fastest"]
    assert [name for name in names if name.endswith(", small")] == bits.names(small_only=True)
    assert len(names) == len(bits.SMALL) + sum(len(group(48)) for group in bits.LARGE.values())
    assert all(row["results"] > 0 for row in rows)


def _zoo(rows: Rows) -> None:
    assert {row["result"] for row in rows} == {"verified"}
    assert {row["policy"] for row in rows} == set(POLICIES)
    assert {(row["trained"], row["audited"]) for row in rows} == {("emulated", "cpu"), ("cpu", "emulated")}
    assert len(rows) == 2 * 2 * len(POLICIES)
    assert any(row["corrections"] for row in rows)  # the arithmetic is another one


def _paper(rows: Rows) -> None:
    (whole,) = [row for row in rows if "final_state" in row]
    assert whole["final_state"] == "identical" and whole["segments"] == "2 of 2" and whole["settled"] > 0
    assert {row["threshold"] for row in rows if row.get("log_bytes", 0) > 0} == {"certified", "off"}
    (plain,) = [row for row in rows if "plain" in row]
    assert plain["differs_after_step"] == 1
    assert [row["audited"] for row in rows if row.get("threshold") == "off" and "audited" in row] == ["0-2"]


def _speed(rows: Rows) -> None:
    assert all(row["ms"] > 0 for row in rows if "ms" in row) and all(row["GB/s"] > 0 for row in rows if "GB/s" in row)
    assert {"model", "product", "pass", "attention"} == {key for row in rows for key in list(row)[:1]}
    assert {"logged", "canonical", "integer", "plain float64"} <= {row["step"] for row in rows if "model" in row}


def _sanitizer(rows: Rows) -> None:
    assert [row["tool"] for row in rows] == list(TOOLS) and all(row["ok"] for row in rows)
    assert all("0 errors" in row["said"] and row["ran"] == bits.names(small_only=True) for row in rows)


CHECKS = {
    "doctor": _doctor, "kernels": _kernels, "zoo": _zoo, "paper": _paper, "speed": _speed, "sanitizer": _sanitizer,
}  # fmt: skip


def part(name: str, seconds: float = 120, device: str = "emulated", **environment: str) -> dict[str, Any]:
    with variables(device) as found:
        return command.run_part(name, device, True, seconds, {**found, **environment}, lambda found: None)


@pytest.mark.timeout(200)
def test_a_broken_kernel_is_told() -> None:
    """One bit of a kernel's results, and a write beyond a block."""
    rows = part("kernels", EMULATED_DAMAGE="layer_norm")["found"]
    wrong = {row["kernels"] for row in rows if not row["same"]}
    assert wrong == {"rows, small", "layer norm of 48 x 48"}
    text = page({"device": "emulated", "tiny": True, "parts": {"kernels": {"found": rows}}})
    assert "| rows, small | NO |" in text and "| sums, small | yes |" in text
    (said,) = part("doctor", EMULATED_DAMAGE="layer_norm")["found"]
    assert said["doctor"] != "ok" and [name for name in said["broken"] if "kernels of rows" in name]


@pytest.mark.timeout(200)
def test_a_write_beyond_memory_is_told() -> None:
    rows = part("sanitizer", EMULATED_DAMAGE="layer_norm:beyond")["found"]
    assert [row["ok"] for row in rows] == [False] * len(TOOLS)
    assert all("0 errors" not in row["said"] and "errors" in row["said"] for row in rows)


@pytest.mark.timeout(200)
def test_a_kernel_that_ends_the_process_costs_its_group_alone() -> None:
    rows = part("kernels", EMULATED_DAMAGE="layer_norm:crash")["found"]
    told = {row["kernels"] for row in rows if row["host"] == "fastest" and not row["same"]}
    assert told == {"rows, small", "rows, large"}
    assert any(row["kernels"].startswith("doubt in") and row["same"] for row in rows)


def test_a_part_that_fails_or_takes_too_long_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = part("speed", device="abacus")
    assert found["found"] == [] and "abacus" in found["error"]
    tries = iter([{"found": [], "error": "fell over"}, {"found": [{"same": True}]}])
    monkeypatch.setattr(command, "run_part", lambda *given: given[-1](found := next(tries)) or {**found, "seconds": 0})
    command.run(["zoo", "speed"], "cpu", True, tmp_path, {})
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert parts["zoo"]["error"] == "fell over" and parts["speed"]["found"] == [{"same": True}]
    assert "Stopped: fell over" in (tmp_path / "results.md").read_text()


def test_what_was_found_before_the_end_is_kept() -> None:
    seen: Rows = []
    with variables("emulated") as environment:
        found = command.run_part("speed", "emulated", True, 6, environment, lambda f: seen.append(dict(f)))
    assert found["error"] == "not done after 6 s" and 6 <= found["seconds"] < 12
    assert len(seen) >= len(found["found"])


def test_all_parts_fit_in_their_time() -> None:
    assert sum(part.seconds for part in PARTS.values()) <= 8 * 60


def test_cards_that_are_known() -> None:
    assert peak("NVIDIA H100 80GB HBM3")["float32"] == 67 and peak("NVIDIA H200")["memory"] == 4800
    assert peak("an abacus") == {}
