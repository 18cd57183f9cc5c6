"""Data that a job's program brings: what its samples may be, what binds them, and what is said where they are wrong."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from run_helpers import KEY, silent, tree_bytes

from auditor.audit import Request, audit
from auditor.verdict import Verdict
from trainer.train import resume, train
from vtrain.engine.jobs import samples
from vtrain.errors import BatchError, JobError, ProgramError, UnsupportedError, VtrainError
from vtrain.job import Job, parse

PROGRAM = """
import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import torch
import vtrain
from torch import nn

BASE = 0


class Net(nn.Linear):
    def forward(self, x):
        return super().forward(x.float()[..., :4])


def numbers(batch):
    if isinstance(batch, dict):
        return batch["x"]
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def loss(model, batch):
    return model(numbers(batch)).square().sum()


def padded(items):
    return {"x": nn.utils.rnn.pad_sequence(items, batch_first=True)}


class Drawn:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.from_numpy(np.random.default_rng().random(4))


class Failing(Drawn):
    def __getitem__(self, index):
        raise IndexError(f"nothing at {index}")


@dataclasses.dataclass
class Sample:
    x: torch.Tensor


def stacked(items):
    return {"x": torch.stack([item.x for item in items])}


def make():
    return vtrain.Program(Net(4, 2), loss, DATA)
"""
TRAINS = {
    "tuples": "[(torch.full((4,), float(i)), i) for i in range(8)]",
    "lists": "[[torch.full((4,), float(i)), 'text'] for i in range(8)]",
    "tensors": "[torch.full((4,), float(i)) for i in range(8)]",
    "halves": "[torch.full((4,), float(i), dtype=torch.bfloat16) for i in range(8)]",
    "a tensor": "torch.arange(32.0).reshape(8, 4)",
    "arrays": "[np.full(4, i) for i in range(8)]",
    "dicts of texts": "[{'x': torch.full((4,), float(i)), 'name': str(i)} for i in range(8)]",
    "nested": "[({'y': [i, 2.0]}, torch.ones(4))[::-1] for i in range(8)]",
    "tensor data set": "torch.utils.data.TensorDataset(torch.arange(32.0).reshape(8, 4), torch.arange(8))",
    "a subset": "torch.utils.data.Subset([torch.ones(4) * i for i in range(9)], range(1, 9))",
    "collated": "[torch.ones(4 + i) for i in range(8)], padded",
    "objects, collated": "[Sample(torch.ones(4) * i) for i in range(8)], stacked",
    "drawn by torch": "list(torch.randn(8, 4))",
    "drawn by Python": "[torch.tensor([random.random()] * 4) for i in range(8)]",
    "drawn by numpy": "[np.random.rand(4) for i in range(8)]",
}  # fmt: skip


def job(steps: int = 4, data: dict[str, str] | None = None, **train_values: object) -> Job:
    return parse(
        {
            "program": {"entry": "p.py:make"},
            "data": {"name": "program", **(data or {})},
            "train": {"steps": steps, "batch_size": 4, "checkpoint_every": 2, **train_values},
            "optimizer": {"name": "sgd", "lr": 0.01},
        },
        "job",
    )


def trained(folder: Path, data: str, made: Job | None = None) -> Path:
    (folder / "p.py").write_text(PROGRAM.replace("DATA", data))
    train(made or job(), folder, folder / "run", KEY, silent)
    return folder / "run"


def audited(folder: Path, **request: object) -> Verdict:
    return audit(Request(folder / "run", folder, job(), **request), silent, silent)  # type: ignore[arg-type]


def digest(run: Path) -> str:
    return str(json.loads((run / "job.json").read_bytes())["data"]["digest"])


@pytest.mark.parametrize("kind", TRAINS)
def test_samples_of_any_kind_train_and_are_audited(tmp_path: Path, kind: str) -> None:
    run = trained(tmp_path, TRAINS[kind])
    assert digest(run).startswith("vtrain-data-v1-sha256:")
    assert audited(tmp_path).verified
    assert audited(tmp_path, steps=(3, 4)).verified  # from a checkpoint: the program is built without step 0


def test_samples_without_a_digest_need_a_collate_function(tmp_path: Path) -> None:
    data = "[SimpleNamespace(x=torch.ones(4)) for i in range(8)]"
    with pytest.raises(BatchError, match=r"sample 0: .*SimpleNamespace can't be committed to.*a sample must be"):
        trained(tmp_path, data)
    with pytest.warns(UserWarning, match="no digest in the job: sample 0"):
        run = trained(tmp_path, f"{data}, stacked")
    assert digest(run) == "" and audited(tmp_path).verified


WRONG = {
    "unequal lengths": (
        "[torch.ones(4 + i) for i in range(8)]",
        BatchError,
        "samples .* make no batch: .*a sample must",
    ),
    "unequal keys": ("[{'x': 1, str(i): 2} for i in range(8)]", BatchError, "samples .* make no batch: KeyError"),
    "unequal tuples": ("[(1,) * (i + 1) for i in range(8)]", BatchError, "samples .* make no batch"),
    "None": ("[None] * 8", BatchError, "samples .* make no batch: TypeError: .*NoneType"),
    "complex numbers": ("[torch.zeros(4, dtype=torch.complex64)] * 8", BatchError, "sample 0: .*complex64"),
    "an iterator": ("iter([1, 2])", ProgramError, "its data is a list_iterator; want a list or another map"),
    "a number": ("3", ProgramError, "its data is a int; want a list or another map"),
    "none": ("None", ProgramError, "it gives none"),
    "too few": ("[torch.ones(4)] * 3", JobError, "4 samples a step, and the data set has 3"),
    "empty": ("[]", JobError, "4 samples a step, and the data set has 0"),
    "failing": ("Failing()", ProgramError, r"IndexError: nothing at 0 \(.*p.py:\d+ in __getitem__: raise IndexError"),
    "failing collate": ("[1] * 8, padded", ProgramError, r"TypeError.*p.py:\d+ in padded: "),
    "no function": ("[1] * 8, 'padded'", ProgramError, "its collate is a str; want a function"),
    "other at every look": ("Drawn()", UnsupportedError, "must be the same at every look"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_one_line(tmp_path: Path, case: str) -> None:
    data, error, text = WRONG[case]
    with pytest.raises(VtrainError, match=text) as caught:
        trained(tmp_path, data)
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_micro_batches_are_collated_apart(tmp_path: Path) -> None:
    """Of micro-batches of two samples each is as long as its own longest."""
    trained(tmp_path, "[torch.ones(4 + i) for i in range(8)], padded", job(accumulate=2))
    leaf = json.loads((tmp_path / "run" / "transcript.jsonl").read_text().splitlines()[2])
    assert {"0.x", "1.x"} <= set(json.dumps(leaf).replace('"', " ").split())
    assert audit(Request(tmp_path / "run", tmp_path, job(accumulate=2)), silent, silent).verified


def test_the_auditors_data_is_another(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("1")
    data = "[torch.ones(4) * float(open({!r}).read()) for i in range(8)]".format(str(tmp_path / "data.txt"))
    trained(tmp_path, data)
    assert audited(tmp_path).verified
    (tmp_path / "data.txt").write_text("2")
    with pytest.raises(UnsupportedError, match=r"data set is vtrain-data-v1-sha256:.* here") as caught:
        audited(tmp_path)
    assert caught.value.exit_code == 4


def test_a_client_pins_the_data(tmp_path: Path) -> None:
    pinned = digest(trained(tmp_path, TRAINS["tuples"]))
    with pytest.raises(JobError, match=r"data.digest: the data set is .*; the job was made for"):
        (tmp_path / "other").mkdir()
        trained(tmp_path / "other", TRAINS["tensors"], job(data={"digest": pinned}))
    (tmp_path / "again").mkdir()
    assert digest(trained(tmp_path / "again", TRAINS["tuples"], job(data={"digest": pinned}))) == pinned


def test_large_data_is_bound_by_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_SAMPLES", 7)
    with pytest.warns(UserWarning, match="no digest in the job: 8 samples are more than 7"):
        run = trained(tmp_path, TRAINS["tuples"])
    assert digest(run) == "" and audited(tmp_path).verified
    monkeypatch.setattr(samples, "MOST_SAMPLES", 8)
    monkeypatch.setattr(samples, "MOST_BYTES", 8 * (16 + 1) - 1)  # four float32 and a digit a sample
    (tmp_path / "again").mkdir()
    with pytest.warns(UserWarning, match="no digest in the job"):
        trained(tmp_path / "again", TRAINS["tuples"])
    monkeypatch.setattr(samples, "MOST_BYTES", 8 * (16 + 1))
    (tmp_path / "small").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert digest(trained(tmp_path / "small", TRAINS["tuples"]))


def test_config_of_own_data_is_the_programs(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"data.config: .*program.config"):
        trained(tmp_path, TRAINS["tuples"], job(data={"config": {"n": 3}}))  # type: ignore[dict-item]


def test_resumed_with_drawn_data(tmp_path: Path) -> None:
    """The data set is drawn in step 0; who resumes does not do step 0, and has the same one."""
    run = trained(tmp_path, TRAINS["drawn by torch"], job(steps=6))
    whole = {name: data for name, data in tree_bytes(run).items() if name.startswith("checkpoints/")}
    (tmp_path / "half").mkdir()

    def stop(done: object) -> None:
        if done.step == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    (tmp_path / "half" / "p.py").write_text((tmp_path / "p.py").read_text())
    with pytest.raises(KeyboardInterrupt):
        train(job(steps=6), tmp_path / "half", tmp_path / "half" / "run", KEY, stop)
    resume(tmp_path / "half" / "run", tmp_path / "half", KEY, silent)
    again = tree_bytes(tmp_path / "half" / "run")
    assert {name: again[name] for name in whole} == whole
