"""A checkpoint holds all that the next step depends on, or training says at once what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditor.audit import Request, audit
from trainer.rehearsal import Rehearsals
from trainer.train import resume, train
from vtrain.engine.state import attributes
from vtrain.errors import StateError
from vtrain.job import parse

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
START = """
import random
import torch
from torch.nn.functional import cross_entropy
from vtrain import Program


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 10)
        self.drop = torch.nn.Dropout(0.5)
    def forward(self, image):
        return self.layer(self.drop(image.flatten(1)))

"""
END = """
def loss(model, batch):
    return cross_entropy(model(batch["image"]), batch["label"])

def make():
    return Program(Net(), loss)
"""
# What an auditor who begins at a checkpoint would not have, and a word of the error.
LACKING = {
    "number": (
        """
class Net(Net):
    warmth = 1.0
    def forward(self, image):
        self.warmth *= 0.9
        return super().forward(image) * self.warmth
""" + END, "warmth"),
    "number in a list in an object": (
        """
class Annealer:
    def __init__(self): self.values = [1.0]
class Net(Net):
    def __init__(self):
        super().__init__()
        self.annealer = Annealer()
    def forward(self, image):
        self.annealer.values[0] *= 0.9
        return super().forward(image) * self.annealer.values[0]
""" + END, r"annealer.values\[0\]"),
    "tensor in an attribute": (
        """
class Net(Net):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(10)
    def forward(self, image):
        out = super().forward(image)
        self.mean = 0.5 * self.mean + out.detach().mean(0)
        return out - self.mean
""" + END, "mean"),
    "second network in a closure": (
        """
def make():
    model, teacher = Net(), torch.nn.Linear(12, 10)
    def loss(model, batch):
        wanted = teacher(batch["image"].flatten(1)).detach()
        return (model(batch["image"]) - wanted).square().mean()
    return Program(model, loss)
""", "metrics"),
    "moving average in a closure": (
        """
def make():
    model, average = Net(), {}
    def loss(model, batch):
        for name, p in model.named_parameters():
            average[name] = 0.5 * average.get(name, 0.0) + 0.5 * p.detach()
        return cross_entropy(model(batch["image"]), batch["label"]) + sum((p - average[n]).square().sum()
            for n, p in model.named_parameters())
    return Program(model, loss)
""", "metrics"),
    "number of the file": (
        """
calls = 0
def loss(model, batch):
    global calls
    calls += 1
    return cross_entropy(model(batch["image"]), batch["label"]) / calls
def make():
    return Program(Net(), loss)
""", "metrics"),
    "mode": (
        """
def loss(model, batch):
    found = cross_entropy(model(batch["image"]), batch["label"])
    model.drop.eval()
    return found
def make():
    return Program(Net(), loss)
""", "drop.training"),
    "frozen later": (
        """
def loss(model, batch):
    found = cross_entropy(model(batch["image"]), batch["label"])
    model.layer.bias.requires_grad_(False)
    return found
def make():
    return Program(Net(), loss)
""", "layer.bias.requires_grad"),
    "extra state": (
        """
class Net(Net):
    def __init__(self):
        super().__init__()
        self.extra = {"scale": 1.0}
    def get_extra_state(self): return self.extra
    def set_extra_state(self, state): self.extra = state
    def forward(self, image):
        self.extra["scale"] += 0.5
        return super().forward(image) * self.extra["scale"]
""" + END, "scale"),
    "order of operations": (
        """
class Net(Net):
    seen = 0
    def forward(self, image):
        self.seen += 1
        return super().forward(image).tanh() if self.seen > 2 else super().forward(image)
""" + END, "seen"),
}  # fmt: skip
# Python state that decides no bits, or that is kept.
HARMLESS = {
    "nothing": END,
    "counter": """
class Net(Net):
    seen = 0
    def forward(self, image):
        self.seen += 1
        self.last = image
        return super().forward(image)
""" + END,
    "buffer": """
class Net(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("warmth", torch.ones(()))
        self.register_buffer("hidden", torch.ones(()), persistent=False)
    def forward(self, image):
        self.warmth.mul_(0.9)
        self.hidden.mul_(0.5)
        return super().forward(image) * self.warmth + self.hidden
""" + END,
    "number of the file, which a rehearsal leaves alone": """
calls = 0
def loss(model, batch):
    global calls
    calls += 1
    assert calls <= 6, "more calls than steps"
    return cross_entropy(model(batch["image"]), batch["label"])
def make():
    return Program(Net(), loss)
""",
    "python's random numbers": """
class Net(Net):
    def forward(self, image):
        return super().forward(image) * random.random() + torch.rand(())
""" + END,
}  # fmt: skip


def job_of(**train_: Any) -> Any:
    values = {
        "program": {"entry": "program.py:make"},
        "data": {"name": "random-images", "config": {"n": 16, "shape": [3, 2, 2]}},
        "train": {"steps": 6, "batch_size": 4, "checkpoint_every": 2, **train_},
        "optimizer": {"name": "adamw", "lr": 0.01},
    }
    return parse(values, "job")


def trained(folder: Path, program: str, **train_: Any) -> Path:
    (folder / "program.py").write_text(START + program)
    train(job_of(**train_), folder, folder / "run", KEY, lambda done: None)
    return folder / "run"


@pytest.mark.parametrize("name", LACKING)
def test_what_a_checkpoint_lacks_is_an_error(tmp_path: Path, name: str) -> None:
    program, word = LACKING[name]
    with pytest.raises(StateError, match=rf"step 3 can't be repeated[\s\S]*{word}"):
        trained(tmp_path, program)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_decides_no_bits_or_is_kept_is_none(tmp_path: Path, name: str) -> None:
    run = trained(tmp_path, HARMLESS[name])
    assert audit(Request(run, tmp_path), lambda step: None, lambda steps: None).verified


def test_without_a_segment_behind_a_checkpoint_there_is_nothing_to_lack(tmp_path: Path) -> None:
    run = trained(tmp_path, LACKING["number"][0], checkpoint_every=6)
    assert audit(Request(run, tmp_path), lambda step: None, lambda steps: None).verified


def rehearsed(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str, every: bool = False) -> list[int]:
    """The checkpoints that a run of 20 steps tries."""
    found: list[int] = []
    monkeypatch.setattr(Rehearsals, "_rehearse", lambda self, checkpoint: found.append(checkpoint))
    (folder / "program.py").write_text(START + program)
    train(job_of(steps=20), folder, folder / "run", KEY, lambda done: None, rehearse=every)
    return found


def test_which_checkpoints_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("quiet", "busy", "all"):
        (tmp_path / name).mkdir()
    assert rehearsed(monkeypatch, tmp_path / "quiet", HARMLESS["nothing"]) == [2]
    assert rehearsed(monkeypatch, tmp_path / "busy", HARMLESS["counter"]) == [2, 4, 8, 16]
    assert rehearsed(monkeypatch, tmp_path / "all", HARMLESS["nothing"], True) == list(range(2, 20, 2))


def test_what_shows_late(tmp_path: Path) -> None:
    program = """
class Net(Net):
    seen = 0
    def forward(self, image):
        self.seen += 1
        return super().forward(image) * (2.0 if self.seen > 3 else 1.0)
"""
    with pytest.raises(StateError, match=r"step 5 can't be repeated[\s\S]*seen"):
        trained(tmp_path, program + END)


@pytest.mark.parametrize("name", ["number", "moving average in a closure"])
def test_a_resumed_run_is_tried_too(tmp_path: Path, name: str) -> None:
    """Not the checkpoint that it goes on from, which lacks nothing that the rest of this process has."""
    with pytest.raises(StateError):
        trained(tmp_path, LACKING[name][0])
    with pytest.raises(StateError, match="step 5 can't be repeated"):
        resume(tmp_path / "run", tmp_path, KEY, lambda done: None)


def test_snapshots() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    net.things = {"a": [1, {2}], "self": net, "nan": float("nan")}
    net.things["loop"] = net.things
    before = attributes.snapshot(net)
    assert attributes.changed(before, attributes.snapshot(net)) == []
    net[1].p, net.things["a"][0] = 0.25, True
    net[0].weight.requires_grad_(False)
    with torch.no_grad():
        net[0].weight.zero_()  # is in the checkpoint
    assert attributes.changed(before, attributes.snapshot(net)) == [
        "0.weight.requires_grad", "1.p (0.5 to 0.25)", "things['a'][0] (1 to True)",
    ]  # fmt: skip
