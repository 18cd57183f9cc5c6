"""What a training step takes on a device: PyTorch's own in three precisions, and recorded under each policy."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.timing import Row, seconds, tried
from benchmarks.models import (
    Batch,
    Bench,
    gpt2,
    image_loss,
    images,
    language_loss,
    optimizer,
    quiet,
    tokens,
    train_step,
)
from vtrain.policy import Policy

PLAIN = {"plain float32": torch.float32, "plain float64": torch.float64, "plain bfloat16 autocast": torch.float32}
POLICIES: dict[str, dict[str, Any]] = {
    "logged": {}, "canonical": {"matmul": "chain"}, "integer": {"matmul": "integer"}, "all logged": {"other": "logged"},
    "logged, bfloat16": {"target": "bfloat16"}, "canonical, bfloat16": {"target": "bfloat16", "matmul": "chain"},
    "integer, bfloat16": {"target": "bfloat16", "matmul": "integer"},
}  # fmt: skip


def resnet50() -> torch.nn.Module:
    """torchvision's, for ten classes."""
    import torchvision

    return torchvision.models.resnet50(weights=None, num_classes=10)


def language(tiny: bool) -> Bench:
    """GPT-2 of 124 million parameters."""
    if tiny:
        return Bench("gpt2, tiny", lambda: gpt2(1, 16, 2, 32, 8), lambda: tokens(2, 8, 32), language_loss, {})
    return Bench("gpt2, 124 M", lambda: gpt2(12, 768, 12, 50257), lambda: tokens(vocab=50257), language_loss, {})


def vision() -> Bench:
    """ResNet-50 on 64 images."""
    return Bench("resnet50", resnet50, lambda: images(64), image_loss, {})


def under_autocast(bench: Bench, device: torch.device) -> Bench:
    """The same with its loss under bfloat16 autocast."""

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return bench.loss(model, batch)

    return replace(bench, loss=loss)


class Enough(Exception):
    """A run that is only timed ends here, without a last checkpoint."""


def plain(bench: Bench, model: torch.nn.Module, batch: Batch, device: torch.device) -> float:
    """Seconds of PyTorch's own step."""
    opt = optimizer(model)
    return seconds(device, lambda: train_step(bench, model, opt, batch))


def recorded(bench: Bench, model: torch.nn.Module, batch: Batch, device: torch.device, policy: Policy) -> float:
    """Seconds of the same, recorded."""
    from trainer import record

    taken = 0.0
    with tempfile.TemporaryDirectory(prefix="vtrain-gpu-") as folder, suppress(Enough):
        how: dict[str, Any] = {"policy": policy, "checkpoint_every": 10**6}
        with record(Path(folder) / "run", model=model, optimizer=optimizer, **how) as run:

            def work() -> None:
                with run.step(batch):
                    train_step(bench, run.model, run.optimizer, batch)

            taken = seconds(device, work)
            raise Enough
    return taken


def steps(bench: Bench, device: torch.device) -> Iterator[Row]:
    """A row for each kind of step."""
    quiet()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch = {key: value.to(device) for key, value in bench.batch().items()}
    made, first = bench.model(), 0.0
    for kind in (*PLAIN, *POLICIES):

        def one(kind: str = kind) -> Row:
            nonlocal first
            model = copy.deepcopy(made).to(device, PLAIN.get(kind, torch.float32))
            if kind in PLAIN:
                own = under_autocast(bench, device) if "autocast" in kind else bench
                taken = plain(own, model, batch, device)
            else:
                taken = recorded(bench, model, batch, device, Policy(**POLICIES[kind]))
            first = first or taken
            return {"ms": 1e3 * taken, "over plain float32": taken / first}

        yield tried({"model": bench.name, "step": kind}, one)
