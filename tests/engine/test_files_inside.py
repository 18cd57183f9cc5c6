"""Tensors read from files where a run sees it: in a model's factory, of a loop or of a job, and inside a step."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import safe_open
from safetensors.torch import load, load_file, load_model, save, save_file
from torch import nn

from auditor import replay
from auditor.audit import Request, audit
from auditor.evidence import open_run
from trainer import record
from trainer.train import train
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import JobError, ProgramError, UnsupportedOperation
from vtrain.job import parse
from vtrain.policy import Policy

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VALUES: dict[str, Any] = {
    "data": {"name": "random-images", "config": {"n": 16, "shape": [3, 8, 8]}},
    "train": {"steps": 2, "batch_size": 4, "checkpoint_every": 1},
    "optimizer": {"name": "sgd", "lr": 0.1},
}
STATE = {"weight": torch.linspace(-1, 1, 8).view(2, 4), "bias": torch.tensor([0.25, -0.5])}


def filled(state: dict[str, torch.Tensor]) -> nn.Module:
    model = nn.Linear(4, 2)
    model.load_state_dict(state)
    return model


def opened(path: str) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sliced(path: str) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name)[:] for name in file.keys()}  # noqa: SIM118


def into(path: str) -> nn.Module:
    model = nn.Linear(4, 2)
    load_model(model, path)
    return model


READS: dict[str, tuple[str, Callable[[str], nn.Module]]] = {
    "torch.load": ("w.pt", lambda path: filled(torch.load(path))),
    "torch.load, mapped": ("w.pt", lambda path: filled(torch.load(path, mmap=True))),
    "torch.load, anything": ("w.pt", lambda path: filled(torch.load(path, weights_only=False))),
    "torch.load, the old format": ("old.pt", lambda path: filled(torch.load(path))),
    "a whole model": ("model.pt", lambda path: torch.load(path, weights_only=False)),
    "assigned": ("w.pt", lambda path: _assigned(torch.load(path))),
    "load_file": ("w.safetensors", lambda path: filled(load_file(path))),
    "load": ("w.safetensors", lambda path: filled(load(Path(path).read_bytes()))),
    "safe_open": ("w.safetensors", lambda path: filled(opened(path))),
    "slices": ("w.safetensors", lambda path: filled(sliced(path))),
    "load_model": ("w.safetensors", into),
}


def _assigned(state: dict[str, torch.Tensor]) -> nn.Module:
    model = nn.Linear(4, 2)
    model.load_state_dict(state, assign=True)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    torch.save(STATE, folder / "w.pt")
    torch.save(STATE, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(filled(STATE), folder / "model.pt")
    save_file(STATE, folder / "w.safetensors")
    return folder


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def one_step(run: Any) -> None:
    with run.step(torch.ones(3, 4)):
        loss = run.model(torch.ones(3, 4)).square().sum()
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()


@pytest.mark.parametrize("name", list(READS))
def test_a_factory_reads_its_weights(name: str, files: Path, tmp_path: Path) -> None:
    file, read = READS[name]
    same: dict[str, Any] = {"model": lambda: read(str(files / file)), "optimizer": sgd}
    with record(tmp_path / "run", **same) as run:
        assert all(torch.equal(run.model.state_dict()[n], t) for n, t in STATE.items())
        one_step(run)
    with replay(tmp_path / "run", **same) as again:
        one_step(again)
    assert again.verdict.verified, again.verdict.detail


def test_other_weights_in_the_file_are_found_at_step_0(files: Path, tmp_path: Path) -> None:
    read = READS["load_file"][1]
    with record(tmp_path / "run", model=lambda: read(str(files / "w.safetensors")), optimizer=sgd) as run:
        one_step(run)
    save_file({**STATE, "bias": STATE["bias"] + 2**-20}, tmp_path / "other.safetensors")
    with replay(tmp_path / "run", model=lambda: read(str(tmp_path / "other.safetensors")), optimizer=sgd) as again:
        one_step(again)
    assert (again.verdict.first_bad_step, again.verdict.what) == (0, "state")
    assert "bias" in again.verdict.detail


PROGRAM = """
import torch
from safetensors.torch import load_file
from torch import nn
from vtrain import Program
from vtrain.programs.vision import cross_entropy

def make(file: str) -> Program:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    net.load_state_dict(torch.load(file) if file.endswith(".pt") else load_file(file))
    return Program(net, cross_entropy)
"""


@pytest.mark.parametrize("file", ["net.pt", "net.safetensors"])
def test_a_jobs_program_reads_its_weights(file: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    weights = {"1.weight": torch.linspace(-0.1, 0.1, 1920).view(10, 192), "1.bias": torch.zeros(10)}
    torch.save(weights, tmp_path / "net.pt")
    save_file(weights, tmp_path / "net.safetensors")
    job = parse({**VALUES, "program": {"entry": "program.py:make", "config": {"file": str(tmp_path / file)}}}, "job")
    train(job, tmp_path, tmp_path / "run", KEY, lambda done: None)
    verdict = audit(Request(tmp_path / "run", tmp_path), lambda step: None, lambda count: None)
    assert verdict.verified, verdict.detail


@pytest.fixture
def listing(tmp_path: Path) -> Any:
    """A job whose program reads weights from a file that it lists, and a run of it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "base").mkdir()
    save_file({"1.weight": torch.zeros(10, 192), "1.bias": torch.zeros(10)}, tmp_path / "base" / "net.safetensors")
    config = {"file": str(tmp_path / "base" / "net.safetensors")}
    program = {"entry": "program.py:make", "config": config, "weights": {"base/net.safetensors": ""}}
    job = parse({**VALUES, "program": program}, "job")
    train(job, tmp_path, tmp_path / "run", KEY, lambda done: None)
    return job


def _audited(run: Path, job: Any = None) -> Any:
    return audit(Request(run, run.parent, job), lambda step: None, lambda count: None)


def _with_digest(job: Any, digest: str) -> Any:
    program = job.program.model_copy(update={"weights": {"base/net.safetensors": digest}})
    return job.model_copy(update={"program": program})


def test_a_file_of_weights_is_held_to_its_digest(listing: Any, tmp_path: Path) -> None:
    file, run = tmp_path / "base" / "net.safetensors", tmp_path / "run"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert open_run(run).job.program.weights == {"base/net.safetensors": digest}
    assert _audited(run, listing).verified and _audited(run, _with_digest(listing, digest)).verified
    other = _audited(run, _with_digest(listing, 64 * "a"))
    assert other.what == "job" and digest in other.detail and 64 * "a" in other.detail
    save_file({"1.weight": torch.zeros(10, 192), "1.bias": torch.ones(10)}, file)
    with pytest.raises(ProgramError, match=f"net.safetensors has SHA-256 .*; the job was made for {digest}"):
        _audited(run)
    file.unlink()
    with pytest.raises(ProgramError, match=r"net\.safetensors, of program\.weights: No such file"):
        _audited(run)


@pytest.mark.parametrize("path", ["/etc/passwd", "../base.pt", "a//b.pt", "./a.pt", "", "a\\b.pt", "a\n.pt", 501 * "a"])
def test_a_file_of_weights_lies_below_the_program(path: str) -> None:
    with pytest.raises(JobError, match="below the program's folder"):
        parse({**VALUES, "program": {"entry": "program.py:make", "weights": {path: ""}}}, "job")


def test_what_a_step_reads_and_copies() -> None:
    model = nn.BatchNorm1d(4)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    data = save(STATE)
    with Session(Plain(), Policy(), 0).step(1):
        kept = copy.deepcopy(model)
        model(torch.randn(5, 4))
        file.seek(0)
        loaded = torch.load(file)
        assert torch.equal(load(data)["bias"], STATE["bias"])
        model.load_state_dict(loaded)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]) and torch.equal(value, loaded[name])
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(model.parameters(), kept.parameters(), strict=True))


def test_a_tensor_whose_indices_meet_in_its_storage_is_not_written_to() -> None:
    with Session(Plain(), Policy(), 0).step(1):
        storage = torch.zeros(4).untyped_storage()
        seen = torch.empty(0).set_(storage, 0, (3, 2), (1, 1))
        assert seen.sum() == 0
        with pytest.raises(UnsupportedOperation, match="several indices"):
            seen.add_(1.0)
