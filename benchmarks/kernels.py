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

from vtrain import kernels
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
    scaling(rounds)


if __name__ == "__main__":
    main()
