"""A trainer who trains otherwise than the job says, and signs what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import KEY, audited, copied, finding, forging, honest, job, make

import vtrain.engine.jobs.task as task_module
from auditor.audit.auditing import _same_job
from auditor.evidence import open_run
from auditor.evidence.verify import verify
from auditor.verdict.verdict import begin
from vtrain.demo.forger import Files, one_ulp
from vtrain.engine.jobs.task import Batch, Task
from vtrain.engine.loops.loop import Loop
from vtrain.job import Job

Patch = pytest.MonkeyPatch
Finding = tuple[int | None, str]


def audit_dishonest(out: Path, dishonesty: Callable[[Patch], object], made: Job | None = None) -> Finding:
    """What an audit finds in a run that was trained under a patch, once the patch is gone."""
    with Patch.context() as patch:
        dishonesty(patch)
        make(out, made)
    verify(out, KEY.public_key(), lambda step, last: None)
    return finding(audited(out))


def test_honest() -> None:
    verdict = audited(honest(), key=KEY.public_key(), job=job())
    assert finding(verdict) == (None, "")
    assert verdict.replayed == [(0, 6)] and verdict.key_pinned and verdict.segments == 4


@pytest.mark.parametrize("step", [1, 3, 6])
def test_learning_rate_of_one_step(tmp_path: Path, step: int) -> None:
    factor = task_module.schedule_factor

    def other(spec: Any, at: int, steps: int) -> float:
        return factor(spec, at, steps) * (1.0 + 1e-6 * (at == step))

    assert audit_dishonest(tmp_path / "run", lambda p: p.setattr(task_module, "schedule_factor", other)) == (
        step,
        "scalars",
    )


def poison(batch: Batch) -> Batch:
    image = batch["image"].clone()
    image.view(torch.int32)[5, 0, 0, 0] ^= 1
    return {**batch, "image": image}


def test_poisoned_sample(tmp_path: Path) -> None:
    def dishonesty(patch: Patch) -> None:
        batch = Task.batch

        def poisoned(self: Task, step: int) -> tuple[Batch, list[int]]:
            honest_batch, indices = batch(self, step)
            return (poison(honest_batch) if step == 3 else honest_batch), indices

        patch.setattr(Task, "batch", poisoned)

    assert audit_dishonest(tmp_path / "run", dishonesty) == (3, "data")


class Switch:
    """Turns a departure on during one step."""

    def __init__(self, patch: Patch, step: int) -> None:
        self.on = False
        run_step = Task.run_step

        def switched(task: Task, loop: Loop, at: int) -> None:
            self.on = at == step
            run_step(task, loop, at)

        patch.setattr(Task, "run_step", switched)


HALF = torch.tensor(0.5)  # as a tensor: a number would be recorded as a host scalar, and found by it


def poison_behind_the_digest(patch: Patch) -> None:
    switch, split = Switch(patch, 3), task_module._split

    def poisoned(batch: Batch, parts: int) -> Any:
        return split({**batch, "image": batch["image"] + HALF} if switch.on else batch, parts)

    patch.setattr(task_module, "_split", poisoned)


def test_poisoned_sample_behind_an_honest_digest(tmp_path: Path) -> None:
    assert audit_dishonest(tmp_path / "run", poison_behind_the_digest) == (3, "loss")


def test_poisoned_sample_behind_honest_digest_and_loss(tmp_path: Path) -> None:
    run = tmp_path / "run"
    audit_dishonest(run, poison_behind_the_digest)
    with forging(honest_copy(tmp_path)) as truth, forging(run) as forger:
        forger.leaves[3]["metrics"] = truth.leaves[3]["metrics"]
        forger.leaves[4]["metrics"] = truth.leaves[4]["metrics"]
    step, what = finding(audited(run))
    assert step == 4
    assert what in ("log", "state")  # an entry of the next step may lie outside the bound before its state is compared


def honest_copy(tmp_path: Path) -> Path:
    return copied(honest(), tmp_path / "honest")


@pytest.mark.parametrize(("calls", "what"), [(0, "scalars"), (2, "sites")])
def test_optimizer_step_left_out_or_done_twice(tmp_path: Path, calls: int, what: str) -> None:
    def dishonesty(patch: Patch) -> None:
        switch, step = Switch(patch, 3), torch.optim.AdamW.step

        def other(self: torch.optim.AdamW, closure: Any = None) -> None:
            for _ in range(calls if switch.on else 1):
                step(self, closure)

        patch.setattr(torch.optim.AdamW, "step", other)

    assert audit_dishonest(tmp_path / "run", dishonesty) == (3, what)


def test_step_undone(tmp_path: Path) -> None:
    """All operations of the step are done, and the weights put back by copies, which log nothing."""

    def dishonesty(patch: Patch) -> None:
        switch, step = Switch(patch, 3), torch.optim.AdamW.step

        def other(self: torch.optim.AdamW, closure: Any = None) -> None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            before = [p.detach().clone() for p in parameters]
            step(self, closure)
            if switch.on:
                with torch.no_grad():
                    for p, old in zip(parameters, before, strict=True):
                        p.copy_(old)

        patch.setattr(torch.optim.AdamW, "step", other)

    step, what = audit_dishonest(tmp_path / "run", dishonesty)
    assert step == 4
    assert what in ("log", "loss")  # whichever the next step meets first


@pytest.mark.parametrize(("shift", "step"), [(1, 3), (-1, 4)])
def test_batch_skipped_or_repeated(tmp_path: Path, shift: int, step: int) -> None:
    def dishonesty(patch: Patch) -> None:
        batch = Task.batch
        patch.setattr(Task, "batch", lambda self, at: batch(self, at + shift if at >= step else at))

    assert audit_dishonest(tmp_path / "run", dishonesty) == (step, "data")


@pytest.mark.parametrize("steps", [5, 7])
def test_other_number_of_steps(tmp_path: Path, steps: int) -> None:
    """Trained for another number of steps, and presented as the job's: the schedule's numbers give it away."""
    run = make(tmp_path / "run", job(train={"steps": steps}, schedule={"name": "constant", "warmup": 0}))
    with forging(run) as forger:
        forger.change_job(lambda j: j["schedule"].update(name="linear", final=0.5))
    assert finding(audited(run)) == (2, "scalars")


def test_another_seed(tmp_path: Path) -> None:
    run = make(tmp_path / "run", job(train={"seed": "1"}))
    assert finding(audited(run)) == (None, "")
    assert finding(audited(run, job=job())) == (0, "job")
    with forging(run) as forger:
        forger.change_job(lambda j: j["train"].update(seed="0"))
    assert finding(audited(run, job=job())) == (0, "state")


def nudge(file: str, name: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files[file][name] = one_ulp(files[file][name], 3)

    return change


@pytest.mark.parametrize("step", [0, 2, 6])
def test_weight_moved_in_checkpoint(run: Path, step: int) -> None:
    with forging(run) as forger:
        forger.change_checkpoint(step, nudge("model", "1.bias"))
    verify(run, KEY.public_key(), lambda at, last: None)
    verdict = audited(run)
    assert finding(verdict) == (step, "state")
    assert "1 of" in verdict.detail and "model/1.bias" in verdict.detail


def test_optimizer_state_moved_in_checkpoint(run: Path) -> None:
    with forging(run) as forger:
        forger.change_checkpoint(4, nudge("optimizer", "1.exp_avg"))
    verdict = audited(run)
    assert finding(verdict) == (4, "state") and "optimizer/1.exp_avg" in verdict.detail


def test_checkpoint_moved_before_the_steps_audited(run: Path) -> None:
    """Beginning from the forged checkpoint, the next one is not what follows from it."""
    with forging(run) as forger:
        forger.change_checkpoint(2, nudge("model", "6.bias"))
    step, what = finding(audited(run, steps=(3, 4)))
    assert (step, what) in [(3, "loss"), (4, "state")]
    assert finding(audited(run, steps=(5, 6))) == (None, "")


def test_client_wants_another_model() -> None:
    verdict = audited(honest(), job=job(program={"config": {"inputs": 192, "hidden": 32}}))
    assert finding(verdict) == (0, "job")
    assert "program.config.hidden is 16 in the run, 32 in the client's job" in verdict.detail
    assert verdict.replayed == []


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [("optimizer", "lr", 0.02), ("train", "batch_size", 4), ("schedule", "warmup", 1), ("data", "config", {"n": 63})],
)
def test_client_wants_something_else(table: str, key: str, value: Any) -> None:
    verdict = audited(honest(), job=job(**{table: {key: value}}))
    assert finding(verdict) == (0, "job") and f"{table}.{key}" in verdict.detail


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(False, 0), (0, False), (True, 1), ("1", 1), (None, False), (1, None)],
)
def test_client_wants_what_python_takes_for_equal(mine: Any, theirs: Any) -> None:
    """A program's argument of another type: 0 is not false, and a missing one not either."""
    jobs = [job(program={"config": {"inputs": 192} | ({} if v is None else {"flag": v})}) for v in (mine, theirs)]
    evidence = open_run(honest())
    verdict = begin(evidence, {})
    assert not _same_job(jobs[0], replace(evidence, job=jobs[1]), verdict)
    assert (verdict.first_bad_step, verdict.what) == (0, "job") and "program.config.flag is " in verdict.detail


def test_client_writes_the_same_number_in_other_words() -> None:
    """RFC 8785 has one text for 1 and 1.0, and so do jobs."""
    jobs = [job(program={"config": {"inputs": 192, "scale": v}}) for v in (1, 1.0)]
    evidence = open_run(honest())
    assert jobs[0].canonical() == jobs[1].canonical()
    assert _same_job(jobs[0], replace(evidence, job=jobs[1]), begin(evidence, {}))


def test_only_digests_may_be_left_open() -> None:
    """A text that is empty elsewhere is a text."""
    evidence = open_run(honest())
    mine = job(program={"config": {"sha256": "", "digest": "", "optable": ""}})
    theirs = job(program={"config": {"sha256": "1", "digest": "1", "optable": "1"}})
    assert not _same_job(mine, replace(evidence, job=theirs), begin(evidence, {}))


def test_run_claims_a_wider_model(run: Path) -> None:
    with forging(run) as forger:
        forger.change_job(lambda j: j["program"]["config"].update(hidden=32))
    verify(run, KEY.public_key(), lambda step, last: None)
    assert finding(audited(run, job=job(program={"config": {"inputs": 192, "hidden": 32}}))) == (0, "scalars")
    # Beginning from a checkpoint, the model that the run claims does not take the tensors.
    assert finding(audited(run, steps=(3, 4))) == (2, "state")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda j: j["optimizer"].update(lr=0.02), (1, "scalars")),
        (lambda j: j["optimizer"].update(betas=[0.8, 0.999]), (1, "scalars")),
        (lambda j: j["train"].update(batch_size=4), (1, "data")),
        (lambda j: j["train"].update(clip_norm=1.0), (1, "scalars")),
        (lambda j: j["program"]["config"].update(dropout=0.5), (1, "scalars")),
        (lambda j: j["schedule"].update(warmup=3), (1, "scalars")),
    ],
    ids=["lr", "betas", "batch_size", "clip_norm", "dropout", "warmup"],
)
def test_run_claims_another_job(run: Path, change: Callable[[dict[str, Any]], None], expected: Finding) -> None:
    with forging(run) as forger:
        forger.change_job(change)
    assert finding(audited(run)) == expected


def test_run_of_other_sites(run: Path) -> None:
    """One step claims the sequence of sites of a step that took the gradient's norm too."""
    clipped = make(run.parent / "clipped", job(train={"clip_norm": 1.0}))
    with forging(clipped) as other, forging(run) as forger:
        name = other.leaves[3]["sites"]
        assert name != forger.leaves[3]["sites"]
        (run / "programs" / f"{name}.json").write_bytes((clipped / "programs" / f"{name}.json").read_bytes())
        forger.leaves[3]["sites"] = name
    verify(run, KEY.public_key(), lambda step, last: None)
    assert finding(audited(run)) == (3, "sites")


@pytest.mark.parametrize("step", [1, 3, 6])
def test_loss_of_one_step(run: Path, step: int) -> None:
    with forging(run) as forger:
        kind, _, bits = forger.leaves[step]["metrics"]["loss"].partition(":")
        forger.leaves[step]["metrics"]["loss"] = f"{kind}:{int(bits, 16) ^ 1:x}"
    verdict = audited(run)
    assert finding(verdict) == (step, "loss")
    assert verdict.replayed == [(0, step)]


def test_metric_added_or_left_out(run: Path) -> None:
    with forging(run) as forger:
        forger.leaves[2]["metrics"]["accuracy"] = "F32:3f800000"
        forger.leaves[5]["metrics"] = {}
    assert finding(audited(run)) == (2, "loss")
    assert finding(audited(run, steps=(3, 6))) == (5, "loss")
