"""What a resumed loop does otherwise than the interrupted one is said when it happens, not by an auditor."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_cases import batch, net, sgd

from auditor import replay
from trainer import record
from vtrain.errors import StateError

SAME: dict[str, Any] = {"model": net, "optimizer": sgd}
Body = Callable[[Any, int], None]


def step_on(run: Any, x: torch.Tensor, factor: float = 1.0) -> None:
    with run.step(x):
        loss = run.model(x).square().mean() * factor
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.metric(loss=loss)


def loader_begun_anew(run: Any, last: int) -> None:
    batches: Iterator[torch.Tensor] = (batch(n) for n in itertools.count(1))
    for step in range(run.steps_done + 1, last + 1):
        stop_at(run, step)
        step_on(run, next(batches))


def global_generator(run: Any, last: int) -> None:
    torch.manual_seed(5)
    for step in range(run.steps_done + 1, last + 1):
        stop_at(run, step)
        step_on(run, batch(int(torch.randint(1000, ()))))


def number_in_a_variable(run: Any, last: int) -> None:
    baseline = 1.0
    for step in range(run.steps_done + 1, last + 1):
        stop_at(run, step)
        baseline *= 0.5
        step_on(run, batch(step), baseline)


def generator_in_a_variable(run: Any, last: int) -> None:
    chance = random.Random(3)
    for step in range(run.steps_done + 1, last + 1):
        stop_at(run, step)
        step_on(run, batch(step), chance.random())


class Stop(Exception):
    pass


STOP = {"at": 0}


def stop_at(run: Any, step: int) -> None:
    if step == STOP["at"]:
        raise Stop


def train(path: Path, body: Body, stop: int = 0, resume: bool | str = False) -> None:
    STOP["at"] = stop
    with record(path, **SAME, checkpoint_every=2, resume=resume) as run:
        body(run, 8)


BATCHES = [loader_begun_anew, global_generator]
STATES = [number_in_a_variable, generator_in_a_variable]


@pytest.mark.parametrize("body", BATCHES)
def test_another_batch_is_an_error_each_time(tmp_path: Path, body: Body) -> None:
    with pytest.raises(Stop):
        train(tmp_path / "run", body, 6)
    for _ in range(2):  # who tries again is told again
        with pytest.raises(StateError, match=r"step 5 got another batch .* in '': .*run\.steps_done \+ 1"):
            train(tmp_path / "run", body, resume=True)


@pytest.mark.parametrize("body", STATES)
def test_what_no_checkpoint_holds_is_an_error(tmp_path: Path, body: Body) -> None:
    with pytest.raises(Stop):
        train(tmp_path / "run", body, 6)
    for _ in range(2):
        with pytest.raises(StateError, match=r"step 5 came out otherwise .* in its metrics 'loss': .*extra="):
            train(tmp_path / "run", body, resume=True)


def test_the_batch_after_the_checkpoint_is_known_when_its_step_never_ended(tmp_path: Path) -> None:
    def body(run: Any, last: int) -> None:
        for number in range(last):
            with run.step(batch(number)):
                if run.steps_done == 2 and STOP["at"]:
                    raise Stop

    with pytest.raises(Stop):
        train(tmp_path / "run", body, 1)
    with pytest.raises(StateError, match="step 3 got another batch than before the interruption"):
        train(tmp_path / "run", body, resume=True)


def test_a_loop_may_be_meant_to_go_on_otherwise(tmp_path: Path) -> None:
    """As after a loss that rose: back to the checkpoint, with other batches from there on."""

    def body(run: Any, last: int) -> None:
        for step in range(run.steps_done + 1, last + 1):
            stop_at(run, step)
            step_on(run, batch(step if STOP["at"] or step < 5 else step + 10))

    with pytest.raises(Stop):
        train(tmp_path / "run", body, 6)
    train(tmp_path / "run", body, resume="anew")
    with replay(tmp_path / "run", **SAME) as run:
        body(run, 8)
    assert run.verdict.verified, str(run.verdict)


def test_a_skipped_batch_is_no_difference(tmp_path: Path) -> None:
    def body(run: Any, last: int) -> None:
        for step in range(run.steps_done + 1, last + 1):
            stop_at(run, step)
            try:
                with run.step(batch(step + 1)):
                    run.model(batch(step)).sum().backward()
                    raise MemoryError
            except MemoryError:
                run.rollback()
            step_on(run, batch(step))

    for stop in (4, 6):
        with pytest.raises(Stop):
            train(tmp_path / "run", body, stop, resume=stop > 4)
    train(tmp_path / "run", body, resume=True)


def test_other_hardware_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        train(tmp_path / "run", number_in_a_variable, 6)
    monkeypatch.setattr("trainer.again.environment", lambda: {"processor": "another"})
    train(tmp_path / "run", number_in_a_variable, resume=True)


def test_a_rate_that_began_anew_is_said(tmp_path: Path) -> None:
    def body(run: Any, last: int) -> None:
        rate = 0.1
        for step in range(run.steps_done + 1, last + 1):
            stop_at(run, step)
            run.optimizer.param_groups[0]["lr"] = rate
            step_on(run, batch(step))
            rate *= 0.5

    with pytest.raises(Stop):
        train(tmp_path / "run", body, 6)
    with pytest.warns(UserWarning, match="set another rate or other hyperparameters for step 5"):
        train(tmp_path / "run", body, resume=True)


def test_no_false_word(tmp_path: Path) -> None:
    def body(run: Any, last: int) -> None:
        for step in range(run.steps_done + 1, last + 1):
            stop_at(run, step)
            run.optimizer.param_groups[0]["lr"] = 0.02 * step
            step_on(run, batch(step))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Stop):
            train(tmp_path / "run", body, 6)
        train(tmp_path / "run", body, resume=True)


@pytest.mark.parametrize("given", [False, True])
def test_a_schedule_left_out_is_said(tmp_path: Path, given: bool, recwarn: pytest.WarningsRecorder) -> None:
    model = net()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    extra = {"schedule": schedule} if given else None
    with record(tmp_path / "run", model=model, optimizer=optimizer, extra=extra) as run:
        for step in (1, 2):
            step_on(run, batch(step))
            schedule.step()
    said = [w for w in recwarn if "schedule that is not in record" in str(w.message)]
    assert len(said) == (not given)
    assert all(w.filename == __file__ for w in said)
