"""One process's part of tests/engine/test_scalars.py: ``record|replay FOLDER``, with every optimizer and schedule.

Prints verdicts by case as JSON. With ``native`` as a third argument the C library's functions stay in place.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler as schedules

STEPS = 5
Optimizer = torch.optim.Optimizer


def _sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-3, betas=(0.9, 0.95)),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2, lambd=1e-3, t0=0),
}
SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "OneCycle": lambda o: schedules.OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 2),
    "CosineAnnealing": lambda o: schedules.CosineAnnealingLR(o, T_max=STEPS + 2),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, T_0=3),
    "Polynomial": lambda o: schedules.PolynomialLR(o, total_iters=STEPS + 2, power=0.7),
    "Exponential": lambda o: schedules.ExponentialLR(o, gamma=0.9),
    "Lambda cos": lambda o: schedules.LambdaLR(o, lambda t: 0.5 * (1 + math.cos(0.3 * t))),
    "Lambda power": lambda o: schedules.LambdaLR(o, lambda t: 0.97**t / (1.0 + t) ** 0.3),
    "Lambda math": lambda o: schedules.LambdaLR(
        o, lambda t: math.exp(-0.1 * t) * math.tanh(1.0 + t) + 0.01 * math.log1p(t) * math.sin(t) * math.atan2(1.0, t)
    ),
    "Lambda numpy": lambda o: schedules.LambdaLR(
        o, lambda t: float(np.exp(-0.1 * t) * np.cos(0.2 * t) + np.float64(0.9) ** t + np.power(0.3, 1.1 + t))
    ),
    "Lambda numpy float32": lambda o: schedules.LambdaLR(o, lambda t: float(np.cos(np.float32(0.2 * t)))),
}


def one(role: str, path: Path, make: Callable[[Any], Optimizer], schedule: Callable[[Optimizer], Any] | None) -> str:
    from auditor import replay
    from trainer import record
    from vtrain.policy import Policy

    x = torch.arange(48.0).view(6, 8).remainder(5.0).sub(2.0)
    model = lambda: torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))  # noqa: E731
    policy = Policy(scalar_ulps=0)  # equal in every bit, or refuted
    kind = {"record": functools.partial(record, policy=policy), "replay": replay}[role]
    with kind(path, model=model, optimizer=lambda m: make(m.parameters())) as run:
        changes = schedule(run.optimizer) if schedule else None
        for _ in range(STEPS):
            with run.step({"x": x}):
                loss = run.model(x).square().mean()
                loss.backward()
                run.optimizer.step()
                run.optimizer.zero_grad()
                run.metric(loss=loss)
            if changes:
                changes.step()
    if role == "record":
        return "recorded"
    return "verified" if run.verdict.verified else f"refuted {run.verdict.what}: {run.verdict.detail}"


def main(role: str, folder: Path, native: bool) -> dict[str, str]:
    if native:
        from vtrain.kernels import scalars

        scalars._install = lambda: None
    found = {}
    for name, make in OPTIMIZERS.items():
        found[name] = one(role, folder / name.replace(" ", "-"), make, None)
    for name, schedule in SCHEDULES.items():
        found[name] = one(role, folder / name.replace(" ", "-"), _sgd, schedule)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), "native" in sys.argv[3:])))
