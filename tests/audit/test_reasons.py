"""A refuted loop says which operation, on which line, and the numbers in decimal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import KEY
from torch import nn

from auditor import replay
from auditor.dispute.difference import other_results
from auditor.evidence.decimal import differing, metric
from auditor.verdict import Verdict
from trainer import record
from vtrain.commit.trace import Event

X = torch.linspace(-1.0, 1.0, 12).view(3, 4)
HERE = "tests/audit/test_reasons.py"


def net() -> nn.Module:
    return nn.Linear(4, 2)


def adamw(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr)


def loop(run: Any, step: Callable[[Any], Any]) -> None:
    with run.step(X):
        loss = step(run)
        if isinstance(loss, torch.Tensor):
            loss.backward()
        run.optimizer.step()


def verdict(path: Path, trained: Callable[[Any], Any], audited: Callable[[Any], Any], lr: float = 1e-3) -> Verdict:
    with record(path, model=net, optimizer=adamw(1e-3), key=KEY) as run:
        loop(run, trained)
    with replay(path, model=net, optimizer=adamw(lr)) as again:
        loop(again, audited)
    return again.verdict


def half(run: Any) -> torch.Tensor:
    return (run.model(X) * 0.5).sum()


def quarter(run: Any) -> torch.Tensor:
    return (run.model(X) * 0.25).sum()


def doubled(run: Any) -> torch.Tensor:
    return (run.model(run.model(X)[:, :1].expand(3, 4)) * 0.5).sum()


def line_of(function: Callable[..., Any]) -> str:
    return f"{HERE}:{function.__code__.co_firstlineno + 1}"


def test_a_number_names_the_operation_and_both_lines(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", half, half, lr=2e-3)
    assert (found.first_bad_step, found.what) == (1, "scalars")
    assert found.detail.startswith("aten.mul_.Tensor at torch/optim/adam")
    at = line_of(loop).rpartition(":")[0]
    assert f"(called from {at}:" in found.detail and found.detail.endswith(": 0.99999 in the run, 0.99998 here")


def test_a_number_of_the_users_own_line(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", half, quarter)
    assert found.detail == f"aten.mul.Tensor at {line_of(quarter)}: 0.5 in the run, 0.25 here"


def test_a_number_that_the_run_does_not_have(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", lambda run: None, lambda run: X.mul(0.125) is None)
    assert found.what == "scalars"
    assert "aten.mul.Tensor at " in found.detail and "0.125 here; no more numbers in the run" in found.detail


def test_another_result_names_the_line(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", half, doubled)
    assert found.what == "sites" and f"(called from {line_of(doubled)})" in found.detail


def test_a_step_that_ends_early_names_what_is_missing(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", half, lambda run: None)
    assert (found.what, found.first_bad_step) == ("sites", 1)
    assert "the step ends after 0 results here" in found.detail and "the run goes on with aten.addmm" in found.detail


def test_a_metric_is_in_decimal(tmp_path: Path) -> None:
    def given(value: float) -> Callable[[Any], None]:
        return lambda run: run.metric(loss=torch.tensor(value))

    found = verdict(tmp_path / "run", given(0.1), given(0.2))
    assert found.detail == "metrics differs in 'loss': 0.1 in the run, 0.2 here"


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("F32:3dcccccd", "0.1"), ("F32:3dccccce", "0.10000001"), ("F64:3fb999999999999a", "0.1"), ("BF16:3f80", "1.0"),
        ("F16:3800", "0.5"), ("I64:ffffffffffffffff", "-1"), ("F32:80000000", "-0.0"), ("F32:7fc00000", "nan"),
        ("nothing", "nothing"), ("F16:12345", "F16:12345"), ("F32:xyz" * 40, ("F32:xyz" * 40)[:60]),
    ],
)  # fmt: skip
def test_bits_as_numbers(bits: str, text: str) -> None:
    assert metric(bits) == text


# ---- disputes -------------------------------------------------------------------------------------------------------
def event(name: str, *args: Any, inputs: dict[str, str] | None = None, **kwargs: Any) -> Event:
    return Event("op", name, {"args": list(args), "kwargs": {"dict": kwargs}}, inputs or {})


MUL = "aten.mul.Tensor"
UNLIKE: dict[str, tuple[Event, Event, str]] = {
    "number": (
        event(MUL, {"tensor": "0"}, {"float": (1e-5).hex()}),
        event(MUL, {"tensor": "0"}, {"float": (2e-5).hex()}),
        "aten.mul.Tensor: argument 1 is 1e-05 in the run, 2e-05 here",
    ),
    "named": (
        event("aten.add.Tensor", {"tensor": "0"}, {"tensor": "1"}, alpha={"int": "1"}),
        event("aten.add.Tensor", {"tensor": "0"}, {"tensor": "1"}, alpha={"float": (0.5).hex()}),
        "aten.add.Tensor: argument alpha is 1 in the run, 0.5 here",
    ),
    "sizes": (
        event("aten.view.default", {"tensor": "0"}, [{"int": "2"}, {"int": "3"}]),
        event("aten.view.default", {"tensor": "0"}, [{"int": "3"}, {"int": "2"}]),
        "aten.view.default: argument 1.0 is 2 in the run, 3 here; argument 1.1 is 3 in the run, 2 here",
    ),
    "left out": (event(MUL, {"tensor": "0"}, True), event(MUL, {"tensor": "0"}), f"{MUL}: argument 1 is only in the run"),  # noqa: E501
    "operation": (event(MUL), event("aten.add.Tensor"), f"operation 7 of the step is {MUL} in the run, aten.add.Tensor here"),  # noqa: E501
    "tensors": (
        event(MUL, inputs={"0": "a" * 64}), event(MUL, inputs={"0": "b" * 64}),
        f"{MUL}: it is given other tensors in the run than here (0)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(UNLIKE))
def test_another_operation_in_words(case: str) -> None:
    run, own, words = UNLIKE[case]
    found = other_results(3, 7, run, own)
    assert found.why == words
    assert "0x" not in found.why and "{" not in found.why


@pytest.mark.parametrize(
    "value", [{"float": "0xzz"}, {"float": "0x1p99999"}, {"dict": 3}, [[]], "x" * 1000, {}, {"a": 1, "b": 2}]
)
def test_words_bear_what_a_run_may_bring(value: Any) -> None:
    """Arguments of the other side's: signed, and whatever they like."""
    text = "; ".join(differing({"args": [value], "kwargs": {}}, {"args": [{"int": "1"}], "kwargs": {}}))
    assert len(text) < 300


# ---- a framework that owns the loop ---------------------------------------------------------------------------------
FIT = """
import sys
import torch
from contextlib import ExitStack
from auditor import replay

stack = ExitStack()

def on_fit_start():
    return stack.enter_context(replay(sys.argv[1], model=lambda: torch.nn.Linear(4, 2),
                                      optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=0.5)))

def fit():
    run = on_fit_start()
    x = torch.linspace(-1.0, 1.0, 12).view(3, 4)
    with run.step(x):
        (run.model(x) * 0.5).sum().backward()
        run.optimizer.step()

fit()
"""


def test_an_uncaught_difference_ends_in_the_verdict(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=net, optimizer=adamw(1e-3), key=KEY) as run:
        loop(run, half)
    done = subprocess.run([sys.executable, "-c", FIT, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.startswith("REFUTED: first bad step 1: scalars: aten.mul_.Tensor")
        and "Traceback" not in done.stderr
    )


def test_the_verdict_stands_when_the_difference_is_found(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=net, optimizer=adamw(1e-3), key=KEY) as run:
        loop(run, half)
    before, at_once = sys.excepthook, []
    with replay(tmp_path / "run", model=net, optimizer=adamw(1e-3)) as again:
        hooked = sys.excepthook
        try:
            loop(again, quarter)
        finally:
            at_once.append((again.verdict.result, again.verdict.what))
    assert at_once == [("refuted", "scalars")]
    assert sys.excepthook is before is not hooked
    assert again.verdict.result == "refuted"
