"""Loops that live by their random numbers, recorded here and replayed by a process with other arithmetic."""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import random as coin
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.random import randn
from torch.utils.checkpoint import checkpoint

from auditor import replay
from auditor.audit import Request, audit
from trainer import record
from trainer.train import train
from vtrain.errors import UnsupportedError
from vtrain.job import parse
from vtrain.profiles import profile_environment

DATA = (torch.arange(32 * 6).remainder(17) / 8 - 1).view(32, 6)
STEPS = 3


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(5, 1))


def loss_of(net: torch.nn.Module, x: torch.Tensor = DATA) -> torch.Tensor:
    return (net(x).squeeze(1) - x.sum(1)).square().mean()


def zeroth_order(run: Any) -> None:
    """MeZO: the noise is drawn three times from one seed, and the weights end where they began, but for the update."""

    def perturb(seed: int, scale: float) -> None:
        g = torch.Generator().manual_seed(seed)
        for p in run.model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))

    for step in range(STEPS):
        with run.step(DATA), torch.no_grad():
            before = [p.clone() for p in run.model.parameters()]
            run.model.eval()
            perturb(step, 1e-2)
            up = float(loss_of(run.model))
            perturb(step, -2e-2)
            down = float(loss_of(run.model))
            perturb(step, 1e-2)
            for p, q in zip(run.model.parameters(), before, strict=True):
                assert float((p - q).abs().max()) < 1e-6
            perturb(step, -0.1 * (up - down) / 2e-2)
            run.metric(up=up)


def evolution(run: Any) -> None:
    """Antithetic pairs, by the global generator, seeded anew for each member; in two orders of asking."""
    net = run.model.eval()
    flat = torch.nn.utils.parameters_to_vector
    for step in range(STEPS):
        with run.step(DATA), torch.no_grad():
            mean = flat(net.parameters()).clone()
            scores = []
            for member in range(4):
                torch.manual_seed(100 * step + member)
                noise = torch.randn(mean.shape)
                for sign in (0.1, -0.1):
                    torch.nn.utils.vector_to_parameters(mean + sign * noise, net.parameters())
                    scores.append(float(loss_of(net)))
            for member in reversed(range(4)):
                torch.manual_seed(100 * step + member)
                mean -= (scores[2 * member] - scores[2 * member + 1]) * 0.01 * torch.randn(mean.shape)
            torch.nn.utils.vector_to_parameters(mean, net.parameters())
            run.metric(best=min(scores))


def carried(run: Any) -> None:
    """One generator for the whole run; its state goes through a tensor; the global one is forked for a look aside."""
    g = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        state = g.get_state()
        g = torch.Generator().set_state(state)
        with run.step(DATA):
            noisy = DATA + 0.1 * torch.randn(DATA.shape, generator=g)
            with torch.random.fork_rng():
                torch.manual_seed(3)
                probe = torch.rand(2)
            loss = checkpoint(lambda x: loss_of(run.model, x), noisy, use_reentrant=False)
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss, probe=probe.sum())


def host_generators(run: Any) -> None:
    """Augmentation by Python's and NumPy's functions, under names that were imported before."""
    for step in range(STEPS):
        with run.step(DATA):
            np.random.seed(step)
            x = DATA * (1 + coin()) + torch.from_numpy(randn(*DATA.shape).astype(np.float32).round(2))
            random.seed(step)
            loss = loss_of(run.model, x if random.gauss(0, 1) > 0 else x.flip(0))
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()


def prefetched(run: Any) -> None:
    """A thread draws the next batch while a step runs, from the generators that were seeded outside."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    wanted, ready = threading.Semaphore(1), queue.Queue[torch.Tensor | None]()
    drawn: list[tuple[int, ...]] = []

    def load() -> None:
        for _ in range(STEPS):
            wanted.acquire()
            order = torch.randperm(32)[:8] + random.randrange(2) + int(np.random.randint(2))
            ready.put(order % 32)

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(STEPS):
        order = ready.get(timeout=20)
        assert order is not None
        drawn.append(tuple(order.tolist()))
        with run.step(DATA[order]):
            loss = loss_of(run.model, DATA[order])
            wanted.release()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
    thread.join()
    assert len(set(drawn)) == STEPS


def natively(run: Any) -> None:
    """Batches that differ by processor."""
    g = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        x = torch.randn(64, 6, generator=g)
        with run.step(x):
            loss_of(run.model, x).backward()


LOOPS: dict[str, Callable[[Any], None]] = {
    f.__name__: f for f in (zeroth_order, evolution, carried, host_generators, prefetched, natively)
}


def given() -> dict[str, Any]:
    return {"model": model, "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1)}


def replays(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, loop in LOOPS.items():
        with replay(folder / name, **given()) as run:
            loop(run)
        found[name] = [run.verdict.result, run.verdict.what, run.verdict.notes]
    return found


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("loops")
    for name, loop in LOOPS.items():
        with record(folder / name, **given()) as run:
            loop(run)
    other = {**os.environ, **profile_environment("baseline"), "OMP_NUM_THREADS": "1", "VTRAIN_CPU": "generic"}
    done = subprocess.run([sys.executable, __file__, str(folder)], env=other, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "natively"])
def test_verified_under_other_arithmetic(verdicts: dict[str, list[Any]], name: str) -> None:
    assert verdicts[name][:2] == ["verified", ""]


def test_batches_drawn_natively_are_refuted_with_the_reason(verdicts: dict[str, list[Any]]) -> None:
    result, what, notes = verdicts["natively"]
    assert (result, what) == ("refuted", "data")
    assert any("processor" in note and "vtrain.seeded" in note for note in notes)


PROGRAM = """
import os
import numpy as np
import torch
from vtrain import Program

def make():
    data = [{"x": np.full(4, i + float(os.environ.get("SHIFT", 0)), np.float32)} for i in range(8)]
    return Program(torch.nn.Linear(4, 1), lambda model, batch: model(batch["x"]).square().mean(), data=data)
"""


def test_a_job_s_own_data_gets_the_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    values = {
        "program": {"entry": "program.py:make"}, "data": {"name": "program"},
        "train": {"steps": 2, "batch_size": 4}, "optimizer": {"name": "sgd", "lr": 0.01},
    }  # fmt: skip
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    train(parse(values, "job"), tmp_path, tmp_path / "run", key, lambda done: None)
    request = Request(tmp_path / "run", tmp_path)
    assert audit(request, lambda step: None, lambda steps: None).verified
    monkeypatch.setenv("SHIFT", "1")
    with pytest.raises(UnsupportedError, match="on every processor"):
        audit(request, lambda step: None, lambda steps: None)


if __name__ == "__main__":
    print(json.dumps(replays(Path(sys.argv[1]))))
