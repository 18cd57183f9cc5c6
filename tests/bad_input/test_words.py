"""What errors say: whether an operation could round, the user's line, and what to do."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fractions
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import KEY
from torch.utils.data import DataLoader

from auditor import replay
from trainer import record
from vtrain.data.digest import batch_digests
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import BatchError, UnsupportedOperation, UsageError
from vtrain.policy import Policy

X = torch.linspace(0.5, 1.0, 12).view(3, 4)
MAY_ROUND = "may round differently on other hardware"


def step() -> Any:
    return Session(Plain(), Policy(), 0).step(1)


def said(call: Callable[[], object]) -> str:
    with pytest.raises(UnsupportedOperation) as caught, step():
        call()
    return str(caught.value)


# ---- whether it could round -----------------------------------------------------------------------------------------
UNKNOWN: dict[str, tuple[Callable[[], object], str]] = {
    "a function": (lambda: torch.special.i0(X), MAY_ROUND),
    "a factorisation": (lambda: torch.linalg.svd(X), MAY_ROUND),
    "bits": (lambda: torch.hash_tensor(X), "gives no floating-point numbers"),
    "a view": (lambda: torch.view_as_complex(X.view(6, 2)), "gives a view"),
}


@pytest.mark.parametrize("case", list(UNKNOWN))
def test_only_what_can_round_is_said_to(case: str) -> None:
    call, text = UNKNOWN[case]
    message = said(call)
    assert text in message and "not in the operation table" in message
    assert (MAY_ROUND in message) == (text == MAY_ROUND)


def test_a_sum_between_processes_names_what_wraps_the_module(tmp_path: Path) -> None:
    def call() -> None:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
        messages.append(said(lambda: model(X).sum().backward()))

    messages: list[str] = []
    in_one_process(tmp_path, call)
    message = messages[0]
    assert "DistributedDataParallel" in message and "model.module" in message and MAY_ROUND not in message


def in_one_process(path: Path, call: Callable[[], None]) -> None:
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=0, world_size=1)
    try:
        call()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["given", "made", "inside"])
def test_a_module_in_several_processes_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    spread = torch.nn.parallel.DistributedDataParallel

    def call() -> None:
        model: Any = spread(net())
        if kind == "inside":
            model = torch.nn.Sequential(torch.nn.ReLU(), model)
        where = r"model\.1 is a .*\(model\.1\.module\)" if kind == "inside" else r"model is a .*\(model\.module\)"
        text = where.replace("is a ", "is a DistributedDataParallel")
        given = (lambda: model) if kind == "made" else model
        with pytest.raises(UsageError, match=text):
            begun = record(tmp_path / "run", model=given, key=KEY)
            assert kind == "made", "known before the run is begun"
            begun.__enter__()
        assert not (tmp_path / "run").exists()
        inner = model if kind != "inside" else model[1]
        with record(tmp_path / "run", model=inner.module, key=KEY) as run, run.step(X):
            run.metric(loss=inner.module(X).sum())
        with pytest.raises(UsageError, match=text):
            audit = replay(tmp_path / "run", model=given)
            assert kind == "made"
            audit.__enter__()

    in_one_process(tmp_path, call)


# ---- the user's line ------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Holder:
    """A copy of it is made by code of Python's own."""

    x: torch.Tensor

    def __deepcopy__(self, memo: Any) -> Holder:
        return Holder(torch.special.i1(self.x))


class Layer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.multilabel_margin_loss(x, torch.zeros(3, 4, dtype=torch.int64))  # the line


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return torch.special.i1e(grad)  # the line


def _closed_by(call: Callable[[torch.Tensor], object]) -> None:
    stack = contextlib.ExitStack()
    stack.callback(call, X)
    stack.close()  # the line


LINES: dict[str, Callable[[], object]] = {
    "within Python's code": lambda: copy.deepcopy({"a": [Holder(X)]}),
    "called by Python's code": lambda: _closed_by(torch.special.i0),  # the line
    "within torch's code": lambda: Layer()(X),
    "within a map": lambda: list(map(torch.special.i0, [X])),  # the line
    "within a gradient": lambda: Twice.apply(X.clone().requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize("case", list(LINES))
def test_the_line_is_the_users(case: str) -> None:
    message = said(LINES[case])
    assert f"called from {__file__}:" in message
    assert "# the line" in message or "i1(self.x)" in message


@pytest.mark.parametrize("way", ["-c", "stdin"])
def test_the_line_of_what_was_typed_in(way: str) -> None:
    code = "import torch, vtrain\nwith vtrain.seeded(0):\n    torch.special.i0(torch.ones(2))\n"
    command = [sys.executable, "-c", code] if way == "-c" else [sys.executable, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True)
    assert f"called from {'<string>' if way == '-c' else '<stdin>'}:3 in <module>" in done.stderr


# ---- loaders --------------------------------------------------------------------------------------------------------
LOADERS: dict[str, Callable[[], object]] = {
    "plain": lambda: list(DataLoader([torch.ones(4)] * 4, batch_size=2)),
    "shuffled": lambda: next(iter(DataLoader([torch.ones(4)] * 4, shuffle=True))),
    "of workers": lambda: list(DataLoader([torch.ones(4)] * 4, num_workers=1)),
}


@pytest.mark.parametrize("case", list(LOADERS))
def test_a_loader_inside_a_step_is_told_to_come_before(case: str) -> None:
    with pytest.raises(UsageError, match=r"fetch the batch before run\.step") as caught, step():
        LOADERS[case]()
    assert "test_words.py" in str(caught.value) and "DataLoader(" in str(caught.value)
    assert len(list(DataLoader([torch.ones(4)] * 4, batch_size=2))) == 2  # outside nothing has changed


def test_a_loader_in_another_thread_goes_on() -> None:
    found: list[int] = []
    start, done = threading.Event(), threading.Event()

    def fetch() -> None:
        start.wait()
        found.extend(len(batch) for batch in DataLoader([torch.ones(4)] * 4, batch_size=2))
        done.set()

    thread = threading.Thread(target=fetch)
    thread.start()
    with step():
        start.set()
        assert done.wait(60)
    thread.join()
    assert found == [2, 2]


# ---- metrics --------------------------------------------------------------------------------------------------------
BAD_METRICS: dict[str, tuple[Any, str]] = {
    "several": (X[0], r"'loss' is a tensor of shape \(4,\).*\.mean\(\).*\.item\(\)"),
    "none of them": (torch.empty(0), r"'loss' is a tensor of shape \(0,\)"),
    "None": (None, r"'loss' is None; want one number"),
    "text": ("0.5", r"'loss' is a builtins\.str"),
    "list": ([1.0], r"'loss' is a builtins\.list"),
    "object": (types.SimpleNamespace(item=lambda: "0.5"), r"'loss' is a builtins\.str"),
    "array": (np.ones(3), r"'loss' is an array of float64, shape \(3,\)"),
    "complex": (torch.ones((), dtype=torch.complex64), r"complex64"),
    "complex number": (1j, r"builtins\.complex"),
    "too large": (2**53 + 1, r"more than 53 bits"),
}


@pytest.mark.parametrize("case", list(BAD_METRICS))
def test_a_metric_is_one_number(tmp_path: Path, case: str) -> None:
    value, text = BAD_METRICS[case]
    with pytest.raises(UsageError, match=text), record(tmp_path / "run", model=net, key=KEY) as run, run.step({"x": X}):
        run.metric(loss=value)


def net() -> torch.nn.Module:
    return torch.nn.Linear(4, 2)


@dataclasses.dataclass
class Around:
    """What opacus gives for a loss whose gradients are clipped on the way."""

    value: Any

    def item(self) -> Any:
        return self.value


GOOD_METRICS: dict[str, tuple[Any, str]] = {
    "one element": (torch.full((1, 1), 0.5), "F32:3f000000"),
    "bool": (True, "F64:3ff0000000000000"),
    "bool tensor": (torch.tensor(True), "I64:1"),
    "int32 tensor": (torch.tensor(7, dtype=torch.int32), "I64:7"),
    "numpy float32": (np.float32(0.5), "F64:3fe0000000000000"),
    "numpy int64": (np.int64(-1), "F64:bff0000000000000"),
    "numpy bool": (np.bool_(False), "F64:0"),
    "array of one": (np.array([0.5]), "F64:3fe0000000000000"),
    "fraction": (fractions.Fraction(1, 2), "F64:3fe0000000000000"),
    "infinity": (float("inf"), "F64:7ff0000000000000"),
    "float16": (torch.tensor(0.5, dtype=torch.float16), "F16:3800"),
    "an object around a loss": (Around(0.5), "F64:3fe0000000000000"),
}


def test_numbers_of_every_library_are_metrics(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=net, key=KEY) as run, run.step({"x": X}):
        for i, (value, _) in enumerate(GOOD_METRICS.values()):
            run.metric(**{f"m{i}": value})
        assert list(run._loop._metrics.values()) == [bits for _, bits in GOOD_METRICS.values()]


# ---- batches --------------------------------------------------------------------------------------------------------
class Graph:
    """As graph libraries have their batches."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def to_dict(self) -> Any:
        return self.parts


def test_an_object_that_gives_no_map_is_named() -> None:
    wrong = Graph()
    wrong.parts = [1]  # type: ignore[assignment]
    for batch, text in (({"g": wrong}, r"'g': to_dict\(\) of a .*Graph gives a builtins\.list"),
                        ({"g": Graph(x={1, 2})}, r"'g\.x': builtins\.set can't be committed to")):  # fmt: skip
        with pytest.raises(BatchError, match=text):
            batch_digests(batch)
