"""Passes over memory against a copy's bandwidth, and attention against PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.gpu.peaks import peak, share
from benchmarks.gpu.timing import Row, Work, seconds, tried
from trainer.listener import Recorder
from vtrain.engine.listener import Site
from vtrain.engine.session import Session
from vtrain.kernels import canonical, device
from vtrain.policy import Policy
from vtrain.rounding.formats import FLOAT32
from vtrain.rounding.scale import Scale


def settle(where: torch.device, rows: int, width: int) -> Work:
    """Round float64 values and log those in doubt, with a scale of rows and columns."""
    y = torch.randn(rows, width, device=where, dtype=torch.float64)
    row, col = (torch.full((n,), 1e-3, device=where, dtype=torch.float64) for n in (rows, width))
    recorder = Recorder(Policy())
    site = Site(1, 0, "aten.mm.default", (rows, width), FLOAT32, False)

    def work() -> None:
        recorder.settle(site, y, lambda: Scale("product", 8, 4.0, (1, rows, width), row=row, col=col))
        recorder.take()

    return work


def works(where: torch.device, rows: int, width: int) -> dict[str, tuple[Work, int]]:
    """Each pass, and the bytes an element that it must read and write."""
    x, grad, w = (torch.randn(*shape, device=where) for shape in ((rows, width), (rows, width), (width,)))
    out = torch.empty_like(x)
    y, (_, mean, rstd) = x.softmax(1), canonical.layer_norm(x, width, w, w, 1e-5)
    channels, v = x.view(8, width, rows // 8), w.abs()
    state = [torch.rand(rows, width, device=where) for _ in range(3)]
    numbers = (0, 1, 0, 0, 1e-3, 0.01, 0.9, 0.99, 1e-8, 1e-3, 0.9, 0.0, 0.0)
    return {
        "copy": (lambda: out.copy_(x), 8),
        "settle": (settle(where, rows, width), 12),
        "softmax": (lambda: canonical.softmax("softmax", 1, x), 8),
        "softmax, backward": (lambda: canonical.softmax("softmax", 1, y=y, grad=grad), 12),
        "layer norm": (lambda: canonical.layer_norm(x, width, w, w, 1e-5), 8),
        "layer norm, backward": (lambda: canonical.layer_norm_backward(x, width, grad, mean, rstd, w), 12),
        "RMS norm": (lambda: canonical.rms_norm(x, width, w, 1e-6), 8),
        "channel norm": (lambda: canonical.channel_norm(channels, v, v, v), 8),
        "sum over rows": (lambda: canonical.sum_terms("value", [0], x), 4),
        "exp": (lambda: canonical.function("exp", x), 8),
        "GELU": (lambda: canonical.activation("gelu_erf", x), 8),
        "AdamW": (lambda: canonical.optimizer_step("adam", state[0], grad, (state[1], state[2], None), *numbers), 28),
        "torch: softmax": (lambda: x.softmax(1), 8),
        "torch: layer norm": (lambda: F.layer_norm(x, (width,), w, w), 8),
        "torch: GELU": (lambda: F.gelu(x), 8),
    }  # fmt: skip


def passes(where: torch.device, tiny: bool) -> Iterator[Row]:
    """A row for each pass, then attention."""
    rows, width = (16, 32) if tiny else (1 << 15, 1024)
    most = {} if where.type == "cpu" else peak(device.described(where))
    copied = 0.0
    for name, (work, size) in works(where, rows, width).items():

        def one(name: str = name, work: Work = work, moved: float = 1e-9 * size * rows * width) -> Row:
            nonlocal copied
            rate = moved / seconds(where, work)
            copied = rate if name == "copy" else copied
            return {"GB/s": rate, "of a copy": rate / copied, "of the peak": share(rate, most.get("memory"))}

        yield tried({"pass": name}, one)
    yield from attention(where, tiny, copied)


def attention(where: torch.device, tiny: bool, copied: float) -> Iterator[Row]:
    """scaled_dot_product_attention and its gradient, PyTorch's own and as a step computes it."""
    shape = (1, 2, 8, 8) if tiny else (8, 12, 1024, 64)
    q, k, v = (torch.randn(shape, device=where, requires_grad=True) for _ in range(3))
    scores = 8e-9 * q.numel() / shape[-1] * shape[-2]  # GB to write and read the weights once

    def work() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True).sum(), (q, k, v))

    def one(policy: Policy | None) -> Row:
        if policy is None:
            taken = seconds(where, work)
        else:
            with Session(Recorder(policy), policy, 0).step(1):
                taken = seconds(where, work)
        return {"ms": 1e3 * taken, "over a copy of its weights": taken * copied / scores}

    policies = {
        "torch": None, "logged": Policy(), "canonical": Policy(matmul="chain"), "integer": Policy(matmul="integer"),
    }  # fmt: skip
    for name, policy in policies.items():
        yield tried({"attention": "x".join(map(str, shape)), "by": name}, lambda policy=policy: one(policy))
