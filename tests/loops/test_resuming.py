"""A resumed run is the run that was never interrupted, whatever its state lives in."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from loop_cases import CASES, STEPS, Case

from auditor import replay
from auditor.evidence import open_run
from trainer import record


class Stop(Exception):
    pass


def train(path: Path, case: Case, stop: int = 0, resume: bool = False) -> None:
    def at(step: int) -> None:
        if step == stop:
            raise Stop

    with record(path, **case.arguments(), checkpoint_every=2, resume=resume) as run:
        case.body(run, at)


def leaves(path: Path) -> list[Any]:
    return [leaf.to_json() for leaf in open_run(path).leaves]


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(case: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was not interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path, CASES[case])
    return path


def test_it_is_verified(case: str, whole: Path) -> None:
    with replay(whole, **CASES[case].arguments()) as run:
        CASES[case].body(run, lambda step: None)
    assert run.verdict.verified, str(run.verdict)


@pytest.mark.parametrize("stops", [[2], [3], [4, 6], [1, 3, 5, 6]])
def test_interrupted_after_steps(case: str, whole: Path, tmp_path: Path, stops: list[int]) -> None:
    path = tmp_path / "run"
    for i, stop in enumerate(stops):
        with pytest.raises(Stop):
            train(path, CASES[case], stop, resume=i > 0)
    train(path, CASES[case], resume=True)
    assert leaves(path) == leaves(whole)


def test_interrupted_anywhere(case: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At random lines of the loop: before, in and after steps, in the middle of what follows them."""
    import sys

    path, chance = tmp_path / "run", random.Random(case)
    body = CASES[case].body
    files = {body.__code__.co_filename}

    def trace(frame: Any, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in files or frame.f_code.co_name in ("at", "arguments", "<module>"):
            return trace
        if event == "line" and chance.random() < 0.01:
            raise Stop
        return trace

    for _ in range(12):
        try:
            sys.settrace(trace)
            train(path, CASES[case], resume=path.exists() and (path / "job.json").exists())
        except Stop:
            if not path.exists() or not list((path / "checkpoints").glob("*")):
                import shutil

                shutil.rmtree(path, ignore_errors=True)
            continue
        finally:
            sys.settrace(None)
        break
    else:
        train(path, CASES[case], resume=(path / "job.json").exists())
    assert leaves(path) == leaves(whole)
    assert open_run(path).last_step == STEPS
