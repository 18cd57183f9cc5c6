"""Every kernel: the same bits on every instruction set, with any number of threads, all of its result written."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from naive import Geometry, half_way, numbers, strange

from vtrain import kernels
from vtrain.kernels import canonical, launch
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, target_in_float32
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
VARIANTS = ["generic", "avx2", "avx512"]
THREADS = (1, 2, 5)
Found = dict[str, str]


class Results:
    """Digests of the results of calls, by what was called."""

    def __init__(self) -> None:
        self.found: Found = {}

    def add(self, name: str, *results: Tensor | None) -> None:
        digest = hashlib.sha256()
        for t in results:
            if t is not None:
                t = torch.where(t.isnan(), torch.full_like(t, math.nan), t) if t.is_floating_point() else t
                digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
        assert name not in self.found
        self.found[name] = digest.hexdigest()


def products(r: Results, make: Callable[..., Tensor]) -> None:
    for wide in (False, True):
        for batch, m, k, n in ((1, 1, 1, 1), (2, 13, 257, 70), (1, 250, 33, 1100), (7, 5, 600, 3), (1, 61, 0, 31)):
            a, b = make(batch, m, k, seed=1), make(batch, k, n, seed=2)
            r.add(f"product {wide} {m} {n} {k}", canonical.product(a, b, None, 1.0, 1.0, wide))
        a, b, bias = make(3, 40, 37, seed=3).mT, make(3, 30, 80, seed=4)[:, :, ::2].mT[:, :40], make(37, 1, seed=5)
        r.add(f"product {wide} strides", canonical.product(a, b, bias, -0.3, 1.7, wide))
        r.add(f"product {wide} half way", canonical.product(*half_way(500), wide=wide))
        one = make(1, 1, 40, seed=6).expand(3, 50, 40)
        r.add(f"product {wide} expanded", canonical.product(one, b, make(30, seed=7), wide=wide))


GEOMETRIES = {
    "plain": ((2, 3, 19, 23), (13, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "odd": ((3, 8, 14, 11), (12, 4, 3, 2), (2, 3), (2, 0), (2, 1), 2),
    "point": ((2, 40, 7, 9), (35, 40, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "depthwise": ((1, 33, 9, 9), (33, 1, 5, 5), (1, 1), (2, 2), (1, 1), 33),
}


def convolutions(r: Results, make: Callable[..., Tensor]) -> None:
    for name, (xs, ws, *rest, groups) in GEOMETRIES.items():
        g = Geometry.of(xs, ws, *rest, groups)  # type: ignore[arg-type]
        x, weight, grad, bias = (
            make(*xs, seed=1),
            make(*ws, seed=2),
            make(g.n, g.o, g.oh, g.ow, seed=3),
            make(g.o, seed=4),
        )
        for wide in (False, True):
            y, dx, dw = torch.empty(grad.shape), torch.empty(x.shape), torch.empty(weight.shape)
            r.add(f"convolution {name} {wide}", canonical.convolution("convolution", x, weight, y, bias, g, wide))
            r.add(f"input {name} {wide}", canonical.convolution("input_gradient", dx, weight, grad, None, g, wide))
            r.add(f"weight {name} {wide}", canonical.convolution("weight_gradient", x, dw, grad, None, g, wide))


def sums(r: Results, make: Callable[..., Tensor]) -> None:
    shapes = {"long": (3, 40001), "tall": (20001, 37), "three": (9, 40, 33), "images": (5, 37, 49), "small": (5, 70, 4)}
    for name, shape in shapes.items():
        x, b = make(*shape, seed=1), make(*shape, seed=2)
        for dims in ([0], [1], [0, 1], [0, 2], [0, 1, 2]):
            if dims[-1] >= len(shape):
                continue
            mean = make(*(shape[d] for d in range(len(shape)) if d not in dims), seed=3)
            terms = math.prod(shape[d] for d in dims)
            others = {"value": (), "square": (), "centred_square": (mean,), "product": (b,),
                      "centred_product": (b, mean),
                      "normalised": (b, make(terms, seed=4), make(terms, seed=5))}  # fmt: skip
            for kind, rest in others.items():
                r.add(f"sum {name} {dims} {kind}", canonical.sum_terms(kind, dims, x, *rest))
            r.add(f"sum {name} {dims} wide", canonical.sum_terms("value", dims, x.double() / 3))
            r.add(f"sum {name} {dims} other way", canonical.sum_terms("value", dims, x.transpose(0, 1)))
    for dim in range(3):
        r.add(f"running {dim}", canonical.running_sum(make(9, 1001, 33, seed=6), dim))


def rows(r: Results, make: Callable[..., Tensor]) -> None:
    for n in (1, 33, 1000):
        x, grad, weight, bias = make(77, n, seed=1), make(77, n, seed=2), make(n, seed=3), make(n, seed=4)
        for name in ("softmax", "log_softmax"):
            y = canonical.softmax(name, 1, x)
            r.add(f"{name} {n}", y)
            r.add(f"{name} backward {n}", canonical.softmax(name, 1, y=y, grad=grad))
        y, mean, rstd = canonical.layer_norm(x, n, weight, bias, 1e-5)
        r.add(f"layer norm {n}", y, mean, rstd)
        r.add(f"layer norm backward {n}", canonical.layer_norm_backward(x, n, grad, mean, rstd, weight))
        y, rstd = canonical.rms_norm(x, n, weight, 1e-5)
        r.add(f"rms norm {n}", y, rstd)
        r.add(f"rms norm backward {n}", canonical.rms_norm_backward(x, n, grad, rstd, weight))
    for area in (1, 9, 64, 2500):
        x, grad = make(9, 37, area, seed=5), make(9, 37, area, seed=6)
        by = [make(37, seed=s) for s in range(7, 11)]
        r.add(f"channel norm {area}", canonical.channel_norm(x, *by[:3]))
        r.add(f"channel norm backward {area}", canonical.channel_norm_backward(x, grad, *by))


def sequences(r: Results, make: Callable[..., Tensor]) -> None:
    q, k, v, grad = (make(2, 4, 77, n, seed=i) for i, n in enumerate((12, 12, 33, 33)))
    k, v, bias, mask = k[:, :2], v[:, :2], make(77, 77, seed=4), make(4, 77, 77, seed=5) > 0
    sights = {
        "whole": canonical.Sight(), "causal": canonical.Sight(causal=True, q_scale=0.5, k_scale=-0.7),
        "window": canonical.Sight(causal=True, window=9, dropout=canonical.Dropout(2**63 + 5, 1, 2**40, 2**31, 2.0)),
        "block": canonical.Sight(causal=True, block=16, offset=21, start=30),
    }  # fmt: skip
    overs: dict[str, dict[str, Tensor]] = {
        "plain": {},
        "padding": {"padding": torch.tensor([40, 3])},
        "bias": {"bias": bias},
        "mask": {"mask": mask},
    }
    for (how, sight), (name, over) in itertools.product(sights.items(), overs.items()):
        out, top, total = canonical.attention(q, k, v, sight, **over)
        r.add(f"attention {how} {name}", out, top, total)
        for parts in ((0,), (1, 2)):
            back = canonical.attention_backward(grad, q, k, v, top, total, sight, **over, parts=parts)
            r.add(f"attention {how} {name} backward {parts}", *back)
    read, key, decay = (make(2, 4, 77, 21, seed=i) for i in range(6, 9))
    for kind, span in (("lag", 0), ("lag", 5), ("blocks", 16), ("all", 0)):
        reach = canonical.Reach(kind, span)  # type: ignore[arg-type]
        for name, a in (("none", None), ("rows", decay * 0.1)):
            state = grad[:, :, :21]
            y, last = canonical.scan(read, key, grad, a, state, reach)
            back, start = canonical.scan(key, read, grad, a, None, reach, backwards=True)
            turned, _ = canonical.scan(grad, grad, key, a, state.mT, reach, across=True)
            r.add(f"scan {kind} {span} {name}", y, last, back, start, turned)
            r.add(
                f"scan decay {kind} {span} {name}", canonical.scan_decay(read, turned, key, turned, last, start, reach)
            )
    u, w = make(3, 5, 130, seed=11), make(5, 130, seed=12)
    for taps, shift in ((4, 3), (130, 129), (3, -1)):
        some = w[:, :taps]
        y, du = canonical.depthwise(u, some, 130, shift), canonical.depthwise_input(u, some, 130, shift)
        r.add(f"depthwise {taps}", y, du, canonical.depthwise_weight(u, u, taps, shift))


def maps(r: Results, make: Callable[..., Tensor]) -> None:
    x, grad = make(30001, seed=1), make(30001, seed=2)
    for name in sorted(canonical.FUNCTIONS):
        for of in (x, x.double() * (1 + 2.0**-40)):
            for to in (torch.float32, torch.float64):
                r.add(f"{name} {of.dtype} {to}", canonical.function(name, of, to))
    for exponent in (0.75, -1.5, 3.0, 0.0):
        r.add(f"pow {exponent}", canonical.function("pow", x.abs(), torch.float64, exponent))
        r.add(f"power {exponent}", canonical.power(x.abs().double(), torch.full_like(x, exponent).double()))
    for name in ("gelu_erf", "gelu_tanh", "silu", "softplus"):
        r.add(name, canonical.activation(name, x, None, 0.7, 5.0))
        r.add(f"{name} backward", canonical.activation(name, x, grad, 0.7, 5.0))


def the_rest(r: Results, make: Callable[..., Tensor]) -> None:
    values, index = make(5000, 70, seed=1), torch.arange(5000) * 7919 % 97
    r.add("scatter", canonical.scatter(values, index, 100))
    r.add("scatter onto", canonical.scatter(values, index, 100, make(100, 70, seed=2), -0.1))
    for name, numbers_ in (
        ("sgd", (True, False, False, True, 0.1, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.3)),
        ("adam", (False, True, False, False, 0.1, 0.01, 0.4, 0.99, 1e-8, 0.3, 0.7, 0.0, 0.0)),
    ):
        p, grad, *state = (make(30001, seed=s) for s in range(3, 8))
        state = [state[0], state[1].abs(), state[2].abs()] if name == "adam" else [state[0], None, None]
        canonical.optimizer_step(name, p, grad, tuple(state), *numbers_)  # type: ignore[arg-type]
        r.add(name, p, *state)
    y = make(30001, seed=9).double() * (1 + 2.0**-30)
    for fmt in (FLOAT32, BFLOAT16, FLOAT16, target_in_float32("float32", 13)):
        scale = Scale("test", 1, 1.0, (1, 1, 30001), relative=True)
        for t in (y, y.float()):
            r.add(f"round {fmt.name} {t.dtype}", canonical.round_to(t, fmt), canonical.round_to(t, fmt, False))
            r.add(f"doubt {fmt.name} {t.dtype}", *canonical.in_doubt(t, scale, 2.0 ** -(fmt.p + 3), 1e-40, fmt))


def digests() -> Found:
    """Of every kernel's results on ordinary numbers and on hard ones."""
    found: Found = {}
    for make in (numbers, strange):
        results = Results()
        for part in (products, convolutions, sums, rows, sequences, maps, the_rest):
            part(results, make)
        found.update({f"{make.__name__}: {name}": digest for name, digest in results.found.items()})
    return found


@contextlib.contextmanager
def poisoned(value: float) -> Iterator[None]:
    """Memory that torch hands out is full of ``value``."""
    empty, empty_like = torch.empty, torch.empty_like

    def filled(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*args: Any, **kwargs: Any) -> Tensor:
            t = f(*args, **kwargs)
            return t.fill_(value if t.is_floating_point() else 123)

        return make

    torch.empty, torch.empty_like = filled(empty), filled(empty_like)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like  # type: ignore[assignment]


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differing(a: Found, b: Found) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if a[name] != b[name]]


@pytest.fixture(scope="module")
def here() -> Found:
    """The digests of this process, one thread, results in memory full of NaN."""
    with threads(1), poisoned(math.nan):
        return digests()


def test_every_kernel_is_called(here: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    called, run = set(), launch.launch

    def counted(name: str, *arguments: Any) -> None:
        called.add(name)
        run(name, *arguments)

    monkeypatch.setattr(launch, "launch", counted)
    assert digests() == here
    assert called == set(launch.SIGNATURES)


@pytest.mark.parametrize("number", THREADS[1:])
def test_the_number_of_threads_changes_nothing(number: int, here: Found) -> None:
    with threads(number), poisoned(math.nan):
        assert differing(digests(), here) == []


def test_no_element_is_left_as_it_was(here: Found) -> None:
    """Results in memory full of another number are the same: all of them are written."""
    with threads(2), poisoned(7.0):
        assert differing(digests(), here) == []


def test_an_element_left_as_it_was_would_be_seen(here: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a kernel that does not run."""
    run = launch.launch
    monkeypatch.setattr(launch, "launch", lambda name, *rest: None if name == "rms_norm" else run(name, *rest))
    with poisoned(7.0):
        seven = digests()
    with poisoned(math.nan):
        nan = digests()
    names = {name.split(": ")[1] for name in differing(seven, nan)}
    assert {f"rms norm {n}" for n in (1, 33, 1000)} <= names
    assert all("rms norm" in name for name in names)


def in_process(variant: str) -> Found:
    """The digests with one instruction set, more threads than here; skips if the processor lacks it."""
    code = """
import json
import test_host_variants as t
with t.threads(2), t.poisoned(t.math.nan):
    print(json.dumps([t.kernels.variant(), t.digests()]))
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "VTRAIN_CPU": variant, "PYTHONPATH": path},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    if "which this processor lacks" in done.stderr:
        pytest.skip(f"this processor lacks {variant}")
    assert done.returncode == 0, done.stderr[-3000:]
    used, found = json.loads(done.stdout)
    assert used == variant
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_instruction_sets_give_the_same_bits(variant: str, here: Found) -> None:
    if variant == kernels.variant():
        pytest.skip("the one that this process uses and the others are compared with")
    assert differing(in_process(variant), here) == []
