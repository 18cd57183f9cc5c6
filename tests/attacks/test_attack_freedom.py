"""A trainer who chooses every decision in doubt: accepted, since each is within the bound, and seen by the test."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from run_helpers import nudged

from auditor.verdict.freedom import EXCESS
from benchmarks.freedom import Cheat, Elsewhere, Outcome, Plain, job, run

STEPS = 6
TOLERANCE = 0.01
Runs = dict[str, Outcome]
RECORDERS = {
    "honest": Plain, "elsewhere": Elsewhere, "cheat": Cheat, "zeros": partial(Cheat, zeros=True),
    "few": partial(Cheat, one_in=500),
}  # fmt: skip


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp(request.param)
    made = job(request.param, "adamw", "certified", STEPS, hidden=16)
    return {name: run(made, recorder, folder / name) for name, recorder in RECORDERS.items()}


def p_value(outcome: Outcome) -> float:
    return float(outcome.verdict.freedom.to_json()["pValue"])


def noted(outcome: Outcome) -> bool:
    return any("depart" in note for note in outcome.verdict.notes)


def test_every_choice_is_accepted(runs: Runs) -> None:
    for name in ("honest", "elsewhere", "cheat", "few"):
        assert runs[name].verdict.verified, (name, runs[name].verdict.detail)
    assert runs["cheat"].verdict.corrections > 100
    assert runs["cheat"].distance(runs["honest"]) > 10 * runs["elsewhere"].distance(runs["honest"])


@pytest.mark.parametrize("name", ["honest", "elsewhere"])
def test_honest_trainers_are_not_suspected(runs: Runs, name: str) -> None:
    assert p_value(runs[name]) > 0.01 and not noted(runs[name])


def test_sums_of_zeros_are_no_choice(runs: Runs) -> None:
    """They are zero on any hardware: a logged value other than that is a violation."""
    found = runs["zeros"].verdict
    assert (found.exit_code, found.first_bad_step, found.what) == (1, 1, "log")
    assert "computed 0.0" in found.detail


def test_a_chooser_is_noted(runs: Runs) -> None:
    assert p_value(runs["cheat"]) < EXCESS * 1e-9 and noted(runs["cheat"])
    assert f"p = {p_value(runs['cheat']):.2g}" in str(runs["cheat"].verdict)


def test_a_few_choices_are_noted(runs: Runs) -> None:
    """One decision in 500: fewer than rounding errors may explain, but too far off for one."""
    assert 0 < runs["few"].verdict.corrections < runs["cheat"].verdict.corrections / 100
    assert p_value(runs["few"]) < EXCESS and noted(runs["few"])


def test_beyond_the_bound_it_is_refuted(tmp_path: Path) -> None:
    """Where an auditor accepts a wide tolerance instead, the same decisions pass, and push towards the trigger."""
    pushed = run(
        job("float32", "adamw", TOLERANCE, 1, hidden=16), partial(Cheat, how="weights"), tmp_path / "a", TOLERANCE
    )
    honest = run(job("float32", "adamw", "certified", 1, hidden=16), Plain, tmp_path / "b")
    assert pushed.verdict.verified and pushed.own is not None and pushed.own.what == "log"
    assert pushed.trigger_loss < honest.trigger_loss - 1e-4


class AtTheBound(Plain):
    """Honest hardware whose results are as high as the certified bound allows."""

    def settle(self, site: Any, y: torch.Tensor, scale: Any, vary: Any = None) -> torch.Tensor:
        return super().settle(site, nudged(y, scale), scale, None)


def test_hardware_at_the_bound_is_noted_too(tmp_path: Path) -> None:
    """So an excess proves nothing: what the bound allows to hardware looks like choices."""
    found = run(job("bfloat16", "adamw", "certified", STEPS, hidden=16), AtTheBound, tmp_path / "run")
    assert found.verdict.verified and noted(found)
