"""Every kernel's results on a device, compared with the host's bit by bit.

``python -m benchmarks.gpu.bits DEVICE [--tiny] [--small] [GROUP ...]`` prints a JSON line for each comparison, and one
when a group is done; ``--small`` leaves out the large shapes, under compute-sanitizer say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from vtrain.engine import carriers, integers
from vtrain.engine.workspace import Workspace
from vtrain.kernels import canonical, launch
from vtrain.kernels.selftest import same_bits
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32
from vtrain.rounding.scale import Scale

TESTS = Path(__file__).resolve().parents[2] / "tests" / "kernels"
SMALL = (
    "products", "convolutions", "elementwise", "sums", "rows", "steps", "settled", "attentions", "scans", "depthwise"
)  # fmt: skip
Tensor = torch.Tensor
Made = dict[str, Callable[[torch.device], list[Tensor]]]


def names(small_only: bool) -> list[str]:
    """Groups of comparisons, in order."""
    return [f"{name}, small" for name in SMALL] + ([] if small_only else [f"{name}, large" for name in LARGE])


def same(a: Tensor, b: Tensor) -> bool:
    """``same_bits`` of tensors wherever they are."""
    return same_bits(a.cpu(), b.cpu())


def compared(host: list[Tensor], found: list[Tensor]) -> bool:
    """Whether all results are there and the same."""
    return len(host) == len(found) and all(map(same, host, found))


def small(name: str, device: torch.device) -> Iterator[tuple[str, bool, int]]:
    """The calls of the tests, each kernel of a group in every form, launched on the device."""
    sys.path[:0] = [str(TESTS), str(TESTS / "ptx")]
    from test_device import GROUPS, elsewhere

    assert set(GROUPS) == set(SMALL)
    torch.manual_seed(0)
    host = GROUPS[name]()
    torch.manual_seed(0)
    with mock.patch.object(launch, "launch", elsewhere(str(device))):
        found = GROUPS[name]()
    yield f"{name}, small", compared(host, found), len(host)


# ---- sizes of real layers -------------------------------------------------------------------------------------------
def some(*shape: int, seed: int = 0) -> Tensor:
    """Numbers with zeros, subnormals and a large one among them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    flat = x.view(-1)
    for i, special in enumerate((0.0, -0.0, 1e-42, -1e-42, 3e38)):
        flat[i * 7 % flat.numel()] = special
    return x


def products(n: int) -> Made:
    """Chains in float32 and float64, and integers by what multiplies them on each device."""
    a, b = some(1, n, 3 * n), some(1, 3 * n, n, seed=1)

    def exact(d: torch.device, by: str, digits: int) -> list[Tensor]:
        return [integers.product(Workspace(), a.to(d), b.to(d), digits, by if d.type != "cpu" else "float64")]

    shape = f"{n} x {3 * n} x {n}"
    return {
        f"product {shape}": lambda d: [canonical.product(a.to(d), b.to(d))],
        f"product {shape}, bias": lambda d: [canonical.product(a.to(d), b.to(d), b[0, 0].to(d), -0.5, 2.0)],
        f"product {shape}, float64": lambda d: [canonical.product(a.to(d), b.to(d), wide=True)],
        **{f"integers by {by}, {digits} bytes": lambda d, by=by, digits=digits: exact(d, by, digits)
           for by in carriers.CARRIERS for digits in (2, 3)},
    }  # fmt: skip


def convolutions(n: int) -> Made:
    """One of 3 x 3 and its gradients."""
    side = max(3, n // 32)
    key = (4, 16, side, side, 32, 3, 3, 1, 1, 1, 1, 1, 1, side, side, 1)
    shapes = {"input_gradient": key[:4], "weight_gradient": (32, 16, 3, 3), "convolution": (4, 32, side, side)}

    def made(d: torch.device, kind: str, wide: bool) -> list[Tensor]:
        x = [(torch.zeros(s) if name == kind else some(*s, seed=2)).to(d) for name, s in shapes.items()]
        return [canonical.convolution(kind, *x, None, key, wide)]

    return {
        f"{kind} of {side} x {side}{', float64' if wide else ''}": lambda d, kind=kind, wide=wide: made(d, kind, wide)
        for kind in shapes
        for wide in (False, True)
    }


def elementwise(n: int) -> Made:
    """Functions and activations of a matrix."""
    x, grad = some(n, n), some(n, n, seed=1)

    def both(d: torch.device, name: str) -> list[Tensor]:
        return [canonical.activation(name, x.to(d), *g, 1.0, 20.0) for g in ((None,), (grad.to(d),))]

    made: Made = {name: lambda d, name=name: [canonical.function(name, x.to(d))] for name in canonical.FUNCTIONS}
    made |= {name: lambda d, name=name: both(d, name) for name in ("gelu_erf", "gelu_tanh", "silu", "softplus")}
    return {f"{name} of {n} x {n}": work for name, work in made.items()}


def rows(n: int) -> Made:
    """Softmax and norms with their gradients; sums, scans and scattered sums."""
    x, grad, w = some(n, n), some(n, n, seed=1), some(n, seed=2)
    index = torch.arange(n) * 7 % 50

    def soft(d: torch.device, name: str) -> list[Tensor]:
        y = canonical.softmax(name, 1, x=x.to(d))
        return [y, canonical.softmax(name, 1, y=y, grad=grad.to(d))]

    def layer(d: torch.device) -> list[Tensor]:
        at, g, v = x.to(d), grad.to(d), w.to(d)
        out, mean, rstd = canonical.layer_norm(at, n, v, v, 1e-5)
        return [out, mean, rstd, canonical.layer_norm_backward(at, n, g, mean, rstd, v)]

    def root(d: torch.device) -> list[Tensor]:
        out, rstd = canonical.rms_norm(x.to(d), n, w.to(d), 1e-6)
        return [out, rstd, canonical.rms_norm_backward(x.to(d), n, grad.to(d), rstd, w.to(d))]

    def channels(d: torch.device) -> list[Tensor]:
        at, v = x.view(4, n // 4, n).to(d), w[: n // 4].to(d)
        return [canonical.channel_norm(at, v, v, v), canonical.channel_norm_backward(at, at * 2, v, v, v, v)]

    return {
        f"softmax of {n} x {n}": lambda d: soft(d, "softmax"),
        f"log_softmax of {n} x {n}": lambda d: soft(d, "log_softmax"),
        f"layer norm of {n} x {n}": layer, f"RMS norm of {n} x {n}": root,
        f"channel norm of 4 x {n // 4} x {n}": channels,
        **{f"sum over {dims} of {n} x {n}": lambda d, dims=dims: [canonical.sum_terms("value", dims, x.to(d))]
           for dims in ([0], [1], [0, 1])},
        f"running sum of {n} x {n}": lambda d: [canonical.running_sum(x.to(d), 1)],
        f"scatter of {n} x {n}": lambda d: [canonical.scatter(x.to(d), index.to(d), 50)],
    }  # fmt: skip


def sequences(n: int) -> Made:
    """Attention, scans and convolutions of channels by themselves, with their gradients."""
    q, k, v, grad = (some(1, 4, n, 64, seed=i) for i in range(4))
    decay, w = torch.rand(1, 4, n, 1), some(64, n, seed=5)
    sight = canonical.Sight(causal=True, q_scale=0.35, k_scale=0.35)

    def attention(d: torch.device) -> list[Tensor]:
        at = [t.to(d) for t in (q, k, v)]
        out, top, total = canonical.attention(*at, sight)
        return [out, top, total, *canonical.attention_backward(grad.to(d), *at, top, total, sight)]

    def scan(d: torch.device) -> list[Tensor]:
        at, a, reach = [t.to(d) for t in (q, k, v)], decay.to(d), canonical.Reach()
        y, state = canonical.scan(*at, a, None, reach)
        dk, _ = canonical.scan(at[2], grad.to(d), at[0], a, None, reach, backwards=True, across=True)
        return [y, state, dk, canonical.scan_decay(at[0], at[0], at[1], dk, state, state, reach)]

    def depthwise(d: torch.device) -> list[Tensor]:
        u, g, taps = q[0].mT.to(d), grad[0].mT.to(d), w.to(d)
        back = [canonical.depthwise_input(g, taps, n, n - 1), canonical.depthwise_weight(g, u, n, n - 1)]
        return [canonical.depthwise(u, taps, n, n - 1), canonical.depthwise(u, taps[:, :4], n, 3), *back]

    return {
        f"attention of 4 x {n} x 64": attention, f"scan of 4 x {n} x 64 x 64": scan,
        f"convolutions of 4 x 64 x {n}": depthwise,
    }  # fmt: skip


def settled(n: int) -> Made:
    """Optimizers' steps; rounding and what is in doubt."""
    wide = some(n, n).double() * (1 + 2.0**-25)
    scale = Scale("test", 1, 1.0, (1, 1, n * n), relative=True)
    reals = (0.1, 0.01, 0.9, 0.99, 1e-8, 0.3, 0.7, 0.9, 0.1)

    def step(d: torch.device, name: str) -> list[Tensor]:
        state = [some(n, n, seed=i).abs().to(d) for i in range(4)]
        canonical.optimizer_step(name, state[0], some(n, n, seed=9).to(d), tuple(state[1:]), 1, 1, 0, 1, *reals)
        return state

    made: Made = {name: lambda d, name=name: step(d, name) for name in ("sgd", "adam")}
    for fmt in (FLOAT32, BFLOAT16, FLOAT16):
        made[f"round to {fmt.name}"] = lambda d, fmt=fmt: [canonical.round_to(wide.to(d), fmt)]
        made[f"doubt in {fmt.name}"] = lambda d, fmt=fmt: [
            *canonical.in_doubt(wide.view(-1).to(d), scale, 2.0**-fmt.p * 0.1, 2.0**-140, fmt)
        ]
    return {f"{name} of {n} x {n}": work for name, work in made.items()}


LARGE = {
    "products": products, "convolutions": convolutions, "elementwise": elementwise, "rows": rows, "settled": settled,
    "sequences": sequences,
}  # fmt: skip


def large(name: str, device: torch.device, tiny: bool) -> Iterator[tuple[str, bool, int]]:
    """A group of kernels, each on operands of a real layer's size."""
    for kernel, work in LARGE[name](48 if tiny else 1024).items():
        host, found = work(torch.device("cpu")), work(device)
        yield kernel, compared(host, found), sum(t.numel() for t in host)


def main() -> None:
    """Compare, group by group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("groups", nargs="*")
    given, wrong = parser.parse_intermixed_args(), []
    for group in given.groups or names(given.small):
        name, _, size = group.partition(", ")
        found = small(name, given.device) if size == "small" else large(name, given.device, given.tiny)
        for kernel, equal, count in found:
            print(json.dumps({"kernels": kernel, "same": equal, "results": count}), flush=True)
            wrong += [] if equal else [kernel]
        print(json.dumps({"whole": True, "kernels": group}), flush=True)
    if given.small and wrong:
        sys.exit(f"other bits: {wrong}")


if __name__ == "__main__":
    main()
