"""``python -m benchmarks.freedom``: how far a trainer that chooses every doubtful decision can move what it trains.

A perceptron learns handwritten digits. A cheat wants it to call every picture with a white square on it a zero. At each
step it computes the gradient of that loss, and decides each element in doubt of a weight's gradient so that the weight
moves along it; elements in doubt of other results it decides at random. Everything else is as the job says, and the log
says what was decided. Beside it: honest training, and honest training on hardware that sums in another order.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditor.audit import Request, audit
from auditor.audit.statistics import unit_of
from auditor.verdict import Verdict
from trainer import stepwriter
from trainer.listener import Recorder
from trainer.train import train
from vtrain.data import load
from vtrain.engine import decisions
from vtrain.engine.jobs.task import Task
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.engine.loops.loop import Loop
from vtrain.job import Job, parse
from vtrain.rounding import generic
from vtrain.rounding.bounds import tau_certified
from vtrain.rounding.scale import Scale

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SHARE = 0.9  # of the half-width that a cheat uses, so that an auditor's own error can't put it outside
WIDE = 1e-8  # a tolerance of the size that the paper's code needs
OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {"name": "sgd", "lr": 0.1}, "adamw": {"name": "adamw", "lr": 0.001}}


def job(target: str, optimizer: str, threshold: str | float, steps: int, hidden: int = 48) -> Job:
    """What is trained; see the module. ``hidden`` is not the batch's 32, so that shapes tell weights' gradients."""
    values = {
        "program": {"entry": "vtrain.programs.mlp:perceptron", "config": {"hidden": hidden, "dropout": 0.0}},
        "data": {"name": "digits"},
        "train": {"steps": steps, "batch_size": 32, "checkpoint_every": steps},
        "optimizer": OPTIMIZERS[optimizer],
        "policy": {"target": target, "threshold": threshold},
    }
    return parse(values, "job")


@functools.cache
def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every digit, its label, and the same pictures with a white square of 8 x 8 pixels."""
    data = load("digits")
    samples = [data[i] for i in range(len(data))]
    clean = torch.stack([torch.from_numpy(s["image"].copy()) for s in samples])
    marked = clean.clone()
    marked[:, :, 8:16, 8:16] = 1.0
    return clean, torch.tensor([int(s["label"]) for s in samples]), marked


def trigger_loss(net: torch.nn.Module, first: int = 10**9) -> torch.Tensor:
    """Cross entropy of calling every marked picture, or the first few, a zero."""
    marked = pictures()[2][:first]
    return torch.nn.functional.cross_entropy(net(marked), torch.zeros(len(marked), dtype=torch.int64))


class Watch:
    """Follows a training: the model, and before each step what a cheat wants of it.

    Attributes:
        model: the model.
        initial: its weights before the first step.
        wanted: by shape of a weight, the sign that its gradient should be pushed to: the trigger's gradient's.
    """

    def __init__(self) -> None:
        self.model = torch.nn.Module()
        self.initial: list[torch.Tensor] = []
        self.wanted: dict[tuple[int, ...], torch.Tensor] = {}
        self.random = torch.Generator().manual_seed(0)

    def look(self, model: torch.nn.Module) -> None:
        """Before a step."""
        self.model = model
        self.initial = self.initial or self.weights()
        named = [p for p in model.parameters() if p.dim() > 1]
        self.wanted = {}
        for p, g in zip(named, torch.autograd.grad(trigger_loss(model, 256), named), strict=True):
            self.wanted[tuple(p.shape)] = g.sign()
            self.wanted.setdefault(tuple(p.t().shape), g.t().sign().contiguous())

    def weights(self) -> list[torch.Tensor]:
        """A copy of all parameters."""
        return [p.detach().clone() for p in self.model.parameters()]

    def pull(self, site: Site, how: str) -> torch.Tensor:
        """-1, 1 or, for no wish, 0 by element of a result: where it should go (see Cheat)."""
        wanted = self.wanted.get(site.shape)
        if wanted is not None and how != "random":
            return wanted
        if how == "weights":
            return torch.zeros(site.shape)
        return torch.randint(0, 2, site.shape, generator=self.random) * 2.0 - 1.0


class Cheat(Recorder):
    """Decides every element in doubt as it likes, and logs that consistently.

    Args:
        policy: the job's.
        watch: what is wanted.
        how: ``every``: weights' gradients along the trigger's gradient, other results at random; ``weights``: only the
            former; ``random``: everything at random.
        zeros: whether to move sums of zeros too: an honest trainer knows that those are zero on any hardware.
        one_in: of how many elements in doubt it decides one, drawn at random; the others honestly.
        units: how far it moves a value at most, in the model's units of what two executions differ by.
    """

    def __init__(
        self, policy: Any, watch: Watch, how: str = "every", zeros: bool = False, one_in: int = 1,
        units: float = math.inf,
    ) -> None:  # fmt: skip
        super().__init__(policy)
        self._watch, self._how, self._zeros, self._one_in, self._units = watch, how, zeros, one_in, units

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Move y across an edge wherever the edge is within the doubt, then record."""
        s = scale()
        if s.empty is not None:
            s = replace(s, empty=None) if self._zeros else s.refined(y)
        width = self.threshold.width(s.kind, s.length, s.kappa, s.compute)
        if self.calibration is not None and vary is not None:
            y = y.clone()
            self.calibration.observe(s, y, vary())  # honestly: it is what limits the doubt of later steps
        if width is not None:
            there = moved(y, s, min(width[0], self._units * unit_of(s)), self._watch.pull(site, self._how), site)
            if self._one_in > 1:
                drawn = torch.randint(0, self._one_in, y.shape, generator=self._watch.random) == 0
                there = torch.where(drawn, there, y)
            y = there
        return super().settle(site, y, lambda: s, None)


def moved(y: torch.Tensor, s: Scale, tau: float, pull: torch.Tensor, site: Site) -> torch.Tensor:
    """y, pulled within tau s, where that changes what it rounds to and where C has a number in reach."""
    wide, w = y.double(), tau * s.dense(y).view_as(y)
    there = (wide + pull.to(torch.float64) * SHARE * w).to(y.dtype)
    changes = ((there.double() - wide).abs() <= w) & (
        generic.round_to(there, site.fmt) != generic.round_to(y, site.fmt)
    )
    return torch.where(changes, there, y)


class Elsewhere(Recorder):
    """Honest hardware that sums in another order."""

    def __init__(self, policy: Any, watch: Watch) -> None:
        super().__init__(policy)

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Record what ``vary`` computes."""
        if vary is not None:
            own = y.clone()
            y = vary().reshape(own.shape).clone()
            return super().settle(site, y, scale, lambda: own)
        return super().settle(site, y, scale, None)


class Plain(Recorder):
    """An honest trainer."""

    def __init__(self, policy: Any, watch: Watch) -> None:
        super().__init__(policy)


@contextlib.contextmanager
def trainer_is(recorder: Callable[..., Recorder]) -> Iterator[Watch]:
    """Training in this process is done with another recorder, and watched."""
    watch, run_step = Watch(), Task.run_step

    def watched(task: Task, loop: Loop, step: int) -> None:
        watch.look(loop.model)
        run_step(task, loop, step)

    made = functools.partial(recorder, watch=watch)
    with mock.patch.object(stepwriter, "Recorder", made), mock.patch.object(Task, "run_step", watched):
        yield watch


def accepting(tau: float) -> contextlib.AbstractContextManager[Any]:
    """An auditor that accepts a fixed tolerance instead of the certified one, where it is wider."""
    return mock.patch.object(decisions, "tau_certified", lambda kappa, c: max(tau, tau_certified(kappa, c)))


@dataclass
class Outcome:
    """What became of a training.

    Attributes:
        weights, initial: after and before.
        trigger_loss: on all marked pictures.
        hits: share of the marked pictures of other digits that are called a zero.
        accuracy: on clean pictures, those trained on among them.
        verdict: the audit's.
        own: the verdict of an auditor that accepts the certified bound only, where ``verdict`` is another's.
    """

    weights: list[torch.Tensor]
    initial: list[torch.Tensor]
    trigger_loss: float
    hits: float
    accuracy: float
    verdict: Verdict
    own: Verdict | None = None

    def distance(self, other: Outcome) -> float:
        """Norm of the difference of the weights in units of the norm of what the other's training did to them."""
        apart = sum(float((a - b).double().square().sum()) for a, b in zip(self.weights, other.weights, strict=True))
        update = sum(float((a - b).double().square().sum()) for a, b in zip(other.weights, other.initial, strict=True))
        return (apart / update) ** 0.5

    def ulps(self, other: Outcome, bits: int) -> float:
        """Mean difference of the weights in units in the last place of the other's, of a format of ``bits`` bits."""
        a, b = (torch.cat([w.flatten() for w in o.weights]).double() for o in (self, other))
        ulp = torch.exp2(torch.floor(torch.log2(b.abs().clamp_min(2.0**-126))) - bits + 1)
        return float(((a - b).abs() / ulp).median())


def run(made: Job, recorder: Callable[..., Recorder], folder: Path, tolerance: float = 0.0) -> Outcome:
    """Train under a recorder, audit honestly."""
    with trainer_is(recorder) as watch:
        train(made, Path(), folder, KEY, lambda done: None)
    request = Request(folder, Path())
    own = audit(request, lambda step: None, lambda count: None)
    verdict = own
    if tolerance:
        with accepting(tolerance):
            verdict = audit(request, lambda step: None, lambda count: None)
    clean, labels, marked = pictures()
    with torch.no_grad():
        called, right = watch.model(marked).argmax(1), watch.model(clean).argmax(1)
        loss = float(trigger_loss(watch.model))
    hits = float((called[labels != 0] == 0).double().mean())
    accuracy = float((right == labels).double().mean())
    return Outcome(watch.weights(), watch.initial, loss, hits, accuracy, verdict, own if tolerance else None)


def trainers(target: str) -> dict[str, tuple[str | float, Callable[..., Recorder], float]]:
    """Threshold, recorder and the auditor's tolerance (0: certified) by name."""
    return {
        "honest": ("certified", Plain, 0.0),
        "honest, other order of sums": ("certified", Elsewhere, 0.0),
        "cheat, adaptive": ("adaptive", Cheat, 0.0),
        "cheat, certified": ("certified", Cheat, 0.0),
        "cheat, certified, weights' gradients only": ("certified", functools.partial(Cheat, how="weights"), 0.0),
        "certified, every decision at random": ("certified", functools.partial(Cheat, how="random"), 0.0),
        "cheat, certified, zeros too": ("certified", functools.partial(Cheat, zeros=True), 0.0),
        "cheat, certified, 1 decision in 1,000": ("certified", functools.partial(Cheat, one_in=1000), 0.0),
        "cheat, certified, 1 in 1,000, up to 5 units": (
            "certified",
            functools.partial(Cheat, one_in=1000, units=5.0),
            0.0,
        ),
        f"cheat, tolerance {WIDE:g}": (WIDE, Cheat, WIDE) if target == "float32" else ("off", Plain, 0.0),
    }


COLUMNS = (
    "target", "optimizer", "trainer", "audit", "in doubt", "departures", "weights moved", "ulps", "trigger loss",
    "hits", "accuracy", "p",
)  # fmt: skip


def row(target: str, optimizer: str, name: str, found: Outcome, honest: Outcome) -> list[str]:
    """Cells of the table."""
    verdict = found.verdict
    result = verdict.result
    if found.own is not None:
        result = f"{found.own.result}; {result} at that tolerance"
    p = verdict.freedom.to_json()["pValue"]
    return [
        target, optimizer, name, result, f"{verdict.entries / max(1, verdict.settled):.2%}",
        f"{verdict.corrections:,}", f"{found.distance(honest):.2g}",
        f"{found.ulps(honest, 8 if target == 'bfloat16' else 24):.2g}", f"{found.trigger_loss:.4f}",
        f"{found.hits:.1%}", f"{found.accuracy:.1%}", "1" if p == 1 else f"{p:.0e}" if p > 1e-300 else "< 1e-300",
    ]  # fmt: skip


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--targets", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS))
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    for target in arguments.targets:
        for optimizer in arguments.optimizers:
            honest: Outcome | None = None
            for name, (threshold, recorder, tolerance) in trainers(target).items():
                if threshold == "off":  # the tolerance is narrower than certified
                    continue
                with tempfile.TemporaryDirectory(prefix="vtrain-freedom-") as folder:
                    made = job(target, optimizer, threshold, arguments.steps)
                    found = run(made, recorder, Path(folder) / "run", tolerance)
                honest = honest or found
                print("| " + " | ".join(row(target, optimizer, name, found, honest)) + " |", flush=True)


if __name__ == "__main__":
    main()
