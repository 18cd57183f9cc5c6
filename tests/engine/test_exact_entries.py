"""Every entry of classes 1 and 2: the same bits on any threads, instruction set, layout and memory (numerics §2)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import exact_samples
import pytest
import torch

from vtrain.engine.listener import Plain
from vtrain.engine.optable import TABLE
from vtrain.engine.session import Session
from vtrain.policy import Policy
from vtrain.profiles import profile_environment

SCRIPT = Path(__file__).with_name("exact_samples.py")
NAMES = [name for name, entry in TABLE.items() if entry.cls in exact_samples.EXACT and name.startswith("aten.")]
# profile, kernels' variant, threads, sizes, what freed memory holds
PROCESSES = {
    "two threads": ("native", "", 2, "big", 0xA5),
    "avx2": ("avx2", "avx2", 1, "small", 0x5A),
    "baseline, two threads": ("baseline", "generic", 2, "both", 0xFF),
}


def run(profile: str, variant: str, threads: int, sizes: str, memory: int) -> dict[str, str]:
    env = {**profile_environment(profile), "MALLOC_PERTURB_": str(memory)}
    if variant:
        env["VTRAIN_CPU"] = variant
    done = subprocess.run([sys.executable, str(SCRIPT), str(threads), sizes], env=env, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return run("native", "", 1, "both", 0)


def test_every_entry_has_samples() -> None:
    """An entry that is added to classes 1 or 2 is one that this file tries."""
    assert len(NAMES) > 200
    assert [name for name in NAMES if name.removeprefix("aten.") not in exact_samples.SAMPLES] == []


def test_every_sample_gives_a_result(reference: dict[str, str]) -> None:
    """Each sample is taken with operands of some type: nothing is compared that is only refused."""
    taken = {" ".join(key.split()[:2]) for key, digest in reference.items() if digest}
    every = {f"{name} {i}" for name, makes in exact_samples.SAMPLES.items() for i in range(len(makes))}
    assert sorted(every - taken) == []


@pytest.mark.parametrize("name", list(PROCESSES))
def test_every_process_gives_the_same_bits(name: str, reference: dict[str, str]) -> None:
    found = run(*PROCESSES[name])
    assert len(found) > 1000
    assert [key for key, digest in found.items() if digest != reference[key]] == []


def test_layouts_and_unaligned_memory_give_the_same_bits(reference: dict[str, str]) -> None:
    """What an element becomes does not depend on where it lies: in a vector, in its tail, or alone."""
    # strides are part of what these do
    strided = {"view.dtype", "as_strided.default", "as_strided_.default", "_reshape_alias.default"}
    wrong = []
    for key, digest in reference.items():
        name, _, _, n, layout = key.split()
        if n == "1003" and layout != "contiguous" and name not in strided:
            wrong += [key] if digest != reference[key.replace(f" {layout}", " contiguous")] else []
    assert wrong == []


ELEMENTWISE = """
    relu.default threshold.default clamp.default clamp_min.default clamp_max.default hardtanh.default abs.default
    neg.default sign.default floor.default ceil.default round.default trunc.default isnan.default maximum.default
    minimum.default threshold_backward.default hardtanh_backward.default hardshrink_backward.default
    softshrink_backward.default eq.Scalar lt.Scalar ge.Scalar eq.Tensor lt.Tensor mul.Tensor div.Tensor add.Tensor
    sub.Tensor mul.Scalar div.Scalar add.Scalar sub.Scalar rsub.Scalar floor_divide.Scalar remainder.Tensor fmod.Tensor
    remainder.Scalar fmod.Scalar div.Tensor_mode div.Scalar_mode reciprocal.default _to_copy.default where.self
    clamp.Tensor clamp_min.Tensor clamp_max.Tensor logical_not.default bitwise_left_shift.Tensor bitwise_not.default
""".split()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8], ids=str)
def test_an_element_alone_gives_the_same_bits(dtype: torch.dtype) -> None:
    """The whole against each element by itself, which no vector code reaches."""
    session = Session(Plain(), Policy(), 0)
    kit = exact_samples.Kit(dtype, 1003, "contiguous")
    wrong = []
    for name in ELEMENTWISE:
        for i, make in enumerate(exact_samples.SAMPLES[name]):
            given = exact_samples.arguments(make, kit)
            assert given is not None
            args, words = given
            op = exact_samples.resolve(f"aten.{name}")
            try:
                with session.step(1):
                    whole = op(*args, **words)
                    rows = [op(*(a[r : r + 1, c : c + 1] if isinstance(a, torch.Tensor) and a.dim() == 2 else a
                                 for a in args), **words) for r in range(4) for c in range(59)]  # fmt: skip
            except Exception:
                continue
            if whole.dim() == 2 and exact_samples.plain(torch.cat(rows).view(4, 59)) != exact_samples.plain(whole[:4]):
                wrong.append(f"{name} {i}")
    assert wrong == []
