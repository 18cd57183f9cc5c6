"""Jobs on the device: trained, resumed, audited and disputed there, and the other side on the CPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "attacks"))
sys.path.append(str(Path(__file__).parents[1] / "dispute"))
import run_helpers
from emulated import NAME
from parties import AUDITOR, changed
from run_helpers import KEY, job, silent

from auditor.audit import Request, audit
from auditor.dispute.challenger import Challenger
from auditor.dispute.referee import judge
from auditor.dispute.rerun import Rerun
from auditor.dispute.responder import Responder
from auditor.dispute.tracing import Tracer
from auditor.evidence import open_run
from auditor.verdict import Verdict
from trainer.train import resume, train
from vtrain.engine.jobs.task import Task
from vtrain.job import Job
from vtrain.profiles import DEVICE

HERE = Path(__file__).parent
PAIRS = [(NAME, "cpu"), ("cpu", NAME)]
POLICIES: dict[str, dict[str, Any]] = {
    "logged": {"other": "logged"}, "canonical": {"matmul": "chain"}, "float16": {"target": "float16"},
    "certified bfloat16": run_helpers.CERTIFIED16, "adaptive bfloat16": {"target": "bfloat16"},
}  # fmt: skip


@contextlib.contextmanager
def on(device: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DEVICE, device)
        yield
    assert torch.ops.emulated.violations() == 0


def placed(policy: str = "logged", **changes: Any) -> Job:
    return job(policy=POLICIES[policy], **changes)


def trained(out: Path, device: str, made: Job) -> Path:
    with on(device):
        train(made, HERE, out, KEY, silent)
    return out


def audited(run: Path, device: str, **request: Any) -> Verdict:
    with on(device):
        return audit(Request(run, HERE, **request), silent, silent)


def states(run: Path) -> list[Any]:
    """Digests of the state at each checkpoint."""
    found = open_run(run)
    return [(step, found.state(step).text) for step in found.checkpoints]


@pytest.mark.parametrize("device", [NAME, f"{NAME}:1", "cpu"])
def test_a_job_lies_where_it_is_put(device: str) -> None:
    with on(device):
        model = Task(job(), HERE).model()
    assert {t.device for t in model.parameters()} == {torch.empty(0, device=device).device}


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_trained_there_audited_here(there: str, here: str, policy: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", there, placed(policy))
    verdict = audited(run, here)
    assert verdict.verified, verdict.detail


def test_canonical_states_are_the_same(tmp_path: Path) -> None:
    runs = [trained(tmp_path / where, where, placed("canonical")) for where in ("cpu", NAME)]
    assert states(runs[0]) == states(runs[1])


class Killed(Exception):
    """The training ends here."""


@pytest.mark.parametrize(("first", "then"), [(NAME, NAME), (NAME, "cpu"), ("cpu", NAME)])
def test_resumed_there(first: str, then: str, tmp_path: Path) -> None:
    """A checkpoint of one device is another's too; without a log the bits are those of a run in one go."""
    whole, run = trained(tmp_path / "whole", "cpu", placed("canonical")), tmp_path / "run"

    told = []

    def kill(*said: Any) -> None:
        told.append(said)
        if len(told) == 5:
            raise Killed

    with on(first), pytest.raises(Killed):
        train(placed("canonical"), HERE, run, KEY, kill)
    with on(then):
        resume(run, HERE, KEY, silent)
    assert states(run) == states(whole)
    assert audited(run, NAME if then == "cpu" else "cpu").verified


# ---- disputes --------------------------------------------------------------------------------------------------------
PRODUCT = 2  # number of a result in the runs' steps: the forward pass's second product


def challenger(run: Path, theirs: str, mine: str, cheat: type[Tracer] = Tracer) -> Challenger:
    """A dispute whose sides are on devices of their own."""
    responder = Responder(Rerun(open_run(run), HERE, make_tracer=cheat), KEY)

    def answer(*question: Any) -> Any:
        with on(theirs):
            return responder.answer(*question)

    return Challenger(Rerun(open_run(run), HERE, {}, Tracer), AUDITOR, answer)


@pytest.mark.parametrize(("there", "here"), PAIRS)
@pytest.mark.parametrize("policy", ["logged", "canonical", "certified bfloat16"])
def test_honest_parties_agree(there: str, here: str, policy: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", there, placed(policy))
    dispute = challenger(run, there, here)
    with on(here):
        assert dispute.first_step(0, 6) is None
        assert dispute.dispute(3) is None


@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_a_cheat_is_found(there: str, here: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", there, placed("logged"))
    dispute = challenger(run, there, here, changed(3, PRODUCT, nudged))
    with on(here):
        found = dispute.dispute(3)
    assert found is not None and (found.result, found.wrong, found.step) == ("refuted", ("run",), 3)
    finding = judge(found.records[0], KEY.public_key())
    assert [(e.index, e.run_within, e.other_within) for e in finding.elements] == [(5, False, True)]


def nudged(out: torch.Tensor) -> None:
    out.view(torch.int32).view(-1)[5:6] += 1000
