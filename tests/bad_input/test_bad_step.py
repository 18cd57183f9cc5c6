"""Steps that can't be recorded: batches and operations that no auditor could repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import HERE, KEY, audited, evidence_bytes, honest, job, make, silent, values

from auditor import replay
from auditor.evidence import open_run
from trainer import record
from trainer.train import resume, train
from vtrain.errors import BatchError, StateError, UnsupportedOperation, UsageError, VtrainError
from vtrain.job import parse

NAN, INF = float("nan"), float("inf")
X = torch.linspace(-1.0, 1.0, 12).view(3, 4)


def net() -> torch.nn.Module:
    return torch.nn.Linear(4, 2)


def recording(path: Path, **arguments: Any) -> record:
    return record(path, **{"model": net, "key": KEY, "checkpoint_every": 1, **arguments})


def one_step(run: Any) -> None:
    with run.step({"x": X}):
        run.metric(loss=run.model(X).sum())


def with_nan(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([1.0, NAN]).to(dtype)


BATCHES: dict[str, tuple[Any, str]] = {
    "NaN": ({"x": X, "y": with_nan(torch.float32)}, "'y': a NaN"),
    "NaN deep": ({"x": [X, {"z": with_nan(torch.float64)}]}, "'x.1.z': a NaN"),
    "bfloat16 NaN": ({"x": with_nan(torch.bfloat16)}, "'x': a NaN"),
    "float16 NaN": ({"x": with_nan(torch.float16)}, "'x': a NaN"),
    "number NaN": ({"x": NAN}, "'x': a NaN"),
    "complex": ({"x": torch.zeros(2, dtype=torch.complex64)}, "'x': tensor of torch.complex64"),
    "object": ({"x": object()}, "'x': builtins.object can't be committed to"),
    "generator": ((i for i in range(3)), "generator can't be committed to"),
    "sparse": ({"x": X.to_sparse()}, "'x': torch.sparse_coo tensor"),
    "meta": ({"x": torch.empty(2, device="meta")}, "meta"),
    "key": ({3.5: X}, "key 3.5"),
    "two of a name": ({"1": X, 1: X}, "two leaves have this path"),
    "bytes": ({"x": b"1"}, "bytes can't be committed to"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_bad_batch(tmp_path: Path, case: str) -> None:
    """Refused before the step begins; the steps before it stay, and the run goes on."""
    batch, text = BATCHES[case]
    path = tmp_path / "run"
    with pytest.raises(BatchError) as caught, recording(path) as run:
        one_step(run)
        with run.step(batch):
            pytest.fail("the step began")
    assert text in str(caught.value) and caught.value.exit_code == 2
    assert open_run(path).last_step == 1
    with recording(path, resume=True) as run:
        assert run.steps_done == 1
        one_step(run)
    assert open_run(path).last_step == 2


def test_infinity_is_no_nan(tmp_path: Path) -> None:
    with recording(tmp_path / "run") as run, run.step({"x": torch.tensor([INF, -INF, -0.0])}):
        pass
    assert open_run(tmp_path / "run").last_step == 1


def test_batch_with_nan_goes_on_where_it_is_left_out(tmp_path: Path) -> None:
    """A refused batch is no step: what follows is numbered as if it had not been there."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    for path in (plain, other):
        with recording(path) as run:
            one_step(run)
            if path is other:
                with pytest.raises(BatchError), run.step({"x": with_nan(torch.float32)}):
                    pass
            one_step(run)
    assert evidence_bytes(plain) == evidence_bytes(other)


def test_nan_that_training_makes_is_recorded(tmp_path: Path) -> None:
    """It is a result like any other: any NaN equals any NaN."""
    path = tmp_path / "run"

    def body(run: Any) -> None:
        with run.step({"x": X}):
            run.model.bias.data.mul_(torch.tensor(INF) * 0)
            run.metric(loss=run.model(X).sum())

    with recording(path) as run:
        body(run)
    assert open_run(path).leaves[1].metrics == {"loss": "F32:7fc00000"}
    with replay(path, model=net) as again:
        body(again)
    assert again.verdict.verified


REFUSED: dict[str, tuple[str, str]] = {
    "unknown": ("torch.fft.fft(x).real.sum()", "aten._fft_r2c"),
    "several results": ("torch.linalg.svd(x)[1].sum()", "aten._linalg_svd"),
    "in place": ("(x * 1).digamma_().sum()", "aten.digamma_"),
    "out=": ("torch.lgamma(x.detach(), out=torch.empty_like(x)).sum()", "aten.lgamma"),
    "float64": ("(x.double() @ x.double().T).sum()", "aten."),
}
SOURCE = """
import torch
from vtrain import Program

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(192))

    def forward(self, image):
        x = image.flatten(1) * self.weight
        return {expression}  # unusual

def make():
    return Program(Net(){dtype}, lambda model, batch: model(batch["image"]{dtype}))
"""


def train_source(folder: Path, source: str) -> None:
    (folder / "program.py").write_text(source)
    made = values()
    made["program"] = {"entry": "program.py:make"}
    train(parse(made, "job"), folder, folder / "run", KEY, silent)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_operation_that_is_not_covered(tmp_path: Path, case: str) -> None:
    """Says which, where in the user's code, and what to do; the run keeps its initialisation."""
    expression, name = REFUSED[case]
    source = SOURCE.format(expression=expression, dtype="")
    with pytest.raises(UnsupportedOperation) as caught:
        train_source(tmp_path, source)
    text = str(caught.value)
    line = 1 + source[: source.index("# unusual")].count("\n")
    assert text.startswith(name)
    assert f"called from {tmp_path / 'program.py'}:{line} in forward: return {expression}" in text
    assert "register a handler: @vtrain.engine.optable.register('" in text
    assert caught.value.exit_code == 4
    assert open_run(tmp_path / "run").last_step == 0


def test_float64_parameters(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="float64") as caught:
        train_source(tmp_path, SOURCE.format(expression="x.sum()", dtype=".double()"))
    assert "program.py:" in str(caught.value) and "use float32" in str(caught.value)
    assert caught.value.exit_code == 4


def test_operation_outside_steps_is_nobodys_business(tmp_path: Path) -> None:
    with recording(tmp_path / "run") as run:
        one_step(run)
        torch.fft.fft(X)
        one_step(run)
    assert open_run(tmp_path / "run").last_step == 2


def test_refused_operation_leaves_no_trace(tmp_path: Path) -> None:
    """A step that failed is given up with its log; done again without the operation, it is an ordinary step."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    for path in (plain, other):
        with recording(path) as run:
            one_step(run)
            if path is other:
                with pytest.raises(UnsupportedOperation), run.step({"x": X}):
                    (run.model(X) * 0.5).exp()
                    torch.fft.fft(X)
            one_step(run)
    assert evidence_bytes(plain) == evidence_bytes(other)


def nested(run: Any) -> None:
    with run.step({"x": X}), run.step({"x": X}):
        pass


def changed_outside(run: Any) -> None:
    one_step(run)
    with torch.no_grad():
        run.model.weight.add_(1)
    one_step(run)


MISUSES: dict[str, tuple[Callable[[Any], None], type[VtrainError], str]] = {
    "nested": (nested, UsageError, "inside another step"),
    "changed outside": (changed_outside, StateError, "changed after step 1 and outside"),
    "metric outside": (lambda run: run.metric(loss=1.0), UsageError, "belongs inside a step"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_misused_recording(tmp_path: Path, case: str) -> None:
    body, error, text = MISUSES[case]
    with pytest.raises(error, match=text) as caught, recording(tmp_path / "run") as run:
        body(run)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": 3}, "model is a int"),
        ({"model": lambda: 3}, "model is a int"),
        ({"optimizer": 3}, "optimizer is a int"),
        ({"optimizer": lambda model: 3}, "optimizer is a int"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"checkpoint_every": True}, "checkpoint_every is True"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**128}, "seed"),
        ({"seed": "four"}, "seed"),
        ({"key": "/nowhere/trainer.key"}, "can't read the key"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    """Nothing is written."""
    with pytest.raises(UsageError, match=text), recording(tmp_path / "run", **arguments):
        pytest.fail("recording")
    assert list(tmp_path.iterdir()) == []


def test_tool_of_the_other_kind_of_run(tmp_path: Path) -> None:
    """Runs of jobs and runs of loops are not taken for each other."""
    loop = tmp_path / "loop"
    with recording(loop) as run:
        one_step(run)
    with pytest.raises(UsageError, match="recorded around a loop"):
        audited(loop)
    with pytest.raises(UsageError, match="recorded around a loop"):
        audited(loop, job=job())
    with pytest.raises(UsageError, match="run of a job file"), replay(honest(), model=net):
        pytest.fail("replaying")
    (loop / "attestation.json").unlink()
    with pytest.raises(UsageError, match="recorded around a loop"):
        resume(loop, HERE, KEY, silent)
    made = make(tmp_path / "job")
    with pytest.raises(VtrainError, match="begun as another job"), recording(made, resume=True):
        pytest.fail("recording")
