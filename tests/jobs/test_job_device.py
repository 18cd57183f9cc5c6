"""Where jobs run: said by --device, refused before anything is written, and named by both sides."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from run_helpers import HERE, job, toml

from vtrain import children
from vtrain.engine.backend import environment
from vtrain.engine.jobs import device
from vtrain.errors import UnsupportedError, UsageError
from vtrain.profiles import DEVICE


def ran(folder: Path, *arguments: str) -> tuple[int, str]:
    done = children.run("-m", "vtrain", *arguments, capture_output=True, cwd=folder)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = job(train={"steps": 1, "checkpoint_every": 1}).model_dump(mode="json")
    entry = str(HERE / made["program"]["entry"]) if ".py:" in made["program"]["entry"] else made["program"]["entry"]
    values = {
        "program": {"entry": entry, "config": made["program"]["config"]},
        "data": {"name": made["data"]["name"], "config": made["data"]["config"]},
        "train": {"steps": 1, "batch_size": made["train"]["batch_size"]},
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
    (tmp_path / "job.toml").write_text(toml(values))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("abacus", 2, "--device 'abacus'; want cpu, cuda"),
        ("meta", 4, "finds no such device"),
        ("", 0, "trained 1 steps"),
    ],
)
def test_a_device_by_name(name: str, code: int, said: str, folder: Path) -> None:
    found, text = ran(folder, "train", "job.toml", "--out", "run", "--device", name)
    assert found == code and said in text
    assert (folder / "run").exists() == (code == 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(folder: Path) -> None:
    found, text = ran(folder, "train", "job.toml", "--out", "run", "--device", "cuda:1")
    assert found == 4 and "--device cuda:1: torch" in text and not (folder / "run").exists()


def test_both_sides_name_it(folder: Path) -> None:
    assert ran(folder, "train", "job.toml", "--out", "run", "--device", "cpu")[0] == 0
    code, text = ran(folder, "audit", "run", "--job", "job.toml", "--device", "cpu", "--json")
    verdict, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    assert code == 0 and verdict["auditor"]["device"] == verdict["trainer"]["device"] == "cpu"


def test_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICE, raising=False)
    assert device.chosen_device() == torch.device("cpu") and environment()["device"] == "cpu"
    monkeypatch.setenv(DEVICE, "nothing:9")
    with pytest.raises(UsageError):
        device.chosen_device()
    monkeypatch.setitem(os.environ, DEVICE, "cuda:99")
    with pytest.raises(UnsupportedError):
        device.chosen_device()
