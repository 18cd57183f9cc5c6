"""What steps, products and passes take on a device, beside PyTorch's own; medians of alternating repetitions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import Work, medians
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
from vtrain.kernels import canonical
from vtrain.policy import Policy

Row = dict[str, Any]
ROUNDS = 5
POLICIES: dict[str, dict[str, Any]] = {
    "logged": {}, "canonical": {"matmul": "chain"}, "logged, bfloat16": {"target": "bfloat16"},
    "canonical, bfloat16": {"target": "bfloat16", "matmul": "chain"},
}  # fmt: skip


def timed(device: torch.device, works: dict[str, Work], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each on a device."""
    return medians(rounds, works, lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None)


def resnet50() -> torch.nn.Module:
    """torchvision's, for ten classes."""
    import torchvision

    return torchvision.models.resnet50(weights=None, num_classes=10)


def benches(tiny: bool) -> list[Bench]:
    """What is trained."""
    if tiny:
        return [Bench("gpt2, tiny", lambda: gpt2(1, 16, 2, 32, 8), lambda: tokens(2, 8, 32), language_loss, {})]
    large = Bench("gpt2, 124 M", lambda: gpt2(12, 768, 12, 50257), lambda: tokens(vocab=50257), language_loss, {})
    return [large, Bench("resnet50", resnet50, lambda: images(64), image_loss, {})]


def under_autocast(bench: Bench, device: torch.device) -> Bench:
    """The same with its loss under bfloat16 autocast."""

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return bench.loss(model, batch)

    return replace(bench, loss=loss)


def plain(bench: Bench, batch: Batch, device: torch.device, dtype: torch.dtype = torch.float32) -> Work:
    """PyTorch's own step."""
    model = bench.model().to(device, dtype)
    opt = optimizer(model)
    return lambda: train_step(bench, model, opt, batch)


def recorded(bench: Bench, batch: Batch, run: Any) -> Work:
    """The same, recorded."""

    def work() -> None:
        with run.step(batch):
            train_step(bench, run.model, run.optimizer, batch)

    return work


def steps(device: torch.device, tiny: bool) -> Iterator[Row]:
    """A training step of each kind: PyTorch's in three precisions, recorded under each policy; all in turn."""
    from trainer import record

    quiet()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for bench in benches(tiny):
        batch = {key: value.to(device) for key, value in bench.batch().items()}
        works = {
            "plain float32": plain(bench, batch, device),
            "plain float64": plain(bench, batch, device, torch.float64),
            "plain bfloat16 autocast": plain(under_autocast(bench, device), batch, device),
        }
        with tempfile.TemporaryDirectory(prefix="vtrain-gpu-") as folder, ExitStack() as stack:
            for number, (kind, words) in enumerate(POLICIES.items()):
                model, path, policy = bench.model().to(device), Path(folder) / str(number), Policy(**words)
                run = record(path, model=model, optimizer=optimizer, policy=policy, checkpoint_every=10**6)
                works[kind] = recorded(bench, batch, stack.enter_context(run))
            found = timed(device, works, 1 if tiny else ROUNDS)
        for kind, seconds in found.items():
            over = seconds / found["plain float32"]
            yield {"model": bench.name, "step": kind, "ms": 1e3 * seconds, "over plain float32": over}


def products(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Chains over k against PyTorch's float32 product."""
    for m, k, n in ((16, 32, 16),) if tiny else ((512, 768, 768), (2048, 2048, 2048), (4096, 4096, 4096)):
        a, b = torch.randn(1, m, k, device=device), torch.randn(1, n, k, device=device).mT
        works: dict[str, Work] = {"torch": lambda a=a, b=b: a @ b, "chain": lambda a=a, b=b: canonical.product(a, b)}  # type: ignore[misc]
        s = timed(device, works)
        rate = 2e-9 * m * n * k
        yield {"product": f"{m} x {k} x {n}", "chain, GFLOP/s": rate / s["chain"], "torch, GFLOP/s": rate / s["torch"],
               "of torch's": s["torch"] / s["chain"]}  # fmt: skip


def passes(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Passes over memory against a copy's bandwidth."""
    rows, width = (8, 32) if tiny else (1 << 15, 1024)
    x, w = torch.randn(rows, width, device=device), torch.randn(width, device=device)
    out = torch.empty_like(x)
    works: dict[str, Work] = {
        "copy": lambda: out.copy_(x),
        "softmax": lambda: canonical.softmax("softmax", 1, x),
        "layer norm": lambda: canonical.layer_norm(x, width, w, w, 1e-5),
        "exp": lambda: canonical.function("exp", x),
        "gelu": lambda: canonical.activation("gelu_erf", x),
    }
    found = timed(device, works)
    moved = 2 * x.numel() * x.element_size()
    for name, seconds in found.items():
        yield {"pass": name, "GB/s": 1e-9 * moved / seconds, "of a copy": found["copy"] / seconds}
