"""Operations on indices: every geometry that PyTorch takes is computed or refused, in the same bits on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from geometries import POLICIES, Case, audited, cases, digest, value_and_gradients

from vtrain.engine.listener import Plain
from vtrain.engine.ops import axes
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy
from vtrain.profiles import PROFILES, profile_environment

Tensor = torch.Tensor
SEED, FEW, MANY = 5, 280, 7000
OTHERS = (
    *(profile_environment(name) for name in PROFILES),
    profile_environment("baseline") | {"VTRAIN_CPU": "generic", "OMP_NUM_THREADS": "1"},
)


def wanted(case: Case) -> list[Tensor] | None:
    """Plain torch's results in float64; None where it refuses."""
    try:
        return value_and_gradients(case.reference or case.f, [x.double() for x in case.inputs()])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return None


def compare(case: Case, policy: str) -> bool:
    """Whether both compute it, in which case they agree; what torch refuses is refused, else only empty results are."""
    right = wanted(case)
    try:
        found = audited(case, policy)
    except (UnsupportedOperation, RuntimeError, ValueError, IndexError, AssertionError) as error:
        empty = isinstance(error, UnsupportedOperation) and right is not None and not right[0].numel()
        assert right is None or empty, f"{case.name}: {error}"
        return False
    assert right is not None, f"{case.name}: torch refuses it"
    for a, b in zip(found, right, strict=True):
        assert a.dtype is torch.float32
        torch.testing.assert_close(
            a.double(), b, rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda m: f"{case.name}\n{m}"
        )
    return True


def check_functions(seed: int, count: int, policies: list[str]) -> None:
    computed = 0
    for number, case in enumerate(cases(seed, count)):
        computed += compare(case, policies[number // 7 % len(policies)])
    assert computed > count // 2


def test_every_geometry_is_the_function_it_names() -> None:
    check_functions(SEED, FEW, list(POLICIES))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
def test_many_geometries_are_the_functions_they_name(policy: str) -> None:
    check_functions(SEED + 1, MANY, [policy])


def digests(policy: str, count: int, env: dict[str, str]) -> dict[str, str]:
    command = [sys.executable, str(Path(__file__).with_name("geometries.py")), policy, str(SEED), str(count)]
    return json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def check_bits(policy: str, count: int) -> None:
    first, *others = (digests(policy, count, env) for env in OTHERS)
    assert sum(len(d) == 64 for d in first.values()) > count // 2
    for other in others:
        assert {name: (d, first[name]) for name, d in other.items() if d != first[name]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["chain", "integer"])
def test_every_machine_has_the_same_bits(policy: str) -> None:
    check_bits(policy, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", ["chain", "chain64", "integer"])
def test_every_machine_has_the_same_bits_of_many(policy: str) -> None:
    check_bits(policy, MANY)


# ---- what the operator database has ---------------------------------------------------------------------------------
DATABASE = """
    nn.functional.conv1d nn.functional.conv2d nn.functional.conv_transpose1d nn.functional.conv_transpose2d
    nn.functional.avg_pool1d nn.functional.avg_pool2d nn.functional.avg_pool3d nn.functional.max_pool1d
    nn.functional.max_pool2d nn.functional.max_pool3d nn.functional.adaptive_avg_pool1d
    nn.functional.adaptive_avg_pool2d nn.functional.adaptive_avg_pool3d nn.functional.adaptive_max_pool1d
    nn.functional.adaptive_max_pool2d nn.functional.adaptive_max_pool3d nn.functional.interpolate
    nn.functional.pad nn.functional.unfold nn.functional.fold nn.functional.pixel_shuffle
    nn.functional.pixel_unshuffle nn.functional.upsample_bilinear unfold roll flip
""".split()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("policy", ["logged", "chain", "integer"])
def test_the_database_of_operators(policy: str) -> None:
    pytest.importorskip("expecttest")  # torch's own tests need it
    from torch.testing._internal.common_methods_invocations import op_db

    seen, refused = 0, set()
    for info in (i for i in op_db if i.name in DATABASE):
        for number, sample in enumerate(info.sample_inputs("cpu", torch.float32)):
            tensors = [sample.input, *(a for a in sample.args if isinstance(a, Tensor) and a.is_floating_point())]

            def f(*given: Tensor, sample=sample, op=info.op) -> Tensor:  # type: ignore[no-untyped-def]
                left = iter(given[1:])
                rest = [next(left) if isinstance(a, Tensor) and a.is_floating_point() else a for a in sample.args]
                y = op(given[0], *rest, **sample.kwargs)
                return y[0] if isinstance(y, tuple) else y

            name = f"{info.name} {info.variant_test_name} {number} {sample}"
            right = value_and_gradients(f, [t.double() for t in tensors])
            try:
                with Session(Plain(), POLICIES[policy], 0).step(1):
                    found = value_and_gradients(f, tensors)
            except UnsupportedOperation as error:
                refused.add(f"{name}: {str(error).splitlines()[0]}")
                continue
            for a, b in zip(found, right, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}\n{m}")
            seen += 1
    assert refused == set()
    assert seen > 300


# ---- definitions ----------------------------------------------------------------------------------------------------
def test_nearest_reads_what_torch_reads() -> None:
    """Sizes; and factors, in one dimension, where torch has one definition."""
    for exact, mode in ((False, "nearest"), (True, "nearest-exact")):
        for n in (*range(1, 40), 97, 224):
            x = torch.arange(n, dtype=torch.float32)
            for out in (*range(1, 60), 448):
                index = axes.nearest(n, out, None, exact).index[:, 0]
                picture = x.view(1, 1, 1, n).expand(1, 1, 2, n).contiguous()
                read = F.interpolate(picture, size=(2, out), mode=mode)
                assert read[0, 0, 0].tolist() == index.tolist(), (mode, n, out)
            for scale in () if exact else (1.05, 1.3, 0.7, 2.0, 2.5, 1 / 3, 1.9, 2.0001):
                if int(n * scale):
                    read = F.interpolate(x.view(1, 1, n), scale_factor=scale, mode=mode)[0, 0]
                    assert read.tolist() == axes.nearest(n, len(read), scale, exact).index[:, 0].tolist(), (n, scale)


def test_weights_are_rounded_rationals() -> None:
    """A place that is whole has weights 1 and 0, and others add up to 1 but for the last bit."""
    axis = axes.linear(4, 20, False, 5.0)
    assert axis.weight is not None
    assert axis.weight[2].tolist() == [1.0, 0.0] and axis.weight[17].tolist() == [1.0, 0.0]
    assert axis.weight[7].tolist() == [1.0, 0.0] and axis.index[7].tolist() == [1, 2]
    assert axis.weight[8].tolist() == [0.8, 0.2]


def test_gradients_of_nearest_go_where_the_values_came_from() -> None:
    for n, out, scale in ((5, 13, 2.6), (7, 7, 1.05), (33, 66, 2.0001), (10, 7, 0.7)):
        x = torch.arange(float(n)).requires_grad_()
        with Session(Plain(), Policy(), 0).step(1):
            y = F.interpolate(x.view(1, 1, n), scale_factor=scale, mode="nearest")
            y.sum().backward()
        assert y.numel() == out and x.grad is not None
        assert x.grad.tolist() == torch.bincount(y.flatten().long(), minlength=n).tolist()


def test_of_equal_maxima_the_first_one_wins() -> None:
    """Of signed zeros too; of NaNs the last, as PyTorch has it. In both layouts and for each number of channels."""
    for channels in (1, 3, 8, 64):
        for layout in (torch.contiguous_format, torch.channels_last):
            g = torch.Generator().manual_seed(channels)
            values = torch.tensor([-1.0, -0.0, 0.0, 1.0, -float("inf"), float("nan")])
            x = values[torch.randint(6, (2, channels, 9, 11), generator=g)].contiguous(memory_format=layout)
            with Session(Plain(), Policy(), 0).step(1):
                y, index = F.max_pool2d(x, 3, 2, 1, return_indices=True)
            flat = x.flatten(2)
            for b, c, i, j in torch.cartesian_prod(*(torch.arange(n) for n in y.shape)).tolist():
                rows = range(max(0, 2 * i - 1), min(9, 2 * i + 2))
                window = [r * 11 + k for r in rows for k in range(max(0, 2 * j - 1), min(11, 2 * j + 2))]
                best = window[0]
                for at in window:
                    if flat[b, c, at] > flat[b, c, best] or flat[b, c, at].isnan():
                        best = at
                assert int(index[b, c, i, j]) == best
                assert digest([y[b, c, i, j]]) == digest([flat[b, c, best]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_tensors_are_rounded_once(dtype: torch.dtype) -> None:
    """Pictures of 16 bits, whose exact results torch's float64 has, are that rounded."""
    for f in (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, size=(3, 9), mode="bicubic"),
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
        lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect"),
    ):
        x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
        right = value_and_gradients(f, [x.double()])
        with Session(Plain(), Policy(), 0).step(1):
            found = value_and_gradients(f, [x])
        assert found[0].dtype is dtype
        assert torch.equal(found[0], right[0].to(torch.float32).to(dtype))
        torch.testing.assert_close(found[1].double(), right[1], rtol=2e-2, atol=2e-2)


REFUSED = {
    "antialias": lambda x: F.interpolate(x, size=3, mode="bilinear", antialias=True),
    "grid": lambda x: F.grid_sample(x, torch.zeros(2, 3, 3, 2), align_corners=False),
    "fractional": lambda x: F.fractional_max_pool2d(x, 2, output_size=3),
    "three dimensions": lambda x: F.conv3d(x[None], torch.ones(1, 2, 1, 1, 1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperation), Session(Plain(), Policy(), 0).step(1):
        REFUSED[name](torch.randn(2, 3, 5, 6))


def test_inference_mode_has_the_bits_of_training() -> None:
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(3))
    for mode in ("nearest", "bilinear", "bicubic", "area"):
        with Session(Plain(), Policy(), 0).step(1):
            y = F.interpolate(x, scale_factor=1.7, mode=mode)
            with torch.inference_mode():
                again = F.interpolate(x, scale_factor=1.7, mode=mode)
        assert digest([y]) == digest([again]), mode
