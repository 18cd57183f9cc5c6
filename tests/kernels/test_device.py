"""The device target without a device: it compiles for every architecture, breaks no rule, and its PTX, executed by the
interpreter, gives the bits of the host target."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import Machine
from ptx import parse
from rules import fused_operations, violations

from vtrain.errors import BackendError
from vtrain.kernels import canonical, launch, nvrtc
from vtrain.kernels.launch import _PACKERS, SIGNATURES
from vtrain.rounding import generic
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32
from vtrain.rounding.scale import Scale

try:
    nvrtc.version()
except BackendError as missing:
    pytest.skip(str(missing), allow_module_level=True)

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
WITHOUT_FMA = {
    "sum", "softmax_backward", "channel_norm", "channel_norm_backward", "scatter", "running_sum", "sgd", "adam",
    "round", "doubt_count", "doubt_write", "sqrt", "layer_norm_backward", "rms_norm_backward",
}  # fmt: skip
Tensor = torch.Tensor


@functools.cache
def module(arch: str) -> Any:
    # the virtual architecture: the same PTX, without the time for machine code
    return parse(nvrtc.compile(arch.replace("sm_", "compute_"), "ptx").decode())


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=() if a in ("sm_80", "sm_120") else pytest.mark.slow) for a in ARCHITECTURES]
)
def test_all_kernels_compile_and_keep_the_rules(arch: str) -> None:
    found = module(arch)
    assert violations(found) == []
    fused = fused_operations(found)
    assert set(fused) == {f"vt_{name}" for name in SIGNATURES}
    assert {name for name in WITHOUT_FMA if fused[f"vt_{name}"]} == set()
    assert fused["vt_product"] > 0


def test_contraction_would_be_seen() -> None:
    """With NVRTC's own defaults the same sources break the rule."""
    text = '#include "families/channels.hpp"\nextern "C" __global__ void vt_k(vtrain::in_device::ChannelArgs a) {' \
           "vtrain::in_device::kernel_channel_norm(vtrain::in_device::Grid(), a); }"  # fmt: skip
    flags = tuple(f for f in nvrtc.FLAGS if "fmad" not in f)
    assert fused_operations(parse(nvrtc.compile_source(text, "sm_80", "ptx").decode()))["vt_k"] == 0
    assert fused_operations(parse(nvrtc.compile_source(text, "sm_80", "ptx", flags=flags).decode()))["vt_k"] > 0


class Device:
    """Launches kernels in the interpreter on copies of the tensors' memory, and copies it back."""

    def __init__(self, arch: str, blocks: int, warps: tuple[int, ...] | None, backwards: bool) -> None:
        self._machine = Machine(module(arch))
        self._blocks, self._warps, self._backwards = blocks, warps, backwards
        self.called: set[str] = set()

    def launch(self, name: str, *arguments: Any) -> None:
        self.called.add(name)
        held: dict[int, tuple[Any, int]] = {}
        values = []
        for a in arguments:
            if not isinstance(a, Tensor):
                values.append(0 if a is None else a)
                continue
            storage = a.untyped_storage()
            start, size = storage.data_ptr(), storage.nbytes()
            if start not in held:
                memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start)).copy()
                held[start] = (self._machine.array(memory), size)
            values.append(held[start][0].address + a.data_ptr() - start)
        order = list(reversed(range(self._blocks))) if self._backwards else None
        self._machine.launch(
            f"vt_{name}", grid=(self._blocks, 1, 1), block=(128, 1, 1), args=[_PACKERS[SIGNATURES[name]].pack(*values)],
            order=order, warps=self._warps,
        )  # fmt: skip
        for start, (array, size) in held.items():
            ctypes.memmove(start, array.get().tobytes(), size)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of 60 binades: their float64 sums round, so that the order of a sum shows."""
    exponents = torch.randint(-30, 30, shape, generator=torch.Generator().manual_seed(seed + 100))
    return torch.ldexp(numbers(*shape, seed=seed), exponents)


def hard(n: int) -> Tensor:
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-40, 88.0, -104.0, 1.0, 3e38]
    return torch.cat([torch.tensor(special), numbers(n) * 3])


def products() -> list[Tensor]:
    found = []
    for m, n, k, batch in ((1, 1, 1, 1), (5, 70, 3, 1), (67, 5, 33, 2), (3, 4, 0, 1)):
        a, b = numbers(batch, m, k), numbers(batch, n, k, seed=1).transpose(1, 2)
        for wide in (False, True):
            found += [canonical.product(a, b, wide=wide), canonical.product(a, b, numbers(n), -0.5, 2.0, wide)]
    return found


def convolutions() -> list[Tensor]:
    found = []
    for n, c, h, w, o, k, s, p, d, groups in ((1, 2, 5, 4, 3, 3, 1, 1, 1, 1), (2, 4, 6, 5, 2, 2, 2, 1, 2, 2)):
        oh, ow = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size in (h, w))
        key = (n, c, h, w, o, k, k, s, s, p, p, d, d, oh, ow, groups)
        shapes = {
            "input_gradient": (n, c, h, w),
            "weight_gradient": (o, c // groups, k, k),
            "convolution": (n, o, oh, ow),
        }
        for kind, shape in shapes.items():
            operands = [torch.zeros(shape) if name == kind else numbers(*s, seed=2) for name, s in shapes.items()]
            for wide in (False, True):
                found.append(canonical.convolution(kind, *[t.clone() for t in operands], None, key, wide))
    return found


def elementwise() -> list[Tensor]:
    x, grad = hard(30), numbers(41, seed=3)
    found = [canonical.function(name, x, to) for name in canonical.FUNCTIONS for to in (torch.float32, torch.float64)]
    found += [canonical.function("pow", x, torch.float32, e) for e in (2.5, -0.5, 3.0)]
    found.append(canonical.power(x.double(), grad.double(), torch.float64))
    for name in ("gelu_erf", "gelu_tanh", "silu", "softplus"):
        found += [canonical.activation(name, x, None, 1.0, 20.0), canonical.activation(name, x, grad, 1.0, 20.0)]
    return found


def sums() -> list[Tensor]:
    found = [canonical.running_sum(uneven(3, 35, 2), dim) for dim in (0, 1, 2)]
    for area in (1, 4, 9, 33, 64):
        x, b = uneven(5, 9, area), uneven(5, 9, area, seed=1)
        mean = uneven(9)
        for dims in ([0], [1], [2], [0, 2], [0, 1, 2]):
            found += [canonical.sum_terms(kind, dims, x) for kind in ("value", "square")]
            found.append(canonical.sum_terms("product", dims, x, b))
        found.append(canonical.sum_terms("centred_square", [0, 2], x, mean))
        found.append(canonical.sum_terms("centred_product", [0, 2], x, b, mean))
    x = uneven(70, 33)
    found.append(canonical.sum_terms("normalised", [0], x, uneven(70, 33, seed=1), uneven(70), uneven(70, seed=2)))
    found.append(canonical.sum_terms("value", [0], x.double()))
    found.append(canonical.scatter(uneven(20, 33), torch.arange(20) * 7 % 5, 6, uneven(6, 33), 0.3))
    return found


def rows() -> list[Tensor]:
    found = []
    for n in (1, 31, 33, 70):
        x, grad = numbers(5, n), numbers(5, n, seed=1)
        weight, bias = numbers(n, seed=2), numbers(n, seed=3)
        for name in ("softmax", "log_softmax"):
            y = canonical.softmax(name, 1, x=x)
            found += [y, canonical.softmax(name, 1, y=y, grad=grad)]
        out, mean, rstd = canonical.layer_norm(x, n, weight, bias, 1e-5)
        found += [out, mean, rstd, canonical.layer_norm_backward(x, n, grad, mean, rstd, weight)]
        out, rstd = canonical.rms_norm(x, n, weight, 1e-6)
        found += [out, rstd, canonical.rms_norm_backward(x, n, grad, rstd, weight)]
    for area in (3, 70):
        x, v = numbers(2, 5, area), [numbers(5, seed=i) for i in range(4)]
        found += [canonical.channel_norm(x, v[0], v[1], v[2]), canonical.channel_norm_backward(x, x * 2, *v)]
    return found


def attentions() -> list[Tensor]:
    found = []
    for queries, keys, d, width, given in (
        (5, 37, 3, 5, {"start": 50, "window": 9, "offset": 21}), (35, 35, 4, 2, {}), (3, 40, 2, 300, {"block": 8}),
    ):  # fmt: skip
        q, k, v = numbers(1, 2, queries, d), numbers(1, 1, keys, d, seed=1), numbers(1, 1, keys, width, seed=2)
        sight, grad = canonical.Sight(causal=True, k_scale=0.5, **given), numbers(1, 2, queries, width, seed=3)
        dropped = dataclasses.replace(sight, dropout=canonical.Dropout(2**63 + 5, 1, 2**40, 2**31, 2.0))
        for how, over in (
            (sight, {"bias": numbers(2, queries, keys), "padding": torch.tensor([2])}),
            (sight, {"mask": numbers(queries, keys) > 0}), (dropped, {}),
        ):  # fmt: skip
            out, top, total = canonical.attention(q, k, v, how, **over)
            back = canonical.attention_backward(grad, q, k, v, top, total, how, **over, parts=(1, 2))
            found += [out, top, total, *back]
    return found


def scans() -> list[Tensor]:
    found = []
    for kind, span in (("lag", 0), ("lag", 2), ("blocks", 4), ("all", 0)):
        reach = canonical.Reach(kind, span)  # type: ignore[arg-type]
        q, k, v, first = (
            numbers(1, 2, 13, 3),
            numbers(1, 2, 13, 3, seed=1),
            numbers(1, 2, 13, 35, seed=2),
            numbers(1, 2, 3, 35),
        )
        for decay in (None, torch.rand(1, 2, 13, 1), torch.rand(1, 2, 13, 3)):
            y, state = canonical.scan(q, k, v, decay, first, reach)
            dq, _ = canonical.scan(v, v, k, decay, first.mT, reach, across=True)
            dk, _ = canonical.scan(v, v, q, decay, None, reach, backwards=True, across=True)
            dv, start = canonical.scan(k, q, v, decay, first, reach, backwards=True)
            found += [y, state, dq, dk, dv, start, canonical.scan_decay(q, dq, k, dk, state, first, reach)]
    return found


def depthwise() -> list[Tensor]:
    found = []
    for n, taps, length, shift in ((20, 4, 20, 3), (40, 40, 35, 39), (9, 3, 12, -1)):
        u, w, grad = numbers(2, 3, n), numbers(3, taps, seed=1), numbers(2, 3, length, seed=2)
        found += [canonical.depthwise(u, w, length, shift), canonical.depthwise_input(grad, w, n, shift)]
        found.append(canonical.depthwise_weight(grad, u, taps, shift))
    return found


def steps() -> list[Tensor]:
    found = []
    for name in ("sgd", "adam"):
        for flags in ((0, 0, 0, 0), (1, 1, 0, 1), (0, 1, 1, 0)):
            state = [numbers(45, seed=i) for i in range(4)]
            state[2].abs_(), state[3].abs_()
            reals = (0.1, 0.01, 0.9, 0.99, 1e-8, 0.3, 0.7, 0.9, 0.1)
            canonical.optimizer_step(name, state[0], numbers(45, seed=9), tuple(state[1:]), *flags, *reals)
            found += state
    return found


def settled() -> list[Tensor]:
    y = torch.cat([hard(200).double(), torch.tensor([1 + 2.0**-24, 1 + 2.0**-9, 65519.9, 2.0**-25])])
    scale = Scale("test", 1, 1.0, (1, 1, y.numel()), relative=True)
    found = []
    for fmt in (FLOAT32, BFLOAT16, FLOAT16):
        found += [canonical.round_to(y, fmt), canonical.round_to(y.float(), fmt, signed=False)]
        found += canonical.in_doubt(y, scale, 2.0**-fmt.p * 0.7, 2.0**-140, fmt)
    vectors = Scale("test", 1, 1.0, (2, 3, 5), row=torch.rand(6).double(), col=torch.rand(10).double())
    torch.manual_seed(0)
    return [*found, *canonical.in_doubt(numbers(30), vectors, 2.0**-8, 0.0, BFLOAT16)]


GROUPS: dict[str, Callable[[], list[Tensor]]] = {
    "products": products, "convolutions": convolutions, "elementwise": elementwise, "sums": sums, "rows": rows,
    "steps": steps, "settled": settled, "attentions": attentions, "scans": scans,
    "depthwise": depthwise,
}  # fmt: skip


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    equal = a.view(kind) == b.view(kind)
    return a.shape == b.shape and a.dtype is b.dtype and bool((equal | (a != a) & (b != b)).all())


def elsewhere(where: str) -> Callable[..., None]:
    """``launch.launch`` on copies of the tensors' memory on a device, which is copied back."""
    run = launch.launch

    def there_and_back(name: str, *arguments: Any) -> None:
        held: dict[int, tuple[Tensor, Tensor]] = {}
        moved = []
        for a in arguments:
            if isinstance(a, Tensor):
                storage = a.untyped_storage()
                if storage.data_ptr() not in held:  # whole, as strides and overlaps are part of the arguments
                    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
                    held[storage.data_ptr()] = flat, flat.to(where)
                there = held[storage.data_ptr()][1].untyped_storage()
                a = torch.empty(0, dtype=a.dtype, device=where).set_(there, a.storage_offset(), a.shape, a.stride())
            moved.append(a)
        run(name, *moved)
        for flat, there in held.values():
            flat.copy_(there)

    return there_and_back


CALLED: set[str] = set()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
@pytest.mark.parametrize("group", list(GROUPS))
def test_the_device_has_the_bits_of_the_host(group: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    host = GROUPS[group]()
    # another grid, blocks from the last to the first, and the last warp ahead of the others
    device = Device(arch, *((3, (3, 2, 1, 0), True) if arch == "sm_80" else (1, None, False)))
    monkeypatch.setattr(launch, "launch", device.launch)
    torch.manual_seed(0)
    found = GROUPS[group]()
    assert len(found) == len(host) > 5
    assert [i for i, (a, b) in enumerate(zip(host, found, strict=True)) if not same_bits(a, b)] == []
    CALLED.update(device.called)


def test_all_kernels_were_executed() -> None:
    if CALLED:  # not when tests run one by one
        assert set(SIGNATURES) == CALLED


def test_the_order_of_these_sums_shows() -> None:
    x = uneven(200, 70).double()
    assert (x.sum(1) != x.flip(1).cumsum(1)[:, -1]).any()


def test_doubt_is_what_tensor_operations_find() -> None:
    y = hard(500).double()
    scale = Scale("test", 1, 1.0, (1, 1, y.numel()), relative=True)
    for fmt in (FLOAT32, BFLOAT16):
        mine = canonical.in_doubt(y, scale, 2.0**-fmt.p, 2.0**-140, fmt)
        theirs = generic.in_doubt(y, scale, 2.0**-fmt.p, 2.0**-140, fmt)
        finite = ~y[theirs[0]].isnan()  # a NaN is in doubt there by its bits, and never here
        assert len(mine[0]) > 5
        assert all(same_bits(a, b[finite]) for a, b in zip(mine, theirs, strict=True))
