"""Host scalars: equal in every bit under any C library, and nothing for a trainer to gain (numerics §2)."""

from __future__ import annotations

import cmath
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from auditor import replay
from auditor.audit.listener import same_scalar
from trainer import record
from trainer.listener import Recorder
from vtrain.engine.backend import arithmetic_report
from vtrain.errors import BackendError
from vtrain.kernels import _host, scalars

WORK = Path(__file__).with_name("scalars_work.py")
# A C library whose inexact results are the farther neighbour of the exact one: off by less than one unit.
LIBRARY = """
#include <math.h>
static double other(long double exact) {
  double r = (double)exact;
  if (!isfinite(r) || r == 0 || r == exact) return r;
  return nextafter(r, r > exact ? -INFINITY : INFINITY);
}
#define ONE(f) double f(double x) { return other(f##l(x)); }
#define TWO(f) double f(double x, double y) { return other(f##l(x, y)); }
ONE(exp) ONE(exp2) ONE(expm1) ONE(log) ONE(log2) ONE(log10) ONE(log1p) ONE(sin) ONE(cos) ONE(tan) ONE(asin) ONE(acos)
ONE(atan) ONE(sinh) ONE(cosh) ONE(tanh) ONE(asinh) ONE(acosh) ONE(atanh) ONE(cbrt) ONE(erf) ONE(erfc)
TWO(pow) TWO(atan2) TWO(hypot)
void sincos(double x, double* s, double* c) { *s = sin(x); *c = cos(x); }
"""


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "passive", **changes}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That library."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("library") / "other.so"
    build = ["cc", "-O1", "-fno-builtin", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path), "-lm"]
    subprocess.run(build, input=LIBRARY.encode(), check=True)
    return path


def work(role: str, folder: Path, *more: str, **changes: str) -> dict[str, str]:
    command = [sys.executable, str(WORK), role, str(folder), *more]
    done = subprocess.run(command, env=environment(**changes), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every optimizer and schedule by this machine's C library."""
    folder = tmp_path_factory.mktemp("recorded")
    work("record", folder)
    return folder


def test_another_c_library_verifies(recorded: Path, library: Path) -> None:
    """Every optimizer and schedule, between steps too, under a library that is off everywhere."""
    found = work("replay", recorded, LD_PRELOAD=str(library))
    assert set(found.values()) == {"verified"}, found


def test_without_ours_it_would_not(recorded: Path, library: Path) -> None:
    """The library does matter: by its own functions, what uses them is refuted."""
    found = work("replay", recorded, "native", LD_PRELOAD=str(library))
    refuted = {name for name, verdict in found.items() if verdict.startswith("refuted")}
    # no such function, or arguments at which the library happens to be right
    spared = {"ASGD", "Exponential", "CosineAnnealingWarmRestarts", "Lambda numpy float32"}
    assert refuted >= {*found} - spared, found


JOB = """
import sys; from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trainer.train import train
from auditor.audit import Request, audit
from vtrain.job import parse
key, here = Ed25519PrivateKey.from_private_bytes(bytes(range(32))), Path(sys.argv[2])
if sys.argv[1] == "train":
    (here / "program.py").write_text(PROGRAM)
    train(parse(JOB, "job"), here, here / "run", key, lambda *_: None)
else:
    request = Request(here / "run", directory=here, key=key.public_key(), job=parse(JOB, "job"))
    verdict = audit(request, lambda *_: None, lambda *_: None)
    print(verdict.result, verdict.what, verdict.detail)
"""
# A program of the user's: a constant that the compiler computes, one of the module's, one inside a step.
PROGRAM = """
import math, torch
FOLDED, HELD = 0.9 ** 5.5, math.exp(0.3)
def make():
    model = torch.nn.Linear(3 * 4 * 4, 4)
    def loss(model, batch):
        y = model(batch["image"].flatten(1)) * (FOLDED * HELD * math.sin(0.7))
        return torch.nn.functional.cross_entropy(y, batch["label"])
    import vtrain
    return vtrain.Program(model, loss)
"""
VALUES: dict[str, Any] = {
    "program": {"entry": "program.py:make"}, "schedule": {"name": "cosine", "warmup": 1, "final": 0.1},
    "data": {"name": "random-images", "config": {"n": 16, "shape": [3, 4, 4], "classes": 4}},
    "train": {"steps": 5, "batch_size": 4, "checkpoint_every": 2}, "optimizer": {"name": "adamw", "lr": 0.01},
}  # fmt: skip


def test_job_under_another_c_library(tmp_path: Path, library: Path) -> None:
    """The job's cosine, and a program's own arithmetic: when it is compiled, imported and run."""
    code = f"JOB, PROGRAM = {VALUES!r}, {PROGRAM!r}\n{JOB}"
    answers = []
    for role, changes in (("train", {}), ("audit", {"LD_PRELOAD": str(library)})):
        env = environment(PYTHONDONTWRITEBYTECODE="1", **changes)
        command = [sys.executable, "-c", code, role, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        answers.append(done.stdout.strip())
    assert answers[-1].startswith("verified"), answers


# ---- in their place while a run is open, and only then ---------------------------------------------------------------
def calls(name: str = "pow") -> int:
    return int(_host.scalar_calls(name))


def reached(base: float = 2.5, exponent: float = 3.1) -> bool:
    before = calls()
    assert base**exponent == _host.scalar_function("pow", base, exponent)
    return calls() > before


def test_open_runs_hold_them(tmp_path: Path) -> None:
    """From the opening to the close, between steps, in both roles; nested and after errors."""
    linear = lambda: torch.nn.Linear(2, 1)  # noqa: E731
    assert not reached()
    with record(tmp_path / "run", model=linear) as run:
        assert reached()
        with record(tmp_path / "other", model=linear):
            assert reached()
        with run.step({}):
            assert reached()
            run.metric(x=1.0)
        assert reached()
    assert not reached()
    with replay(tmp_path / "run", model=linear) as again:
        with again.step({}):
            again.metric(x=1.0)
        assert reached()
    assert not reached() and again.verdict.verified
    with pytest.raises(KeyError), record(tmp_path / "third", model=linear):
        raise KeyError
    with pytest.raises(ZeroDivisionError), record(tmp_path / "fourth", model=lambda: 1 / 0):  # type: ignore[arg-type]
        pass
    with pytest.raises(Exception, match="nowhere"), replay(tmp_path / "nowhere", model=linear):
        pass
    assert not reached()


def test_all_of_python_calls_them() -> None:
    """``**``, everything in math and cmath that a C library rounds, and NumPy's functions; threads too."""
    with scalars.held():
        for call, name in (
            (lambda: math.pow(2.5, 3.1), "pow"), (lambda: pow(2.5, 3.1), "pow"), (lambda: 3 ** float("-1.5"), "pow"),
            (lambda: np.float64(2.5) ** 3.1, "pow"), (lambda: np.power(np.array([2.5, 3.5]), 3.1), "pow"),
            (lambda: np.cos(np.float32(0.3)), "cos"), (lambda: np.array([2.5], np.float32) ** np.float32(1.5), "pow"),
            (lambda: abs(1.5 + 2.5j), "hypot"), (lambda: cmath.phase(1.5 + 2.5j), "atan2"),
            (lambda: math.log(7.0), "log"), (lambda: math.erfc(0.3), "erfc"), (lambda: np.tanh(0.3), "tanh"),
        ):  # fmt: skip
            before = calls(name)
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
            assert calls(name) > before, name


@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "arctan", "power"])
def test_numpy_everywhere_alike(name: str) -> None:
    """Vector body and tail, strided, float32 as float64 rounded once more; warnings as ever."""
    function, ours = getattr(np, name), scalars._NUMPY[name]
    x = np.linspace(0.1, 9.7, 37)
    more = (np.full(37, 1.7),) if name == "power" else ()
    want = [_host.scalar_function(ours, float(v), 1.7) for v in x]
    with scalars.held():
        assert function(x, *more).tolist() == want
        assert function(x[::3], *(m[::3] for m in more)).tolist() == want[::3]
        narrow = function(x.astype(np.float32), *(m.astype(np.float32) for m in more))
    exponent = float(np.float32(1.7))
    again = [_host.scalar_function(ours, float(np.float32(v)), exponent) for v in x]
    assert narrow.tolist() == np.array(again).astype(np.float32).tolist()


def test_numpy_warns_as_ever() -> None:
    with scalars.held():
        with pytest.warns(RuntimeWarning, match="divide by zero"):
            np.log(np.array([0.0]))
        with pytest.warns(RuntimeWarning, match="invalid value"):
            np.log(np.array([-1.0]))
        with pytest.warns(RuntimeWarning, match="overflow"):
            np.exp(np.array([800.0]))
        with pytest.raises(OverflowError):
            _ = 10.0 ** float("400")
        with pytest.raises(ValueError, match="domain"):
            math.acos(2.0)


def test_what_was_there_comes_back() -> None:
    """NumPy's own loops, bit for bit, and none of ours are left."""
    x = np.linspace(0.01, 30, 1001)
    before = np.sin(x), np.exp(x), np.power(x, 1.3)
    with scalars.held():
        pass
    assert all((a == b).all() for a, b in zip(before, (np.sin(x), np.exp(x), np.power(x, 1.3)), strict=True))
    count = calls("sin")
    np.sin(x)
    assert calls("sin") == count and not reached()


def test_where_they_cannot_be_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another platform, or an interpreter whose calls don't go through tables: an error, and no run."""
    monkeypatch.setattr(scalars._host, "scalar_can_intercept", lambda: False, raising=False)
    with pytest.raises(BackendError, match="want Linux"), record(tmp_path / "run", model=torch.nn.Identity()):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(scalars, "_host", _Without())
    with pytest.raises(BackendError, match=r"a \*\* b, .*math.cos.* still call"), scalars.held():
        pass
    name = next(name for name in arithmetic_report() if "NumPy" in name)
    assert not arithmetic_report()[name]
    monkeypatch.undo()
    assert arithmetic_report()[name] and not (tmp_path / "run").exists()
    assert BackendError.exit_code == 4


class _Without:
    """The host module, on an interpreter in which nothing is found to intercept."""

    def __getattr__(self, name: str) -> Any:
        return (lambda objects: []) if name == "scalar_intercept" else getattr(_host, name)


# ---- what a trainer may say of a scalar ------------------------------------------------------------------------------
LARGEST = sys.float_info.max


def up(x: float, ulps: int = 1) -> float:
    return float(struct.unpack("<d", struct.pack("<q", struct.unpack("<q", struct.pack("<d", x))[0] + ulps))[0])


@pytest.mark.parametrize(
    ("recorded", "value", "ulps", "same"),
    [
        (0.1, 0.1, 0, True), (math.nan, -math.nan, 0, True), (math.inf, math.inf, 0, True), (-0.0, -0.0, 0, True),
        (0.1, up(0.1), 0, False), (0.1, up(0.1), 4, True), (0.1, up(0.1, 4), 4, True), (0.1, up(0.1, 5), 4, False),
        (-0.1, -up(0.1), 4, True), (0.1, -0.1, 4, False), (0.0, -0.0, 4, False), (0.0, 5e-324, 4, False),
        (5e-324, -5e-324, 4, False), (5e-324, 1e-323, 4, True), (math.inf, LARGEST, 4, False),
        (-math.inf, -LARGEST, 4, False), (math.nan, 1.0, 4, False), (1.0, math.nan, 4, False),
        (1 + 2.0**-24, up(1 + 2.0**-24), 4, False),  # float32 would tell them apart: 1 and 1 + 2^-23
        (2.0**128 - 2.0**103, up(2.0**128 - 2.0**103, -1), 4, False),  # one is infinite in float32
    ],
)  # fmt: skip
def test_same_scalar(recorded: float, value: float, ulps: int, same: bool) -> None:
    assert same_scalar(recorded, value, ulps) is same
    assert same_scalar(value, recorded, ulps) is same


X = torch.tensor([-1.0, -2.0, -3.0, -4.0])
CHEATS: dict[str, tuple[Callable[[], torch.Tensor], float, float]] = {
    "arange": (lambda: torch.arange(0.0, 1.0, 0.1), 1.0, up(1.0)),
    "arange step": (lambda: torch.arange(0.0, 1.0, 0.1), 0.1, up(0.1)),
    "linspace": (lambda: torch.linspace(0.0, 1.0, 5), 1.0, up(1.0)),
    "full": (lambda: torch.atan2(torch.full((4,), 0.0), X), 0.0, -0.0),
    "fill": (lambda: torch.empty(4).fill_(0.3), 0.3, up(0.3)),
    "scalar_tensor": (lambda: torch.scalar_tensor(0.3) * X, 0.3, up(0.3)),
    "masked_fill": (lambda: X.masked_fill(X < -2.5, -math.inf).softmax(0), -math.inf, -LARGEST),
    "where": (lambda: torch.where(X < -2.5, 0.3, X), 0.3, up(0.3)),
    "comparison": (lambda: X < -2.5, -2.5, -up(2.5)),
    "clamp": (lambda: X.clamp(-2.5, -1.5), -1.5, -up(1.5)),
    "threshold": (lambda: torch.nn.functional.threshold(X, -2.5, 0.0), -2.5, -up(2.5)),
    "pow": (lambda: X.abs() ** 1.5, 1.5, up(1.5)),
    "rpow": (lambda: 1.5**X, 1.5, up(1.5)),
    "remainder": (lambda: X % 0.3, 0.3, up(0.3)),
    "floor division": (lambda: X // 0.5, 0.5, up(0.5, -1)),
    "dropout": (lambda: torch.nn.functional.dropout(X, 0.3), 0.7, up(0.7)),  # what is kept
    "uniform": (lambda: torch.empty(4).uniform_(0.0, 0.3), 0.3, up(0.3)),
    "normal": (lambda: torch.empty(4).normal_(0.0, 0.3), 0.3, up(0.3)),
    "bernoulli": (lambda: torch.empty(4).bernoulli_(0.3), 0.3, up(0.3)),
    "layer norm": (lambda: torch.nn.functional.layer_norm(X, (4,), eps=1e-5), 1e-5, up(1e-5)),
    "lerp": (lambda: X.lerp(X + 1, 0.5), 0.5, up(0.5, -1)),
    "histc": (lambda: torch.histc(X, 4, -4.5, 0.5), 0.5, up(0.5)),
    "mul zero": (lambda: X * 0.0, 0.0, -0.0),
    "mul infinite": (lambda: X * math.inf, math.inf, LARGEST),
    "mul beyond": (lambda: X * 0.3, 0.3, up(0.3, 5)),
    "mul between floats": (lambda: X * (1 + 2.0**-24), 1 + 2.0**-24, up(1 + 2.0**-24)),
    "add": (lambda: X + 0.3, 0.3, up(0.3, -5)),
    "div sign": (lambda: X / math.inf, math.inf, -math.inf),
    "nan": (lambda: X * math.nan, math.nan, 1.0),
}


def cheated(path: Path, compute: Callable[[], torch.Tensor], honest: float, said: float, use: bool) -> Any:
    """The verdict about a trainer who says ``said`` where its program has ``honest``, and computes with it or not."""
    truth = Recorder.scalar

    def scalar(self: Recorder, step: int, position: int, value: float) -> float:
        moved = said if value == honest or (value != value and honest != honest) else value
        found = truth(self, step, position, moved)
        return found if use else value

    def body(run: Any, trains: bool) -> None:
        with run.step({"x": X}):
            try:
                y = compute()
            except RuntimeError:  # what torch refuses, a trainer need not use
                assert trains
                y = X.clone()
            run.metric(y=y.float().sum())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "scalar", scalar)
        with record(path, model=torch.nn.Identity()) as run:
            body(run, True)
    with replay(path, model=torch.nn.Identity()) as run:
        body(run, False)
    return run.verdict


@pytest.mark.parametrize("use", [True, False])
@pytest.mark.parametrize("name", CHEATS)
def test_moved_scalar_is_refuted(tmp_path: Path, name: str, use: bool) -> None:
    """By a last bit where it may decide a shape, a sign, a comparison or a finiteness; always a verdict."""
    verdict = cheated(tmp_path / "run", *CHEATS[name], use)
    assert (verdict.result, verdict.what) == ("refuted", "scalars"), verdict


@pytest.mark.parametrize(
    "compute",
    [
        lambda: X * 0.3, lambda: X / 0.3, lambda: X + 0.3, lambda: 0.3 - X, lambda: torch.add(X, X, alpha=0.3),
        lambda: X.sub(X, alpha=0.3), lambda: torch.addcmul(X, X, X, value=0.3), lambda: X.clone().mul_(0.3),
        lambda: torch.addcdiv(X, X, X, value=0.3), lambda: torch._foreach_mul([X], 0.3)[0],
    ],
)  # fmt: skip
def test_last_bits_of_plain_arithmetic(tmp_path: Path, compute: Callable[[], torch.Tensor]) -> None:
    """A factor that some other library rounds otherwise: accepted, as it changes no bit of the result."""
    for ulps in (1, -1, 4, -4):
        verdict = cheated(tmp_path / f"run{ulps}", compute, 0.3, up(0.3, ulps), True)
        assert verdict.verified, verdict
