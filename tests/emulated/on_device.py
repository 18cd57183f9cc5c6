"""The device itself, and the seam: what is refused there, and that the emulation would notice."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from emulated import BACKEND, NAME

import vtrain
from trainer import record
from trainer.listener import Recorder
from vtrain.engine.backend import check_device, device_report, environment
from vtrain.engine.listener import Plain, Site, round_result
from vtrain.engine.session import Session
from vtrain.errors import BackendError, OperandError, VtrainError
from vtrain.kernels import canonical, device, launch, selftest
from vtrain.policy import Policy
from vtrain.rounding import generic
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32
from vtrain.rounding.scale import Scale

WHERE = torch.device(NAME, 0)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    if BACKEND.damage is not None:
        check_device.cache_clear()
    BACKEND.most, BACKEND.damage = 0, None


def numbers(n: int) -> torch.Tensor:
    return ((torch.arange(n) * 7919) % 257 - 128).double() / 3


# ---- the emulation ---------------------------------------------------------------------------------------------------
def test_new_and_freed_memory_is_poison() -> None:
    x = torch.empty(100, device=NAME)
    assert bool(x.isnan().all())
    address, size = x.data_ptr(), x.nbytes
    x.zero_()
    del x
    assert ctypes.string_at(address, size) == b"\xff" * size


@pytest.mark.parametrize("offset", [-4, 40])
def test_a_write_beyond_a_block_is_seen(offset: int) -> None:
    before = torch.ops.emulated.violations()
    x = torch.zeros(10, device=NAME)
    ctypes.memset(x.data_ptr() + offset, 0, 4)
    assert torch.ops.emulated.violations() > before


def test_a_write_to_freed_memory_is_seen() -> None:
    before = torch.ops.emulated.violations()
    x = torch.zeros(10, device=NAME)
    address = x.data_ptr()
    del x
    ctypes.memset(address, 0, 4)
    assert torch.ops.emulated.violations() > before


def test_a_copy_that_need_not_be_waited_for_comes_late() -> None:
    x = torch.ones(5, device=NAME)
    y = x.to("cpu", non_blocking=True)
    assert y.is_pinned() and bool(y.isnan().all())
    getattr(torch, NAME).synchronize()
    assert y.tolist() == [1.0] * 5


@pytest.mark.parametrize("other", ["cpu", f"{NAME}:1"])
def test_operands_on_two_devices(other: str) -> None:
    x, y = torch.ones(2, 2, device=NAME), torch.ones(2, 2, device=other)
    for work in (torch.add, torch.mm, torch.atan2, lambda a, b: torch.cat([a, b])):
        with pytest.raises(RuntimeError, match="same device"):
            work(x, y)


# ---- the seam --------------------------------------------------------------------------------------------------------
def test_a_device_has_one_backend() -> None:
    assert device.of(WHERE) is BACKEND and NAME in device.kinds()
    assert [str(d) for d in device.present()] == [f"{NAME}:0", f"{NAME}:1"]
    assert environment()["devices"] == ["an emulated device, number 0", "an emulated device, number 1"]
    with pytest.raises(ValueError, match="already"):
        device.register(NAME, BACKEND)
    with pytest.raises(BackendError, match="no kernels for meta"):
        device.of(torch.device("meta"))


@pytest.mark.parametrize("other", ["cpu", f"{NAME}:1"])
def test_kernels_refuse_operands_on_two_devices(other: str) -> None:
    a, b = torch.ones(1, 2, 3, device=NAME), torch.ones(1, 3, 2, device=other)
    with pytest.raises(OperandError, match="is on"):
        canonical.product(a, b)


@pytest.mark.parametrize("other", ["cpu", f"{NAME}:1"])
def test_a_launch_refuses_tensors_on_two_devices(other: str) -> None:
    x, y = torch.ones(4, device=NAME), torch.ones(4, device=other)
    with pytest.raises(OperandError, match=rf"running_sum: its tensors are on .*{other}.*; move them to one device"):
        launch.launch("running_sum", x, y, 1, 4, 1)


def test_memory_of_another_device_is_an_illegal_access() -> None:
    x = torch.zeros(4)
    with pytest.raises(RuntimeError, match="no address"):
        BACKEND.launch(WHERE, "running_sum", np.array([x.data_ptr(), x.data_ptr(), 1, 4, 1]).tobytes())


@pytest.mark.parametrize("other", ["cpu", f"{NAME}:1"])
@pytest.mark.parametrize("policy", [Policy(), Policy(matmul="chain")], ids=["logged", "chain"])
def test_a_step_refuses_operands_on_two_devices(other: str, policy: Policy) -> None:
    x, y = torch.ones(2, 2, device=NAME), torch.ones(2, 2, device=other)
    for work in (torch.add, torch.mm, torch.mul, torch.div, torch.atan2, torch.nn.functional.linear):
        with Session(Plain(), policy, 0).step(1), pytest.raises((RuntimeError, VtrainError), match=r" on |device"):
            work(x, y)


def test_a_step_s_copies_are_there() -> None:
    x = torch.ones(5, device=NAME)
    pinned = torch.zeros(5).pin_memory()
    for copied in (
        lambda: x.to("cpu", non_blocking=True),
        lambda: x.to("cpu", torch.bfloat16, non_blocking=True),
        lambda: pinned.copy_(x, non_blocking=True),
    ):
        with Session(Plain(), Policy(), 0).step(1):
            found = copied()
        assert found.tolist() == [1.0] * 5


def test_division_is_a_division() -> None:
    """Outside a step this device multiplies by an inverse, as CUDA does."""
    x = torch.arange(1.0, 1000.0)
    there = x.to(NAME)
    assert not torch.equal((there / 3.0).cpu(), x / 3.0)
    with Session(Plain(), Policy(), 0).step(1):
        found = [there / 3.0, there.clone().div_(3.0), torch.div(there, 3.0, out=torch.empty_like(there))]
        found += [there / torch.tensor(3.0), torch.true_divide(there, 3.0), *torch._foreach_div([there], 3.0)]
    assert all(torch.equal(y.cpu(), x / 3.0) for y in found)


# ---- the checks of a device ------------------------------------------------------------------------------------------
def test_the_device_keeps_the_contract() -> None:
    report = device_report(WHERE)
    assert all(report.values()) and len(report) > len(selftest.FAMILIES) + 10


FAMILY = {
    "products": "product", "convolutions": "input_gradient", "elementwise functions": "gelu_erf", "sums": "scatter",
    "rows": "layer_norm", "optimizers' steps": "adam", "settling": "doubt_write",
}  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILY))
def test_a_run_refuses_a_device_whose_kernels_err(family: str, tmp_path: Path) -> None:
    def damage(name: str, blocks: list[tuple[int, int]]) -> None:
        if name == FAMILY[family]:
            for address, size in blocks:  # one bit of the first element that is not zero
                data = (ctypes.c_uint32 * (size // 4)).from_address(address)
                at = next((i for i, word in enumerate(data) if word), 0)
                data[at] ^= 1

    BACKEND.damage = damage
    check_device.cache_clear()
    model = torch.nn.Linear(2, 2).to(NAME)
    with pytest.raises(BackendError) as found, record(tmp_path / "run", model=model, optimizer=None):
        pass
    text = str(found.value)
    assert f"{WHERE} (an emulated device, number 0) does not keep the contract" in text
    assert f"kernels of {family} have the host's bits" in text and "the CPU" in text and "vtrain doctor" in text
    assert not (tmp_path / "run").exists()


def test_a_step_refuses_it_too() -> None:
    def damage(name: str, blocks: list[tuple[int, int]]) -> None:
        for address, size in blocks[-1:] if name == "exp" else ():
            ctypes.memset(address, 1, size)

    BACKEND.damage = damage
    check_device.cache_clear()
    with pytest.raises(BackendError, match="does not keep"), Session(Plain(), Policy(), 0).step(1):
        torch.ones(2, 2, device=NAME).exp()


def test_a_device_that_flushes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    native = torch.mul

    def flushing(a: Any, b: Any, **kwargs: Any) -> Any:
        out = native(a, b, **kwargs)
        return torch.where(out.abs() < 2.0**-126, out * 0, out) if out.device.type == NAME else out

    monkeypatch.setattr(torch, "mul", flushing)
    assert not device_report(WHERE)["mul is correctly rounded"]


# ---- settling --------------------------------------------------------------------------------------------------------
def hard() -> torch.Tensor:
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65519.9, 2.0**-25]
    near = [1 + tie + k * 2.0**-51 for tie in (2.0**-24, 2.0**-8) for k in range(-9, 10)]
    return torch.cat([torch.tensor(special + near, dtype=torch.float64), numbers(400)])


@pytest.fixture(params=["kernels", "tensor operations"])
def settling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the device's kernels, and as on a device that has none (``rounding.generic``)."""
    if request.param != "kernels":
        monkeypatch.delitem(device._BACKENDS, NAME)
    return str(request.param)


@pytest.mark.parametrize("fmt", [FLOAT32, BFLOAT16, FLOAT16], ids=lambda f: f.name)
@pytest.mark.parametrize("signed", [False, True])
def test_results_are_rounded_alike(fmt: Any, signed: bool, settling: str) -> None:
    y = hard()
    kind = torch.int32 if fmt == FLOAT32 else torch.int16
    found = round_result(y.to(NAME), fmt, signed)
    assert found.device == WHERE and found.dtype is generic.container(fmt)
    number = ~y.isnan()
    assert torch.equal(found.cpu().view(kind)[number], round_result(y, fmt, signed).view(kind)[number])


def column(step: Any) -> list[list[int]]:
    return [part.tolist() for part in (step.sites, step.gaps, step.codes, step.values)]


@pytest.mark.parametrize("zeros", [False, True], ids=["", "sums of zeros"])
@pytest.mark.parametrize("fmt", [FLOAT32, BFLOAT16], ids=lambda f: f.name)
def test_the_device_s_log_is_the_cpu_s(fmt: Any, zeros: bool, settling: str) -> None:
    """One value in C, recorded on both: the same entries."""
    logs = []
    for where in ("cpu", NAME):
        y = hard().to(where)
        y[100:200] *= not zeros
        n = y.numel()
        scale = Scale(
            "product", 8, 4.0, (1, 1, n), row=torch.ones(1, dtype=torch.float64, device=where),
            col=torch.full((n,), 3.0, dtype=torch.float64, device=where), empty=lambda y=y: y == 0,
        )  # fmt: skip
        recorder = Recorder(Policy(target="bfloat16" if fmt == BFLOAT16 else "float32"))
        out = recorder.settle(Site(1, 0, "aten.mm.default", (n,), fmt, False), y, lambda s=scale: s)
        logs.append((column(recorder.take()), out.cpu()[~y.cpu().isnan()].tolist()))
    assert logs[0] == logs[1]
    assert len(logs[0][0][1]) > 5


def test_without_kernels_what_is_canonical_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(device._BACKENDS, NAME)
    x = torch.ones(3, device=NAME)
    with Session(Plain(), Policy(), 0).step(1), pytest.raises(OperandError, match="want a device of type cpu"):
        x.exp()
    with Session(Plain(), Policy(other="logged"), 0).step(1):
        assert x.exp().device == WHERE


# ---- generators ------------------------------------------------------------------------------------------------------
def drawn(where: str, generator: torch.Generator | None) -> list[list[float]]:
    found = []
    with Session(Plain(), Policy(), 0).step(1):
        for _ in range(3):
            found.append(torch.randn(5, device=where, generator=generator))
            found.append(torch.rand(3, device=where, generator=generator))
        found.append(torch.randint(0, 1000, (4,), device=where, generator=generator))
    return [x.cpu().tolist() for x in found]


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 5])
def test_one_seed_is_the_same_numbers_on_every_device(seed: int) -> None:
    there = torch.Generator(device=NAME).manual_seed(seed)
    wanted = drawn("cpu", torch.Generator().manual_seed(seed))
    assert drawn(NAME, there) == wanted
    again = torch.Generator(device=NAME)
    again.set_state(there.get_state())  # seven draws on
    assert drawn(NAME, there) == drawn(NAME, again) != wanted


def test_the_global_generators_are_the_step_s() -> None:
    module = getattr(torch, NAME)
    before = [g.get_state().tolist() for g in module.default_generators]
    assert drawn(NAME, None) == drawn("cpu", None) == drawn(NAME, module.default_generators[0])
    assert [g.get_state().tolist() for g in module.default_generators] == before


def test_seeding_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for where in ("cpu", NAME):
        with Session(Plain(), Policy(), 0).step(1):
            torch.manual_seed(3)
            state = torch.get_rng_state() if where == "cpu" else getattr(torch, NAME).get_rng_state()
            first = torch.rand(4, device=where)
            (torch.set_rng_state if where == "cpu" else getattr(torch, NAME).set_rng_state)(state)
            found.append((first.cpu().tolist(), torch.rand(4, device=where).cpu().tolist()))
    assert found[0] == found[1] and found[0][0] == found[0][1]


def test_initial_weights_are_the_same_wherever_they_are_made() -> None:
    with vtrain.seeded(0):
        here = torch.nn.Linear(5, 5)
    with vtrain.seeded(0), torch.device(NAME):
        there = torch.nn.Linear(5, 5)
    assert torch.equal(here.weight, there.weight.cpu())
