"""The kernels compile for every architecture; their PTX has one entry a kernel and nothing that may round otherwise."""

from __future__ import annotations

import re

import pytest
from device_helpers import ARCHITECTURES, prepare, ptx, require_nvrtc, single
from ptx import parse
from ptx_model import Module
from rules import fused_operations, violations

from vtrain.kernels import nvrtc
from vtrain.kernels.launch import SIGNATURES

require_nvrtc()

# Whether a kernel's source asks for fused multiply-adds: chains of products, and exact products of two doubles in the
# functions that need pairs (dd.hpp). In all others every product and every sum is rounded.
FUSES = {
    "product": True,
    "product_wide": True,
    "convolution": True,
    "convolution_wide": True,
    "input_gradient": True,
    "input_gradient_wide": True,
    "weight_gradient": True,
    "weight_gradient_wide": True,
    "exp": False,
    "exp2": False,
    "expm1": True,
    "log": False,
    "log2": True,
    "log10": True,
    "log1p": False,
    "tanh": True,
    "sigmoid": True,
    "erf": True,
    "erfc": True,
    "sin": True,
    "cos": True,
    "sqrt": False,
    "rsqrt": True,
    "pow": True,
    "power": True,
    "gelu_erf": True,
    "gelu_erf_backward": True,
    "gelu_tanh": True,
    "gelu_tanh_backward": True,
    "silu": True,
    "silu_backward": True,
    "softplus": False,
    "softplus_backward": True,
    "sum": False,
    "softmax": False,
    "softmax_backward": False,
    "log_softmax": False,
    "log_softmax_backward": False,
    "layer_norm": True,
    "layer_norm_backward": False,
    "rms_norm": True,
    "rms_norm_backward": False,
    "channel_norm": False,
    "channel_norm_backward": False,
    "scatter": False,
    "running_sum": False,
    "sgd": False,
    "adam": False,
    "round": False,
    "doubt_count": False,
    "doubt_write": False,
}
CHANNEL_NORM = ("channel_norm", "ChannelArgs", "channels.hpp")
SOFTMAX = ("softmax", "RowArgs", "rows.hpp")
CONTRACTED = tuple("--fmad=true" if flag == "--fmad=false" else flag for flag in nvrtc.FLAGS)
APPROXIMATE = tuple(flag.replace("=true", "=false") if "--prec" in flag else flag for flag in nvrtc.FLAGS)
FLUSHED = tuple(flag.replace("--ftz=false", "--ftz=true") for flag in nvrtc.FLAGS)


@pytest.fixture(scope="module", autouse=True)
def compiling() -> None:
    prepare("ptx")


def entry_faults(module: Module) -> list[str]:
    """Entry points that are missing, are no kernel's, or don't take one struct of the kernel's size."""
    wanted = {f"vt_{name}": 8 * len(signature) for name, signature in SIGNATURES.items()}
    found = {name: [p.size for p in module.functions[name].parameters] for name in module.kernels}
    return [
        f"{name}: parameters {found.get(name)}, want {wanted.get(name)}"
        for name in sorted({*wanted, *found})
        if name not in wanted or found.get(name) != [wanted[name]]
    ]


def fusion_faults(module: Module, fuses: dict[str, bool]) -> list[str]:
    """Kernels that have fused multiply-adds against the table, or have none against it."""
    counts = fused_operations(module)
    return [f"{name}: {counts[f'vt_{name}']}" for name, may in fuses.items() if (counts[f"vt_{name}"] > 0) is not may]


def test_the_table_has_every_kernel() -> None:
    assert list(FUSES) == list(SIGNATURES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_architecture(arch: str) -> None:
    module = parse(ptx(arch))
    assert module.target == arch
    assert entry_faults(module) == []
    assert violations(module) == []
    assert fusion_faults(module, FUSES) == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_virtual_architecture_has_the_same_ptx(arch: str) -> None:
    names = (arch, arch.replace("sm_", "compute_"))
    real, virtual = (single(*SOFTMAX, name) for name in names)
    assert real == virtual and len(real) > 10_000


def test_only_the_source_fuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the one function that fuses replaced by a product and a sum, nothing is left that fuses."""
    known = nvrtc.sources()
    config, replaced = re.subn(rb"return __fmaf?_rn\(a, b, c\);", b"return a * b + c;", known["config.hpp"])
    assert replaced == 2
    assert not any(b"__fma" in text for name, text in known.items() if name != "config.hpp")
    monkeypatch.setattr(nvrtc, "sources", lambda: {**known, "config.hpp": config})
    module = parse(nvrtc.compile("compute_80", "ptx").decode())
    assert {name for name, count in fused_operations(module).items() if count} == set()
    assert len(module.kernels) == len(SIGNATURES)


# ---- what the checks would see --------------------------------------------------------------------------------------


def compiled(kernel: tuple[str, str, str], flags: tuple[str, ...] = nvrtc.FLAGS) -> Module:
    return parse(single(*kernel, flags=flags))


def test_contraction_would_be_seen() -> None:
    table = {"channel_norm": False}
    assert fusion_faults(compiled(CHANNEL_NORM), table) == []
    module = compiled(CHANNEL_NORM, CONTRACTED)
    assert CONTRACTED != nvrtc.FLAGS and fusion_faults(module, table) + violations(module) != []


def test_a_fused_operation_that_is_gone_would_be_seen() -> None:
    assert fusion_faults(compiled(CHANNEL_NORM), {"channel_norm": True}) == ["channel_norm: 0"]


@pytest.mark.parametrize("flags,rule", [(APPROXIMATE, "inexact"), (FLUSHED, "ftz")])
def test_inexact_division_would_be_seen(flags: tuple[str, ...], rule: str) -> None:
    assert flags != nvrtc.FLAGS
    assert violations(compiled(SOFTMAX)) == []
    assert any(rule in line for line in violations(compiled(SOFTMAX, flags)))


def test_entries_that_are_missing_or_strange_would_be_seen() -> None:
    strange = parse(nvrtc.compile_source('extern "C" __global__ void vt_round(int* x) { *x = 1; }', "sm_80", "ptx"))
    faults = entry_faults(strange)
    assert len(faults) == len(SIGNATURES) and "round" in "".join(faults)
    extra = parse(nvrtc.compile_source('extern "C" __global__ void other(int* x) { *x = 1; }', "sm_80", "ptx"))
    assert len(entry_faults(extra)) == len(SIGNATURES) + 1
    assert entry_faults(compiled(CHANNEL_NORM)) == [
        line for line in entry_faults(Module()) if not line.startswith("vt_channel_norm:")
    ]
