"""Every rule about PTX fires on what breaks it, and code compiled with the kernels' flags breaks none."""

from __future__ import annotations

import pytest
from ptx import parse
from ptx_helpers import ARCHITECTURES, compiled, require_nvrtc
from ptx_model import PtxError
from rules import fused_operations, violations

require_nvrtc()

FLOATS = """extern "C" __global__ void mixed(float* x, double* y) {
  const int i = threadIdx.x;
  x[i] = x[i] / x[i + 1] + sqrtf(x[i + 2]) * x[i + 3];
  y[i] = y[i] / y[i + 1] + sqrt(y[i + 2]) * y[i + 3];
}"""
OPEN = ("--std=c++17", "--fmad=true")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_flags_keep_the_rules(arch: str) -> None:
    ptx = compiled(FLOATS, arch)
    assert violations(ptx) == []
    assert fused_operations(ptx) == {"mixed": 0}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_fast_math_breaks_them(arch: str) -> None:
    found = "\n".join(violations(compiled(FLOATS, arch, ("--use_fast_math",))))
    assert ".approx is inexact" in found and ".ftz is inexact" in found


def test_contraction_breaks_them() -> None:
    ptx = compiled(FLOATS, flags=OPEN)
    assert fused_operations(ptx)["mixed"] + len(violations(ptx)) >= 2
    added = compiled('extern "C" __global__ void k(float* x) { x[0] += x[1]; }', flags=OPEN)
    assert any("may fuse" in line for line in violations(added))


@pytest.mark.parametrize("type_name", ["float", "double"])
def test_floating_atomics_break_them(type_name: str) -> None:
    found = violations(compiled(f'extern "C" __global__ void k({type_name}* x) {{ atomicAdd(x, ({type_name})1); }}'))
    assert len(found) == 1 and "k: line" in found[0] and "order of threads" in found[0]


def test_integer_atomics_do_not() -> None:
    assert violations(compiled('extern "C" __global__ void k(int* x) { atomicAdd(x, 1); atomicMax(x + 1, 2); }')) == []


@pytest.mark.parametrize(
    "instruction,rule",
    [
        ("div.full.f32 %f1, %f2, %f3;", "full"),
        ("sqrt.approx.ftz.f32 %f1, %f2;", "ftz"),
        ("red.global.add.noftz.bf16x2 [%rd1], %r1;", "atomic"),
        ("red.relaxed.gpu.global.add.f64 [%rd1], %fd1;", "atomic"),
        ("mul.f64 %fd1, %fd1, %fd1;", "fuse"),
    ],
)
def test_single_instructions(instruction: str, rule: str) -> None:
    registers = ".reg .f32 %f<4>; .reg .f64 %fd<2>; .reg .b64 %rd<2>; .reg .b32 %r<2>;"
    ptx = f".version 8.0 .target sm_90 .address_size 64 .entry k() {{ {registers} {instruction} ret; }}"
    found = violations(ptx)
    assert found and any(rule in line for line in found)


def test_fused_operations_of_functions_that_a_kernel_calls() -> None:
    ptx = compiled("""__device__ __noinline__ double f(double x) { return fma(x, x, 1.0); }
      extern "C" __global__ void direct(double* x) { x[0] = fma(x[1], x[2], x[3]) + fma(x[4], x[5], x[6]); }
      extern "C" __global__ void through(double* x) { x[threadIdx.x] = f(x[1]); }
      extern "C" __global__ void none(int* x) { x[0] = x[1] * x[2] + x[3]; }""")
    assert fused_operations(ptx) == {"direct": 2, "through": 1, "none": 0}


@pytest.mark.parametrize(
    "text,message",
    [
        (".entry k() { add.s32 %r1 %r2; }", "line 1"),
        (".entry k() { ret;", "does not end"),
        (".texref t;", "unsupported directive"),
        (".global .b128x a;", "unknown type"),
        (".entry k() { ^ }", "unexpected"),
    ],
)
def test_malformed_text_is_an_error(text: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        parse(text)
