"""What is run is said in one place: a run of another kind is opened, judged and reported in that kind's words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import honest, silent

from auditor.evidence import Evidence, kinds, open_run
from auditor.evidence.kinds import TRAINING, RunKind, kind_of
from auditor.evidence.verify import Check
from auditor.report.page import render
from auditor.verdict.verdict import VERIFIED, begin
from vtrain.commit.statement import RUN_PREDICATE
from vtrain.errors import IncompleteRunError, MalformedRunError, Refuted
from vtrain.job import Job


class Evaluation(Job):
    """A job of another kind."""


KIND = RunKind(
    name="evaluation",
    jobs=(Evaluation,),
    predicate=RUN_PREDICATE,
    promised=lambda job: 3,
    product="optimizer",
    product_name="table of scores",
    equal="the scores are the evaluator's, digit for digit",
    first_metric="lo",
    doubts={"state": "scores of another language"},
)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Evidence]:
    """The honest run, called an evaluation."""
    monkeypatch.setattr(kinds, "_kinds", dict(kinds._kinds))
    kinds.register(KIND)
    evidence = open_run(honest())
    assert isinstance(evidence.job, Job) and kind_of(evidence.job) is TRAINING
    evidence.job = Evaluation(**dict(evidence.job))
    yield evidence
    assert kind_of(evidence.job) is KIND


def test_what_a_kind_promises(other: Evidence) -> None:
    with pytest.raises(IncompleteRunError, match="6 steps; the job promises 3"):
        other.require_complete()


def test_what_a_kind_attests(other: Evidence) -> None:
    with pytest.raises(MalformedRunError, match=r"its subject is not the file .*model"):
        other.state(other.last_step)  # the attested digest is the model's, and this kind's product is another file


def test_a_kind_s_words(other: Evidence) -> None:
    verdict = begin(other, {})
    assert verdict.result == VERIFIED and "VERIFIED: the scores are the evaluator's" in str(verdict)
    verdict.refute(Refuted(2, "data", "other texts"))
    verdict.doubt()
    assert "machines can differ" not in str(verdict)
    verdict.first_bad_step = None
    verdict.refute(Refuted(2, "state", "other scores"))
    verdict.doubt()
    assert "scores of another language" in str(verdict)


def test_a_kind_s_report(other: Evidence) -> None:
    page = render(other, [Check("job", "made up")], None, silent)
    assert "<dt>Table of scores</dt>" in page and "Evaluation report" in page and "Training" not in page


def test_training_is_a_kind(tmp_path: Path) -> None:
    page = render(open_run(honest()), [], None, silent)
    assert "<dt>Model file</dt>" in page and "Training report" in page
