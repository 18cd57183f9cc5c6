"""What steps, products and passes take on a device, beside PyTorch's own; medians of alternating repetitions."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Batch, gpt2, image_loss, language_loss, optimizer, quiet, tokens
from vtrain.kernels import canonical
from vtrain.policy import Policy

Work = Callable[[], object]
Row = dict[str, Any]
ROUNDS = 5
POLICIES: dict[str, dict[str, Any]] = {
    "logged": {}, "canonical": {"matmul": "chain"}, "logged, bfloat16": {"target": "bfloat16"},
    "canonical, bfloat16": {"target": "bfloat16", "matmul": "chain"},
}  # fmt: skip


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(device: torch.device, works: dict[str, Work], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each, taken in turn, after two that don't count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 2):
        for name, work in works.items():
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            if i >= 2:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def resnet50() -> torch.nn.Module:
    """torchvision's, for ten classes."""
    import torchvision

    return torchvision.models.resnet50(weights=None, num_classes=10)


def images(count: int) -> Batch:
    """Random images of 3x32x32."""
    g = torch.Generator().manual_seed(0)
    return {"image": torch.randn(count, 3, 32, 32, generator=g), "label": torch.randint(0, 10, (count,), generator=g)}


def models(tiny: bool) -> dict[str, tuple[Callable[[], torch.nn.Module], Batch, Callable[..., torch.Tensor]]]:
    """Model, batch and loss by name."""
    if tiny:
        return {"gpt2, tiny": (lambda: gpt2(1, 16, 2, 32, 8), tokens(2, 8, 32), language_loss)}
    return {
        "gpt2, 124 M": (lambda: gpt2(12, 768, 12, 50257, 64), tokens(8, 64, 50257), language_loss),
        "resnet50": (resnet50, images(64), image_loss),
    }


class Training:
    """A model to time on a device.

    Args:
        make: makes it, with random weights.
        batch: its one batch.
        loss: of model and batch.
        device: where.
    """

    def __init__(self, make: Callable[[], torch.nn.Module], batch: Batch, loss: Any, device: torch.device) -> None:
        self.make, self.loss, self.device = make, loss, device
        self.batch = {key: value.to(device) for key, value in batch.items()}

    def step(self, model: torch.nn.Module, opt: Any, cast: bool = False) -> None:
        """Forward, backward, update."""
        with torch.autocast(self.device.type, torch.bfloat16) if cast else contextlib.nullcontext():
            found = self.loss(model, self.batch)
        found.backward()
        opt.step()
        opt.zero_grad()

    def plain(self, dtype: torch.dtype, cast: bool = False) -> Work:
        """PyTorch's own step."""
        model = self.make().to(self.device, dtype)
        opt = optimizer(model)
        return lambda: self.step(model, opt, cast)

    def recorded(self, run: Any) -> Work:
        """The same, recorded."""

        def work() -> None:
            with run.step(self.batch):
                self.step(run.model, run.optimizer)

        return work


def steps(device: torch.device, tiny: bool) -> Iterator[Row]:
    """A training step of each kind: PyTorch's in three precisions, recorded under each policy; all in turn."""
    from trainer import record

    quiet()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, (make, batch, loss) in models(tiny).items():
        training = Training(make, batch, loss, device)
        works = {
            "plain float32": training.plain(torch.float32),
            "plain float64": training.plain(torch.float64),
            "plain bfloat16 autocast": training.plain(torch.float32, cast=True),
        }
        with tempfile.TemporaryDirectory(prefix="vtrain-gpu-") as folder, ExitStack() as stack:
            for number, (kind, words) in enumerate(POLICIES.items()):
                model, path, policy = make().to(device), Path(folder) / str(number), Policy(**words)
                run = record(path, model=model, optimizer=optimizer, policy=policy, checkpoint_every=10**6)
                works[kind] = training.recorded(stack.enter_context(run))
            found = medians(device, works, 1 if tiny else ROUNDS)
        for kind, seconds in found.items():
            over = seconds / found["plain float32"]
            yield {"model": name, "step": kind, "ms": 1e3 * seconds, "over plain float32": over}


def products(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Chains over k against PyTorch's float32 product."""
    for m, k, n in ((16, 32, 16),) if tiny else ((512, 768, 768), (2048, 2048, 2048), (4096, 4096, 4096)):
        a, b = torch.randn(1, m, k, device=device), torch.randn(1, n, k, device=device).mT
        works: dict[str, Work] = {"torch": lambda a=a, b=b: a @ b, "chain": lambda a=a, b=b: canonical.product(a, b)}  # type: ignore[misc]
        s = medians(device, works)
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
    found = medians(device, works)
    moved = 2 * x.numel() * x.element_size()
    for name, seconds in found.items():
        yield {"pass": name, "GB/s": 1e-9 * moved / seconds, "of a copy": found["copy"] / seconds}
