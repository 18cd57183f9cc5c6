"""Every kernel's results on a device, compared with the host's bit by bit.

``python -m benchmarks.gpu.bits DEVICE`` runs the small shapes alone, under compute-sanitizer say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from vtrain.kernels import canonical, launch
from vtrain.kernels.selftest import same_bits

TESTS = Path(__file__).resolve().parents[2] / "tests" / "kernels"
Found = Iterator[tuple[str, bool, int]]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """``same_bits`` of tensors wherever they are."""
    return same_bits(a.cpu(), b.cpu())


def small(device: torch.device) -> Found:
    """The calls of the tests, each kernel in every form, launched on the device."""
    sys.path[:0] = [str(TESTS), str(TESTS / "ptx")]
    from test_device import GROUPS

    run = launch.launch

    def there_and_back(name: str, *arguments: object) -> None:
        held = {id(a): a.to(device) for a in arguments if isinstance(a, torch.Tensor)}
        run(name, *[held.get(id(a), a) for a in arguments])  # type: ignore[arg-type]
        for a in arguments:
            if isinstance(a, torch.Tensor):
                a.copy_(held[id(a)])

    for name, group in GROUPS.items():
        torch.manual_seed(0)
        host = group()
        torch.manual_seed(0)
        with mock.patch.object(launch, "launch", there_and_back):
            found = group()
        yield name, len(host) == len(found) and all(map(same, host, found)), len(host)


def large(device: torch.device, tiny: bool) -> Found:
    """Sizes of real layers; operands have NaN, infinities, zeros and subnormals among them."""
    n = 48 if tiny else 1024
    g = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        x = torch.randn(shape, generator=g)
        flat = x.view(-1)
        for i, special in enumerate((0.0, -0.0, 1e-42, -1e-42, 3e38)):
            flat[i * 7 % flat.numel()] = special
        return x

    a, b, x, w = some(1, n, 3 * n), some(1, 3 * n, n), some(4 * n, n), some(n)
    image, kernel = some(4, 16, n // 16, n // 16), some(32, 16, 3, 3)
    key = (4, 16, n // 16, n // 16, 32, 3, 3, 1, 1, 1, 1, 1, 1, n // 16, n // 16, 1)
    out = torch.empty(4, 32, n // 16, n // 16)
    works: dict[str, Callable[..., torch.Tensor]] = {
        f"product {n} x {3 * n} x {n}": lambda to: canonical.product(to(a), to(b)),
        "product, float64 accumulator": lambda to: canonical.product(to(a), to(b), wide=True),
        f"convolution 3 x 3 of {n // 16}": lambda to: canonical.convolution(
            "convolution", to(image), to(kernel), to(out).clone(), None, key, False
        ),
        **{f"{name} of {4 * n * n}": lambda to, name=name: canonical.function(name, to(x)) for name in
           ("exp", "log", "tanh", "erf", "sin", "rsqrt")},
        f"softmax of {4 * n} x {n}": lambda to: canonical.softmax("softmax", 1, to(x)),
        f"layer norm of {4 * n} x {n}": lambda to: canonical.layer_norm(to(x), n, to(w), to(w), 1e-5)[0],
    }  # fmt: skip
    for name, work in works.items():
        host, found = work(lambda t: t), work(lambda t: t.to(device))
        yield name, same(host, found), host.numel()


if __name__ == "__main__":
    wrong = [name for name, equal, _ in small(torch.device(sys.argv[1])) if not equal]
    sys.exit(f"other bits: {wrong}" if wrong else 0)
