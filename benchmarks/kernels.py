"""The kernels against PyTorch's own and against the machine's copy bandwidth; part of ``make bench``.

Medians of alternating repetitions in one run, with this process's threads, and one thread against two.
``python -m benchmarks.kernels [--rounds N]``
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from vtrain import kernels, ops
from vtrain.engine import carriers, integers
from vtrain.engine.listener import round_result
from vtrain.engine.workspace import Workspace
from vtrain.kernels import canonical
from vtrain.rounding.formats import FLOAT32
from vtrain.rounding.scale import Scale

Work = Callable[[], object]
PRODUCTS = ((512, 768, 768), (1024, 1024, 1024), (512, 3072, 768), (768, 768, 512), (2048, 2048, 2048))
ROWS, WIDTH = 4096, 1024


def medians(rounds: int, works: dict[str, Work], wait: Work = lambda: None) -> dict[str, float]:
    """Median seconds of each, taken in turn, after two rounds that don't count.

    Args:
        rounds: that count.
        works: what is timed.
        wait: until a device has done what it was given.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 2):
        for name, work in works.items():
            wait()
            start = time.perf_counter()
            work()
            wait()
            if i >= 2:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def products(rounds: int) -> None:
    """Chains over k against PyTorch's float32 product."""
    for m, k, n in PRODUCTS:
        a, b = torch.randn(1, m, k), torch.randn(1, n, k).mT
        s = medians(rounds, {"torch": lambda a=a, b=b: a @ b, "chain": lambda a=a, b=b: canonical.product(a, b)})  # type: ignore[misc]
        rate = 2e-9 * m * n * k
        print(f"  product ({m}, {k}, {n})  {rate / s['chain']:6.0f} GFLOP/s, {s['torch'] / s['chain']:.2f} of torch's")


def integer_products(rounds: int) -> None:
    """Exact integers against PyTorch's float32 product and the chain, as multiples of the former's time."""
    cpu = torch.device("cpu")
    works = {name for name in carriers.CARRIERS if name == "float64" or carriers.int8_is_exact(cpu)}
    scratch = Workspace()
    for size in (256, 512, 1024):
        a, b = torch.randn(1, size, size), torch.randn(1, size, size)
        ways: dict[str, Work] = {"torch": lambda a=a, b=b: a @ b, "chain": lambda a=a, b=b: canonical.product(a, b)}  # type: ignore[misc]
        for digits, by in itertools.product((3, 2), sorted(works)):
            ways[f"{by}, {digits} bytes"] = lambda a=a, b=b, d=digits, by=by: round_result(  # type: ignore[misc]
                integers.product(scratch, a, b, d, by), FLOAT32
            )
        s = medians(rounds, ways)
        print(f"  integers {size}:", ", ".join(f"{name} {s[name] / s['torch']:.2f}" for name in list(ways)[1:]))


def settle(y: torch.Tensor, out: torch.Tensor) -> None:
    """Round float64 y and log what is in doubt, with a scale of rows and columns."""
    row, col = torch.full((ROWS,), 1e-3, dtype=torch.float64), torch.full((WIDTH,), 1e-3, dtype=torch.float64)
    scale = Scale("bench", 1, 1.0, (1, ROWS, WIDTH), row=row, col=col)
    sink = kernels.Sink(kernels.ENCODINGS["auto"])
    shape = (1, ROWS, WIDTH)
    sink.settle(0, kernels.geometry(y, out, shape), FLOAT32.key, kernels.scale_key(scale, 2.0**-50, 0.0), False)


def passes() -> dict[str, tuple[Work, Work | None, int]]:
    """Our pass, PyTorch's own if there is one, bytes moved."""
    x, w, b = torch.randn(ROWS, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)
    wide, out = x.double(), torch.empty_like(x)
    state = [torch.randn(ROWS * WIDTH).abs_() for _ in range(4)]
    theirs = torch.nn.Parameter(state[0].clone())
    theirs.grad = state[1].clone()
    fused = torch.optim.AdamW([theirs], lr=1e-3, fused=True)
    numbers = (0, 1, 0, 0, 1e-3, 0.01, 0.9, 0.99, 1e-8, 1e-3, 0.9, 0.0, 0.0)
    size = x.numel() * 4
    return {
        "settle": (lambda: settle(wide, out), None, 3 * size),
        "softmax": (lambda: canonical.softmax("softmax", 1, x=x), lambda: x.softmax(1), 2 * size),
        "layer norm": (
            lambda: canonical.layer_norm(x, WIDTH, w, b, 1e-5), lambda: F.layer_norm(x, (WIDTH,), w, b), 2 * size,
        ),
        "GELU": (lambda: canonical.activation("gelu_erf", x), lambda: F.gelu(x), 2 * size),
        "AdamW": (
            lambda: canonical.optimizer_step("adam", state[0], state[1], (state[2], state[3], None), *numbers),
            fused.step, 7 * size,
        ),
    }  # fmt: skip


def bandwidth(rounds: int) -> None:
    """Passes against a copy of as many bytes, and against PyTorch's own."""
    source, target = torch.randn(ROWS, WIDTH), torch.empty(ROWS, WIDTH)
    for name, (ours, theirs, moved) in passes().items():
        works: dict[str, Work] = {"copy": lambda: target.copy_(source), "ours": ours}
        if theirs is not None:
            works["torch"] = theirs
        s = medians(rounds, works)
        copy_rate, rate = 8 * source.numel() / s["copy"], moved / s["ours"]
        against = "" if theirs is None else f", {s['torch'] / s['ours']:.2f} of torch's own speed"
        print(f"  {name:11} {rate / 1e9:6.1f} GB/s, {rate / copy_rate:.2f} of a copy's{against}")


def attention(rounds: int) -> None:
    """Causal attention against PyTorch's flash kernel, forward and backward."""
    q, k, v = (torch.randn(2, 8, 1024, 64, requires_grad=True) for _ in range(3))
    grad = torch.randn(2, 8, 1024, 64)
    theirs, ours = F.scaled_dot_product_attention(q, k, v, is_causal=True), ops.attention(q, k, v, causal=True)

    def forward(f: Callable[..., torch.Tensor], **given: bool) -> Work:
        return lambda: f(q.detach(), k.detach(), v.detach(), **given)

    def backward(y: torch.Tensor) -> Work:
        return lambda: torch.autograd.grad(y, (q, k, v), grad, retain_graph=True)

    torch_forward = forward(F.scaled_dot_product_attention, is_causal=True)
    s = medians(rounds, {"theirs": torch_forward, "ours": forward(ops.attention, causal=True)})
    b = medians(rounds, {"theirs": backward(theirs), "ours": backward(ours)})
    ratios = f"forward {s['ours'] / s['theirs']:.2f}, backward {b['ours'] / b['theirs']:.2f} of torch's time"
    print(f"  attention, causal (2, 8, 1024, 64): {ratios}")
    one = {at: (torch.randn(1, 8, 1, 64), torch.randn(1, 8, at + 1, 64)) for at in (10, 1000)}
    state = torch.randn(1, 8, 153, 64)
    step = torch.randn(1, 8, 1, 153)
    decode: dict[str, Work] = {
        f"attention at {at}": lambda a=a, c=c, at=at: ops.attention(a, c, c, causal=True, start=at)  # type: ignore[misc]
        for at, (a, c) in one.items()
    }
    cache = torch.randn(1, 8, 64, 64)
    for at in (10, 100_000):
        kept = cache[:, :, : min(64, at + 1)]
        decode[f"attention at {at}, window 64"] = lambda at=at, c=kept: ops.attention(  # type: ignore[misc]
            one[10][0], c, c, window=64, start=at, offset=at + 1 - c.shape[2]
        )
    decode["scan"] = lambda: ops.scan(step, step, one[10][0], initial=state)
    for name, seconds in medians(rounds, decode).items():
        print(f"  a step of {name}: {1e6 * seconds:.0f} us")


def scans(rounds: int) -> None:
    """Scans against the rate of PyTorch's float32 product, linear attention against softmax attention by length."""
    a = torch.randn(2048, 2048)
    q, v = torch.randn(1, 8, 4096, 153), torch.randn(1, 8, 4096, 64)
    s = medians(rounds, {"product": lambda: a @ a, "scan": lambda: ops.scan(q, q, v)})
    rate, peak = 4e-9 * q.numel() * 64 / s["scan"], 2e-9 * 2048**3 / s["product"]
    print(f"  scan, length 4096, 153 features, width 64: {rate:.0f} GFLOP/s, {rate / peak:.2f} of torch's product")
    for length in (256, 512, 1024, 2048):
        x = torch.randn(1, 8, length, 64)
        features = torch.randn(1, 8, length, 153)
        t = medians(rounds, {
            "softmax": lambda x=x: ops.attention(x, x, x, causal=True),  # type: ignore[misc]
            "linear": lambda f=features, x=x: ops.linear_attention(f, f, x),  # type: ignore[misc]
        })  # fmt: skip
        print(f"  linear attention, length {length}: {t['linear'] / t['softmax']:.2f} of softmax attention's time")


def convolutions(rounds: int) -> None:
    """Convolutions of channels by themselves against PyTorch's FFT and against a copy."""
    u, w, length = torch.randn(4, 256, 1024), torch.randn(256, 1024), 1024

    def by_fft() -> torch.Tensor:
        spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(w, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length]

    s = medians(rounds, {"fft": by_fft, "ours": lambda: ops.long_conv(u, w)})
    print(f"  long convolution (4, 256, 1024): {s['ours'] / s['fft']:.2f} of the time of torch's FFT")
    x, taps, out = torch.randn(8, 768, 1024), torch.randn(768, 4), torch.empty(8, 768, 1024)
    s = medians(rounds, {
        "copy": lambda: out.copy_(x), "ours": lambda: ops.short_conv(x, taps),
        "torch": lambda: F.conv1d(x, taps.unsqueeze(1), padding=3, groups=768),
    })  # fmt: skip
    against = f"{s['copy'] / s['ours']:.2f} of a copy's bandwidth, {s['torch'] / s['ours']:.2f} x torch's speed"
    print(f"  short convolution, 4 taps: {against}")


def scaling(rounds: int) -> None:
    """One thread against two."""
    a, b = torch.randn(1, 1024, 1024), torch.randn(1, 1024, 1024)
    x = torch.randn(ROWS, WIDTH)
    threads = torch.get_num_threads()
    for name, work in (
        ("product", lambda: canonical.product(a, b)),
        ("GELU", lambda: canonical.activation("gelu_erf", x)),
    ):
        seconds = []
        for n in (1, 2):
            torch.set_num_threads(n)
            seconds.append(medians(rounds, {"": work})[""])
        print(f"  {name:11} two threads are {seconds[0] / seconds[1]:.2f} x as fast as one")
    torch.set_num_threads(threads)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"kernels ({kernels.variant()}, {torch.get_num_threads()} threads)")
    products(rounds)
    integer_products(rounds)
    bandwidth(rounds)
    attention(rounds)
    scans(rounds)
    convolutions(rounds)
    scaling(rounds)


if __name__ == "__main__":
    main()
