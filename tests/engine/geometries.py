"""Hard geometries of every operation whose result depends on index arithmetic; as a program, digests of their results.

``python geometries.py POLICY SEED COUNT``: JSON, names to SHA-256 of value and gradients, or to "refused".
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy

Tensor = torch.Tensor
POLICIES = {
    "logged": Policy(matmul="logged", other="logged"),
    "default": Policy(),
    "chain": Policy(matmul="chain"),
    "chain64": Policy(matmul="chain64"),
    "integer": Policy(matmul="integer"),
}


@dataclass(frozen=True)
class Case:
    """One operation with one geometry.

    Attributes:
        f: of the inputs.
        shapes: of the inputs.
        reference: what f is, in float64; None: f itself, by torch.
        channels_last: whether the first input is laid out so.
        ties: whether inputs are of few values, infinities and signed zeros among them.
    """

    name: str
    f: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    reference: Callable[..., Tensor] | None = None
    channels_last: bool = False
    ties: bool = False

    def inputs(self) -> list[Tensor]:
        """Float32 tensors, by the case's name."""
        g = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:6], "big"))
        # torch.randn has other bits under other instruction sets
        made = [torch.randint(-(1 << 22), 1 << 22, shape, generator=g) / (1 << 20) for shape in self.shapes]
        if self.ties:
            values = torch.tensor([-1.0, -0.0, 0.0, 1.0, 1.0, -math.inf])
            made = [values[torch.randint(6, shape, generator=g)] for shape in self.shapes]
        if self.channels_last and made[0].dim() == 4:
            made[0] = made[0].contiguous(memory_format=torch.channels_last)
        return made


def value_and_gradients(f: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """f, and the gradients of a weighted sum of it."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = f(*leaves)
    weights = (torch.arange(y.numel()) % 7 + 1) / 4
    y.backward(weights.view(y.shape).to(y.dtype))
    return [y.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]


def audited(case: Case, policy: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The case under the engine.

    Raises:
        UnsupportedOperation: it is refused.
    """
    inputs = [x.to(dtype) for x in case.inputs()]
    with Session(Plain(), POLICIES[policy], 0).step(1):
        return value_and_gradients(case.f, inputs)


def _numbers(r: random.Random, dims: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(r.randint(low, high) for _ in range(dims))


def convolution(r: random.Random, name: str) -> Case:
    """1-D and 2-D, plain and transposed; some are no convolutions at all, which PyTorch refuses too."""
    dims, transposed, groups = r.randint(1, 2), r.random() < 0.5, r.choice([1, 1, 2, 3])
    c, o = groups * r.randint(1, 2), groups * r.randint(1, 3)
    stride, dilation = _numbers(r, dims, 1, 4), _numbers(r, dims, 1, 4)
    kernel, padding = _numbers(r, dims, 1, 4), _numbers(r, dims, 0, r.choice([0, 1, 6]))
    words: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        words["output_padding"] = tuple(r.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    elif r.random() < 0.15:
        words.update(stride=1, padding="same")
    batch = r.choice([(), (0,), (1,), (2,), (3,)])
    weight = (c, o // groups, *kernel) if transposed else (o, c // groups, *kernel)
    op = getattr(F, f"conv{'_transpose' * transposed}{dims}d")
    shapes = ((*batch, c, *_numbers(r, dims, 1, 9)), weight, *([(o,)] if r.random() < 0.5 else []))
    f = lambda x, w, b=None: op(x, w, b, **words)  # noqa: E731
    return Case(f"{name} conv transposed={transposed} {shapes} {words}", f, shapes, channels_last=r.random() < 0.3)


def _places(n: int, out: int, scale: float | None, half: float) -> list[int]:
    """Nearest places, an operation of float32 after the other."""
    ratio = np.float32(1.0 / scale) if scale else np.float32(n) / np.float32(max(1, out))
    return [min(int(np.float32(i + half) * ratio), n - 1) for i in range(out)]


def _gathered(x: Tensor, sizes: list[int], scales: list[float | None], half: float) -> Tensor:
    for d, (out, scale) in enumerate(zip(sizes, scales, strict=True), 2):
        x = x.index_select(d, torch.tensor(_places(x.shape[d], out, scale, half)))
    return x


def interpolation(r: random.Random, name: str) -> Case:
    """All modes, to a size or by a factor."""
    mode = r.choice(["nearest", "nearest-exact", "linear", "linear", "bicubic", "area"])
    dims = 2 if mode == "bicubic" else r.randint(1, 3)
    shape = (r.choice([0, 1, 2]), r.randint(1, 3), *_numbers(r, dims, 1, 8))
    words: dict[str, Any] = {"mode": {2: "bilinear", 3: "trilinear"}.get(dims, mode) if mode == "linear" else mode}
    if mode in ("linear", "bicubic") and r.random() < 0.5:
        words["align_corners"] = True
    if mode == "area" or r.random() < 0.5:
        sizes: list[int] = [r.choice([1, n, 2 * n, r.randint(1, 20)]) for n in shape[2:]]
        scales: list[float | None] = [None] * dims
        words["size"] = tuple(sizes)
    else:
        factors = [r.choice([0.4, 1 / 3, 0.7, 1.0, 1.05, 1.3, 1.9, 2.0, 2.1, 2.5, 3.0, 5.0]) for _ in range(dims)]
        sizes, scales = [int(n * s) for n, s in zip(shape[2:], factors, strict=True)], [*factors]
        words["scale_factor"] = tuple(factors)
        if r.random() < 0.2:
            words["recompute_scale_factor"] = True
            scales = [None] * dims
    f = lambda x: F.interpolate(x, **words)  # noqa: E731
    reference = None
    if mode.startswith("nearest"):
        half = 0.5 if mode == "nearest-exact" else 0.0
        reference = lambda x: _gathered(x, sizes, scales, half)  # noqa: E731
    return Case(f"{name} {shape} {words}", f, (shape,), reference, channels_last=r.random() < 0.3)


def pooling(r: random.Random, name: str) -> Case:
    """Averages, largest elements, p-norms, by windows and adaptive."""
    kind, dims = r.choice(["avg", "avg", "max", "adaptive_avg", "adaptive_max", "lp"]), r.randint(1, 3)
    shape = (*r.choice([(), (0,), (2,)]), r.randint(1, 3), *_numbers(r, dims, 1, 8))
    ties = kind.endswith("max") and r.random() < 0.5
    if kind.startswith("adaptive"):
        resize, size = getattr(F, f"{kind}_pool{dims}d"), _numbers(r, dims, 1, 9)
        return Case(f"{name} {kind} {shape} {size}", lambda x: resize(x, size), (shape,), ties=ties)
    op: Any = getattr(F, f"{kind}_pool{dims}d")
    kernel: Any = _numbers(r, dims, 1, 4)
    words: dict[str, Any] = {"stride": _numbers(r, dims, 1, 5), "ceil_mode": r.random() < 0.5}
    if kind == "lp":
        kernel = kernel[0] if dims == 1 else kernel
    else:
        words["padding"] = tuple(r.randint(0, k // 2) for k in kernel)
    if kind == "max":
        words["dilation"] = _numbers(r, dims, 1, 3)
    if kind == "avg":
        words["count_include_pad"] = r.random() < 0.5
        if dims > 1 and r.random() < 0.3:
            words["divisor_override"] = r.choice([1, 3, 7])
    f = (lambda x: op(x.abs() + 0.5, 3.0, kernel, **words)) if kind == "lp" else (lambda x: op(x, kernel, **words))
    return Case(f"{name} {kind}{dims} {shape} {kernel} {words}", f, (shape,), None, r.random() < 0.3, ties)


def padding(r: random.Random, name: str) -> Case:
    """Around and into a tensor."""
    mode, dims = r.choice(["reflect", "replicate", "circular", "constant"]), r.randint(1, 3)
    shape = (*((2,) if mode == "circular" else r.choice([(), (0,), (2,)])), *_numbers(r, dims + 1, 1, 6))
    # PyTorch's circular padding by a negative number copies elements that it has not written
    pads = tuple(r.randint(-1 if r.random() < 0.3 and mode != "circular" else 0, 5) for _ in range(2 * dims))
    return Case(f"{name} {mode} {shape} {pads}", lambda x: F.pad(x, pads, mode=mode) * 1.5, (shape,))


def folding(r: random.Random, name: str) -> Case:
    """Patches, and what becomes of them."""
    size, kernel = _numbers(r, 2, 1, 7), _numbers(r, 2, 1, 3)
    words = {"stride": _numbers(r, 2, 1, 3), "dilation": _numbers(r, 2, 1, 3), "padding": _numbers(r, 2, 0, 3)}
    shape = (*r.choice([(), (2,)]), 2, *size)
    f = lambda x: F.unfold(x, kernel, **words) * 0.75  # noqa: E731
    if r.random() < 0.6:
        f = lambda x: F.fold(F.unfold(x, kernel, **words).pow(2), size, kernel, **words)  # noqa: E731
    return Case(f"{name} {shape} {kernel} {words}", f, (shape,))


def moving(r: random.Random, name: str) -> Case:
    """Windows along a dimension, shuffles, rolls and flips."""
    size, step = r.randint(1, 4), r.randint(1, 5)
    dim, shift = r.randint(-3, 2), r.randint(-9, 9)
    factor, shape = r.randint(1, 3), (2, *_numbers(r, 2, 4, 7))
    kinds: list[tuple[str, Callable[[Tensor], Tensor], tuple[int, ...]]] = [
        (f"windows {dim} {size} {step}", lambda x: x.unfold(dim, size, step) * 0.75, (4, 5, 6)),
        (f"shuffle {factor}", lambda x: F.pixel_shuffle(x, factor) * 0.75, (2, factor**2, 3, 2)),
        (f"unshuffle {factor}", lambda x: F.pixel_unshuffle(x, factor) * 0.75, (2, 2, 3 * factor, 2 * factor)),
        (f"roll {shift} {dim}", lambda x: x.roll(shift, dim) * 0.75, shape),
        (f"flip {dim}", lambda x: x.flip(dim) * 0.75, shape),
        ("channels", lambda x: F.channel_shuffle(x, 3) * 0.75, (2, 6, 3, 2)),
    ]
    kind, f, shape = r.choice(kinds)
    return Case(f"{name} {kind} {shape}", f, (shape,))


FAMILIES = (convolution, convolution, interpolation, pooling, padding, folding, moving)


def cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` cases; each is a function of the seed and its number."""
    for number in range(count):
        r = random.Random(f"{seed}/{number}")
        yield FAMILIES[number % len(FAMILIES)](r, f"{number}")


def digest(tensors: list[Tensor]) -> str:
    """SHA-256 of shapes and bits."""
    h = hashlib.sha256()
    for t in tensors:
        raw = t.detach().reshape(-1)
        h.update(str((raw.dtype, tuple(t.shape))).encode() + raw.view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def result(case: Case, policy: str, dtype: torch.dtype = torch.float32) -> str:
    """The digest, or that there is none, for whatever reason."""
    try:
        return digest(audited(case, policy, dtype))
    except UnsupportedOperation:
        return "refused"
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


if __name__ == "__main__":
    policy, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({case.name: result(case, policy) for case in cases(seed, count)}))
