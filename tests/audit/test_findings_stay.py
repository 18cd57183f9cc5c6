"""A finding is final the moment it is made: nothing that a program catches, raises or exits with undoes it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import audited, finding, job, make

from auditor import replay
from auditor.audit.listener import Replayer
from auditor.verdict import Verdict
from trainer import record
from vtrain.errors import IncompleteRunError, ProgramError, Refuted

X = torch.arange(24.0).view(4, 6) / 8
ARGUMENTS: dict[str, Any] = {
    "model": lambda: torch.nn.Linear(6, 1),
    "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
}


def step(run: Any, rate: float = 1.0) -> None:
    run.optimizer.zero_grad()
    (run.model(X).square().mean() * rate).backward()
    run.optimizer.step()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loop") / "run"
    with record(path, **ARGUMENTS) as run:
        for _ in range(3):
            with run.step(X):
                step(run)
    return path


def caught_inside(run: Any) -> None:
    for number in range(3):
        with run.step(X):
            if number == 1:
                with contextlib.suppress(BaseException):
                    step(run, 0.5)
            step(run)


def caught_outside(run: Any) -> None:
    for number in range(4):
        try:
            with run.step(X):
                step(run, 0.5 if number == 1 else 1.0)
        except BaseException:
            pass


def exits(run: Any) -> None:
    with run.step(X):
        try:
            step(run, 0.5)
        except BaseException:
            sys.exit(0)


def raises_another(run: Any) -> None:
    with run.step(X):
        try:
            step(run, 0.5)
        except Exception as error:
            raise RuntimeError("something went wrong") from error


def stops(run: Any) -> None:
    try:
        with run.step(X):
            step(run, 0.5)
    except Exception:
        return


@pytest.mark.parametrize("loop", [caught_inside, caught_outside, exits, raises_another, stops])
def test_a_loop_cannot_undo_it(recorded: Path, loop: Callable[[Any], None]) -> None:
    with replay(recorded, **ARGUMENTS) as run:
        loop(run)
    assert finding(run.verdict)[1] == "scalars"


def test_a_state_caught_outside(recorded: Path) -> None:
    """The last comparison of all is made when the step is left."""
    with replay(recorded, **ARGUMENTS) as run:
        for number in range(3):
            try:
                with run.step(X):
                    step(run)
                    if number == 2:
                        with torch.no_grad():
                            run.model.bias.copy_(run.model.weight[0, :1])
            except Exception:
                pass
    assert finding(run.verdict) == (3, "state")


def test_no_verdict_before_the_end(recorded: Path) -> None:
    with replay(recorded, **ARGUMENTS) as run:
        for _ in range(3):
            assert run.verdict.result == "unfinished" and not run.verdict.verified and run.verdict.exit_code == 3
            assert "no verdict" in str(run.verdict)
            with run.step(X):
                step(run)
    assert run.verdict.verified


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_no_verdict_where_the_loop_ends_early(recorded: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), replay(recorded, **ARGUMENTS) as run:
        with run.step(X):
            step(run)
        raise error
    assert run.verdict.result == "unfinished" and not run.verdict.verified
    with pytest.raises(IncompleteRunError), replay(recorded, **ARGUMENTS) as run:
        pass
    assert not run.verdict.verified


PROGRAM = """
import os, sys
import torch
from torch.nn.functional import cross_entropy
from vtrain import Program


def loss(model, batch):
    way, odd = os.environ.get("WAY", ""), os.environ.get("ODD")
    if odd and way != "hook":
        try:
            cross_entropy(model(batch["image"]) * 0.5, batch["label"])
        except BaseException as error:
            if way == "exit":
                sys.exit(0)
            if way == "other":
                raise ValueError("no") from error
            if way == "interrupt":
                raise KeyboardInterrupt
    return cross_entropy(model(batch["image"]), batch["label"])


def make():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    if os.environ.get("WAY") == "hook":
        def hook(gradient):
            if os.environ.get("ODD"):
                sys.exit(0)
        model[1].weight.register_hook(hook)
    return Program(model, loss)
"""


@pytest.fixture(scope="module")
def of_a_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a program whose loss departs when it is told to, and its run."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(PROGRAM)
    made = job(program={"entry": "program.py:make", "config": {}})
    from run_helpers import KEY, silent

    from trainer.train import train

    train(made, folder, folder / "run", KEY, silent)
    return folder, folder / "run"


def audited_as(monkeypatch: pytest.MonkeyPatch, of_a_file: tuple[Path, Path], way: str, odd: str = "yes") -> Verdict:
    folder, run = of_a_file
    monkeypatch.setenv("WAY", way)
    monkeypatch.setenv("ODD", odd)
    return audited(run, directory=folder)


def test_the_program_as_it_was(monkeypatch: pytest.MonkeyPatch, of_a_file: tuple[Path, Path]) -> None:
    assert audited_as(monkeypatch, of_a_file, "", "").verified


@pytest.mark.parametrize("way", ["swallow", "exit", "other", "interrupt"])
def test_a_program_cannot_undo_it(monkeypatch: pytest.MonkeyPatch, of_a_file: tuple[Path, Path], way: str) -> None:
    assert finding(audited_as(monkeypatch, of_a_file, way))[0] == 1


def test_a_program_that_exits_is_no_success(monkeypatch: pytest.MonkeyPatch, of_a_file: tuple[Path, Path]) -> None:
    with pytest.raises(ProgramError, match="SystemExit: 0"):
        audited_as(monkeypatch, of_a_file, "hook")


def test_every_listener_call_repeats_it(tmp_path: Path) -> None:
    from auditor.evidence import open_run

    replayer = Replayer(open_run(make(tmp_path / "run"), None), 4)
    with pytest.raises(Refuted) as first:
        replayer.begin_step(0, {"": "another"})
    for call in (
        lambda: replayer.begin_step(0, {}),
        lambda: replayer.scalar(0, 0, 1.0),
        lambda: replayer.canonical(None, None),
    ):
        with pytest.raises(Refuted) as again:
            call()
        assert str(again.value) == str(first.value) and again.value is not first.value
