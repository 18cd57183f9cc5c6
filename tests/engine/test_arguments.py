"""Arguments of the wrong kind at the Python interface: an error that says what to write, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from auditor import replay
from trainer import record
from vtrain.errors import UsageError, VtrainError
from vtrain.policy import Policy

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def model() -> nn.Module:
    return nn.Linear(4, 2)


def sgd(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.1)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"policy": {"matmul": "chain"}}, r"vtrain\.Policy\(matmul='chain'\)"),
    ({"policy": {}}, r"policy is a dict; want a vtrain\.Policy"),
    ({"policy": "chain"}, r"policy is a str; want a vtrain\.Policy"),
    ({"policy": Policy}, r"policy is the class Policy; want a vtrain\.Policy"),
    ({"seed": None}, "seed is 'None'; want an integer"),
    ({"seed": True}, "seed is 'True'; want an integer"),
    ({"seed": 1.0}, "seed is '1.0'; want an integer"),
    ({"seed": -1}, "seed is '-1'; want an integer"),
    ({"seed": 2**128}, "want an integer in"),
    ({"seed": "0x1"}, "seed is '0x1'; want an integer"),
    ({"checkpoint_every": "10"}, "checkpoint_every is '10'; want an integer from 1"),
    ({"checkpoint_every": 0}, "checkpoint_every is 0; want an integer from 1"),
    ({"checkpoint_every": None}, "checkpoint_every is None; want an integer from 1"),
    ({"key": 3}, "key is a int; want the file that `vtrain keygen` wrote"),
    ({"key": b"key"}, "key is a bytes; want the file"),
    ({"key": KEY.public_key()}, "want the file that `vtrain keygen` wrote, or an Ed25519PrivateKey"),
    ({"key": "/nowhere/k"}, "make one with `vtrain keygen /nowhere/k`"),
    ({"model": None}, "model is a NoneType; want a torch.nn.Module, or a function"),
    ({"model": "gpt2"}, "model is a str; want a torch.nn.Module, or a function"),
    ({"model": nn.Linear}, r"model is the class Linear that takes arguments \(in_features, out_features\)"),
    ({"model": lambda width: nn.Linear(width, 2)}, r"takes arguments \(width\)"),
    ({"model": lambda: 3}, "model is a int; want a torch.nn.Module"),
    ({"optimizer": torch.optim.SGD}, "optimizer is the class SGD; want .*lambda m: torch.optim.SGD"),
    ({"optimizer": [torch.zeros(1)]}, "optimizer is a list; want a torch.optim.Optimizer"),
    ({"optimizer": model()}, "optimizer is a Linear; want a torch.optim.Optimizer"),
    ({"optimizer": lambda: None}, "can't be called with the model alone"),
    ({"optimizer": lambda m: m}, "optimizer is a Linear; want a torch.optim.Optimizer"),
    ({"path": None}, "path is a NoneType; want the run's directory"),
    ({"path": 3}, "path is a int; want the run's directory"),
    ({"path": b"run"}, "path is a bytes; want the run's directory"),
    ({"path": "s3://bucket/run"}, "path is s3://bucket/run; a loop's run is a directory"),
    ({"resume": "no"}, "resume is 'no'; want True, False or 'anew'"),
    ({"on_step": 3}, "on_step is a int; want a function"),
]


@pytest.mark.parametrize(("change", "text"), WRONG, ids=lambda value: value[:50] if isinstance(value, str) else "")
def test_recording_with_a_wrong_argument(
    change: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"path": tmp_path / "run", "model": model, "optimizer": sgd, "key": KEY, **change}
    with pytest.raises(VtrainError, match=text) as caught, record(given.pop("path"), **given):
        pass
    assert caught.value.exit_code == 2 and os.listdir(tmp_path) == []


REPLAY: list[tuple[dict[str, Any], str]] = [
    ({"model": nn.Linear}, "takes arguments"),
    ({"optimizer": torch.optim.SGD}, "want .*lambda m: torch.optim.SGD"),
    ({"trainer_key": KEY}, "trainer_key is a Ed25519PrivateKey; want the trainer's .pub file"),
    ({"trainer_key": 3}, "trainer_key is a int"),
    ({"trainer_key": "/nowhere/k.pub"}, "vtrain keygen PATH"),
    ({"initial": None}, "initial is None; want 'own' or 'run'"),
    ({"path": None}, "path is a NoneType"),
    ({"path": "nowhere"}, "nowhere: no such run"),
]


@pytest.mark.parametrize(("change", "text"), REPLAY, ids=lambda value: value[:50] if isinstance(value, str) else "")
def test_replaying_with_a_wrong_argument(change: dict[str, Any], text: str) -> None:
    given = {"path": "nowhere", "model": model, "optimizer": sgd, **change}
    with pytest.raises(VtrainError, match=text) as caught, replay(given.pop("path"), **given):
        pass
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("made", [lambda: Policy("chain"), lambda: Policy({"matmul": "chain"})], ids=["text", "dict"])
def test_policy_takes_keys(made: Callable[[], Policy]) -> None:
    with pytest.raises(UsageError, match=r"want keys, such as Policy\(matmul='chain'\)"):
        made()


class Made(nn.Linear):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"model": Made}, {"model": lambda *a, **k: model()}, {"seed": "7"}, {"seed": 2**128 - 1}, {"optimizer": None},
        {"optimizer": lambda m, lr=0.1: torch.optim.SGD(m.parameters(), lr=lr)}, {"policy": None},
    ],
    ids=["class", "function", "seed", "large seed", "no optimizer", "optimizer", "no policy"],
)  # fmt: skip
def test_what_is_right_is_taken(change: dict[str, Any], tmp_path: Path) -> None:
    given = {"model": model, "optimizer": sgd, "key": KEY, **change}
    with record(str(tmp_path / "run"), **given) as run, run.step():
        run.metric(loss=1.0)
