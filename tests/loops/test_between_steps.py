"""What programs do after, between and around steps: the run ends with its last step, and changes are seen."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from auditor import replay
from auditor.evidence import open_run
from trainer import record
from vtrain.errors import StateError, UsageError

STEPS = 4


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def batch(step: int) -> torch.Tensor:
    return (torch.arange(24) % 7 - 3).view(4, 6) * (step / 8)


def train(run: Any, between: Callable[[Any, int], object] = lambda run, step: None, steps: int = STEPS) -> None:
    for step in range(run.steps_done + 1, steps + 1):
        x = batch(step)
        with run.step(x):
            loss = run.model(x).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)
        between(run, step)


def both(path: Path, body: Callable[[Any], object], **settings: Any) -> Any:
    """Recorded and replayed with one body; the verdict."""
    with record(path, model=net, optimizer=adam, checkpoint_every=2, **settings) as run:
        body(run)
    with replay(path, model=net, optimizer=adam) as again:
        body(again)
    return again.verdict


# ---- after the last step --------------------------------------------------------------------------------------------
def best_weights(run: Any) -> None:
    run.model.load_state_dict(BEST)


def averaged_statistics(run: Any) -> None:
    torch.optim.swa_utils.update_bn([batch(1), batch(2)], run.model)


def merged(run: Any) -> None:
    with torch.no_grad():
        run.model[0].weight += 0.5 * torch.ones_like(run.model[0].weight)


def through_numpy(run: Any) -> None:
    run.model[0].weight.detach().numpy()[:] = 3


def another_storage(run: Any) -> None:
    run.model[0].weight.data = torch.zeros(8, 6)


def optimizer_cleared(run: Any) -> None:
    run.optimizer.state.clear()


BEST = copy.deepcopy(net().state_dict())
ENDS = {
    "best weights": best_weights, "half": lambda run: run.model.half(), "batch norm": averaged_statistics,
    "merged": merged, "numpy": through_numpy, "data": another_storage, "cleared": optimizer_cleared,
    "gradients": lambda run: run.optimizer.zero_grad(set_to_none=False), "eval": lambda run: run.model.eval(),
}  # fmt: skip


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("steps", [3, 4])  # with no checkpoint due at the last one, and with one
def test_what_follows_the_last_step_is_outside_the_run(tmp_path: Path, end: str, steps: int) -> None:
    def body(run: Any) -> None:
        train(run, steps=steps)
        ENDS[end](run)

    both(tmp_path / "plain", lambda run: train(run, steps=steps))
    assert both(tmp_path / "run", body).verified
    mine, plain = (open_run(tmp_path / name) for name in ("run", "plain"))
    assert mine.state(steps).text == plain.state(steps).text


# ---- between steps --------------------------------------------------------------------------------------------------
def weights_by_data(run: Any, step: int) -> None:
    w = run.model[0].weight
    w.data.div_(w.data.norm())


def one_element(run: Any, step: int) -> None:
    run.model[2].weight.data[0, 3] += 2.0**-10


def gradient_made(run: Any, step: int) -> None:
    run.model[0].weight.grad = torch.ones(8, 6)


def momentum(run: Any, step: int) -> None:
    run.optimizer.state[run.model[0].weight]["exp_avg"].data.mul_(0.5)


def buffer(run: Any, step: int) -> None:
    run.model[1].running_mean.data.zero_()


CHANGES = {
    "weights": (weights_by_data, "model/0.weight"), "one element": (one_element, "model/2.weight"),
    "numpy": (lambda run, step: through_numpy(run), "model/0.weight"),
    "storage": (lambda run, step: another_storage(run), "model/0.weight"),
    "gradient": (gradient_made, "gradients/0.weight"), "momentum": (momentum, "optimizer/0.exp_avg"),
    "buffer": (buffer, "model/1.running_mean"), "cleared": (lambda run, step: optimizer_cleared(run), "optimizer/"),
    "half": (lambda run, step: run.model[0].half(), "model/0.weight"),
    "module": (lambda run, step: run.model.add_module("9", torch.nn.Linear(2, 2)), "model/9.weight"),
}  # fmt: skip


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_between_steps_is_an_error_that_names_it(tmp_path: Path, change: str) -> None:
    act, name = CHANGES[change]
    with (
        pytest.raises(StateError, match=rf"{name}.* changed after step 1 and outside run.step"),
        record(tmp_path / "run", model=net, optimizer=adam) as run,
    ):
        train(run, act)


def gradients_kept(run: Any) -> None:
    """The other order: gradients are dropped between steps."""
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            run.model(batch(step)).square().mean().backward()
            run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=step % 2 == 0)


def same_content(run: Any) -> None:
    def act(run: Any, step: int) -> None:
        run.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
        run.model[0].weight.data = run.model[0].weight.data.clone()

    train(run, act)


def read_only(run: Any) -> None:
    def act(run: Any, step: int) -> None:
        run.model.eval()
        with torch.inference_mode():
            run.model(batch(9))
        run.model.train()
        np.asarray(run.model[0].weight.detach()).sum()

    train(run, act)


@pytest.mark.parametrize("body", [gradients_kept, same_content, read_only])
def test_what_changes_nothing_is_allowed(tmp_path: Path, body: Callable[[Any], None]) -> None:
    assert both(tmp_path / "run", body).verified


# ---- steps that fail half-way ---------------------------------------------------------------------------------------
class Skip(Exception):
    pass


def skipping(run: Any, *, late: bool, rollback: bool) -> None:
    """The first try of step 2 fails, before or after the weights moved; then the step is done with its batch again."""
    tried = False
    while run.steps_done < STEPS:
        step = run.steps_done + 1
        try:
            with run.step(batch(step)):
                loss = run.model(batch(step)).square().mean()
                loss.backward()
                if step == 2 and not tried and not late:
                    raise Skip
                run.optimizer.step()
                if step == 2 and not tried:
                    run.optimizer.param_groups[0]["lr"] = 5.0
                    raise Skip
                run.optimizer.zero_grad()
        except Skip:
            tried = True
            if rollback:
                run.rollback()


@pytest.mark.parametrize("late", [False, True])
def test_a_failed_step_is_rolled_back(tmp_path: Path, late: bool) -> None:
    both(tmp_path / "plain", train)
    assert both(tmp_path / "run", lambda run: skipping(run, late=late, rollback=True)).verified
    mine, plain = (open_run(tmp_path / name) for name in ("run", "plain"))
    assert mine.state(STEPS).text == plain.state(STEPS).text


def test_a_failed_step_says_so(tmp_path: Path) -> None:
    wanted = r"step 2 failed half-way \(Skip\) and left .* changed: call run.rollback\(\)"
    with pytest.raises(StateError, match=wanted), record(tmp_path / "run", model=net, optimizer=adam) as run:
        skipping(run, late=True, rollback=False)


def test_rollback_belongs_between_steps(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="between steps"),
        record(tmp_path / "run", model=net) as run,
        run.step(),
    ):
        run.rollback()


# ---- evaluations ----------------------------------------------------------------------------------------------------
def evaluated(run: Any) -> None:
    def act(run: Any, step: int) -> None:
        run.model.eval()
        with run.evaluation(batch(step + 10)), torch.no_grad():
            run.metric(held_out=run.model(batch(step + 10)).square().mean())
        run.model.train()

    train(run, act)
    assert run.steps_done == STEPS


def test_an_evaluation_is_recorded_and_replayed(tmp_path: Path) -> None:
    verdict = both(tmp_path / "run", evaluated)
    assert verdict.verified
    leaves = open_run(tmp_path / "run").leaves
    assert [sorted(leaf.metrics) for leaf in leaves[1:]] == [["loss"], ["held_out"]] * STEPS
    # checkpoints are every 2 training steps, and wait for the evaluation that follows
    assert [leaf.step for leaf in leaves if leaf.state] == [0, 4, 8]


def test_another_evaluation_is_refuted(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=net, optimizer=adam) as run:
        evaluated(run)
    with replay(tmp_path / "run", model=net, optimizer=adam) as again:
        train(again)
    assert not again.verdict.verified and again.verdict.first_bad_step == 2


def test_an_evaluation_that_changes_something_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StateError, match=r"evaluation after step 1 changed .*running_mean"),
        record(tmp_path / "run", model=net, optimizer=adam) as run,
    ):
        train(run, steps=1)
        with run.evaluation(batch(1)), torch.no_grad():
            run.model(batch(1))


def test_a_hidden_change_in_a_large_tensor_is_seen_in_its_turn_and_at_checkpoints(tmp_path: Path) -> None:
    wide = lambda: torch.nn.Linear(6, 4096)  # noqa: E731  # 96 KiB

    def steps(run: Any, last: int) -> None:
        for step in range(1, last + 1):
            with run.step(batch(step)):
                run.model(batch(step)).square().mean().backward()
                run.optimizer.step()
                run.optimizer.zero_grad()
            run.model.weight.data[-1, -1] += 1  # in the last part

    for every, seen in ((100, 15), (3, 3)):
        with (
            pytest.raises(StateError, match=rf"model/weight changed after step {seen} and"),
            record(tmp_path / f"run{every}", model=wide, optimizer=adam, checkpoint_every=every) as run,
        ):
            steps(run, 20)


def test_a_rate_computed_natively_is_said_to_differ_between_machines(tmp_path: Path) -> None:
    """As one that follows the loss of held-out data: its last bits are the processor's."""

    def body(run: Any, rate: float) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        train(run, steps=1)

    with record(tmp_path / "run", model=net, optimizer=adam) as run:
        body(run, 0.01)
    with replay(tmp_path / "run", model=net, optimizer=adam) as run:
        body(run, 0.010000001)
    assert not run.verdict.verified
    assert any("run.evaluation(batch)" in note for note in run.verdict.notes), run.verdict.notes


def leaving_out(run: Any) -> None:
    """A batch whose loss is not finite is left out, where it is found; one more after the last step."""
    for number in (1, 2, 99, 3, 99):
        x = batch(number) if number < 99 else torch.full((4, 6), torch.inf)
        try:
            with run.step(x):
                loss = run.model(x).square().mean()
                if not torch.isfinite(loss):
                    raise Skip
                loss.backward()
                run.optimizer.step()
                run.optimizer.zero_grad()
        except Skip:
            run.rollback()


def test_a_batch_that_fails_is_left_out_by_whoever_replays_too(tmp_path: Path) -> None:
    verdict = both(tmp_path / "run", leaving_out)
    assert verdict.verified and open_run(tmp_path / "run").last_step == 3, str(verdict)


def test_a_loop_that_goes_on_longer_is_refuted_and_said_why(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=net, optimizer=adam) as run:
        train(run, steps=2)
    with replay(tmp_path / "run", model=net, optimizer=adam) as run:
        train(run, steps=3)
    assert run.verdict.first_bad_step == 3 and not run.verdict.verified
    assert any("stops by the clock" in note for note in run.verdict.notes), run.verdict.notes


@pytest.mark.parametrize("steps", [2, 3])  # a checkpoint is due there, or not
def test_a_run_may_end_by_a_step_that_fails(tmp_path: Path, steps: int) -> None:
    """As where Ctrl-C in a step is caught around the loop."""

    def body(run: Any) -> None:
        train(run, steps=steps)
        with contextlib.suppress(KeyboardInterrupt), run.step(batch(9)):
            run.model(batch(9)).square().mean().backward()
            raise KeyboardInterrupt

    assert both(tmp_path / "run", body).verified
    assert open_run(tmp_path / "run").last_step == steps
