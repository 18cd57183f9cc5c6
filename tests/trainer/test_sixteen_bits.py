"""16-bit tensors under the default policy: adaptive widths, certified ones for float32, a word on large logs."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from auditor import replay
from auditor.evidence import open_run
from trainer import record
from trainer.logsize import LARGE_BYTES, LogSize, log_bytes
from vtrain.policy import Policy
from vtrain.rounding.threshold import Threshold, calibration_key, parse_threshold
from vtrain.store.steplog import COLUMNS, SITE_COLUMNS, StepLog

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LONG = ("mm", 1000, 1001.0, "float32")


def test_mixed_widths() -> None:
    table = {calibration_key("mm", 1000, "float32"): 2.0**-26}
    mixed = Threshold("mixed", table=table)
    assert mixed.width(*LONG) == mixed.width(*LONG, "float32") == Threshold("certified").width(*LONG)
    for container in ("bfloat16", "float16"):
        assert mixed.width(*LONG, container) == Threshold("adaptive", table=table).width(*LONG)
        assert Threshold("mixed").width(*LONG, container) == Threshold("statistical").width(*LONG)
        assert Threshold("certified").width(*LONG, container) == Threshold("certified").width(*LONG)


def test_defaults() -> None:
    assert Policy().parsed_threshold == parse_threshold("mixed") == Threshold("mixed")
    assert Policy(bits=18).parsed_threshold.kind == "mixed"
    assert Policy(target="bfloat16").parsed_threshold.kind == "adaptive"
    assert Policy(threshold="certified").parsed_threshold.kind == "certified"
    assert Policy.from_canonical(Policy().canonical()).canonical() == Policy().canonical()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 128))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 1024), nn.GELU(), nn.Linear(1024, 128))


def sgd(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.1)


def loop(run: object, dtype: torch.dtype | None, steps: int = 4, rows: int = 128) -> None:
    for i in range(run.steps_done + 1, steps + 1):  # type: ignore[attr-defined]
        x = torch.sin(torch.arange(rows * 128.0) * i).reshape(rows, 128)
        with run.step(x):  # type: ignore[attr-defined]
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = run.model(x).float().square().mean()  # type: ignore[attr-defined]
            loss.backward()
            run.optimizer.step()  # type: ignore[attr-defined]
            run.optimizer.zero_grad()  # type: ignore[attr-defined]


def recorded(path: Path, dtype: torch.dtype | None, policy: Policy | None = None, rows: int = 128) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with record(path, model=net, optimizer=sgd, policy=policy, key=KEY, checkpoint_every=2) as run:
            loop(run, dtype, rows=rows)
    evidence = open_run(path, None)
    return [log_bytes(evidence.log(step)) for step in range(1, evidence.last_step + 1)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_logs_little_once_it_is_calibrated(tmp_path: Path, dtype: torch.dtype) -> None:
    certified = recorded(tmp_path / "certified", dtype, Policy(threshold="certified"))
    mixed = recorded(tmp_path / "mixed", dtype)
    assert mixed[1] < certified[1]  # statistical
    assert 3 * max(mixed[2:]) < min(certified[2:])
    with replay(tmp_path / "mixed", model=net, optimizer=sgd) as run:
        loop(run, dtype)
    assert run.verdict.verified
    evidence = open_run(tmp_path / "mixed", None)
    assert evidence.promise == "mixed"
    assert [bool(leaf.calibration) for leaf in evidence.leaves] == [False, True, True, False, False]


def test_float32_stays_certified_in_every_bit(tmp_path: Path) -> None:
    recorded(tmp_path / "certified", None, Policy(threshold="certified"))
    recorded(tmp_path / "mixed", None)
    mixed, certified = (open_run(tmp_path / name, None) for name in ("mixed", "certified"))
    for step in range(1, 5):
        a, b = mixed.log(step), certified.log(step)
        assert all((getattr(a, c) == getattr(b, c)).all() for c in ("sites", "gaps", "codes", "values"))
    assert mixed.promise == certified.promise == "certified"
    assert not any(leaf.calibration for leaf in mixed.leaves)


def test_resumed_in_the_middle_of_calibration(tmp_path: Path) -> None:
    recorded(tmp_path / "whole", torch.bfloat16)
    for stop in (1, 2, 3):
        path = tmp_path / f"half{stop}"
        with pytest.raises(RuntimeError), record(path, model=net, optimizer=sgd, key=KEY, checkpoint_every=2) as run:
            loop(run, torch.bfloat16, stop)
            raise RuntimeError
        with record(path, model=net, optimizer=sgd, key=KEY, checkpoint_every=2, resume=True) as run:
            loop(run, torch.bfloat16)
        assert open_run(path, None).leaves == open_run(tmp_path / "whole", None).leaves


def logged(narrow: int) -> StepLog:
    empty = {name: np.zeros((0, SITE_COLUMNS) if name == "sites" else 0, dtype) for name, dtype in COLUMNS.items()}
    return StepLog(**{**empty, "gaps": np.zeros(narrow, np.uint8)})


def test_a_large_log_is_told_once() -> None:
    size = LogSize(Policy())
    with pytest.warns(
        UserWarning, match=r"step 1 logged 101 kB for 1,000,000 values, at the width of the first 2 steps"
    ) as told:
        for step in range(4):
            size.add(step, logged(101_000 if step else 0), 1_000_000, calibrating=step < 3)
    assert len(told) == 1 and "Policy(matmul='chain')" in str(told[0].message)
    assert size.note.startswith("the log took 101 kB a step: ") and "vtrain calibrate" in size.note


@pytest.mark.parametrize(
    ("policy", "size", "values"),
    [(Policy(), LARGE_BYTES, 10), (Policy(), 5 * LARGE_BYTES, 50 * LARGE_BYTES),
     (Policy(matmul="chain"), 10 * LARGE_BYTES, 10)],
)  # fmt: skip
def test_no_word_about_others(policy: Policy, size: int, values: int) -> None:
    """A small log; one that is small beside what was settled; one that no policy avoids."""
    sizes = LogSize(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sizes.add(1, logged(size), values, calibrating=False)
    assert sizes.note == ""


def test_recording_warns(tmp_path: Path) -> None:
    policy = Policy(threshold="certified")
    with (
        pytest.warns(UserWarning, match=r"step 1 logged .* kB for .*matmul='chain'"),
        record(tmp_path / "run", model=wide, optimizer=sgd, policy=policy, key=KEY) as run,
    ):
        loop(run, torch.bfloat16, steps=1, rows=256)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with record(tmp_path / "float32", model=wide, optimizer=sgd, key=KEY) as run:
            loop(run, None, steps=1, rows=256)
