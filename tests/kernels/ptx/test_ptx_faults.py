"""What a kernel does wrong is found by the interpreter, and what the interpreter does not know is an error."""

from __future__ import annotations

import numpy as np
import pytest
from interpreter import Deadlock, Fault, Machine, MemoryFault, StepLimit, Trap, Uninitialised, Unsupported
from ptx_helpers import BODY, SUM, machine, require_nvrtc

require_nvrtc()

COPY = """extern "C" __global__ void copy(const double* x, double* y, int shift) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i + shift];
}"""


def test_a_read_outside_an_array_is_found() -> None:
    m = machine(COPY)
    x, y = m.array(np.arange(64.0)), m.empty(64, np.float64)
    m.launch("copy", (2,), (32,), [x, y, np.int32(0)])
    with pytest.raises(
        MemoryFault, match=r"copy: block 1, thread 31: line \d+: ld\.global.*8 bytes at 0x.*0x200 bytes"
    ):
        m.launch("copy", (2,), (32,), [x, y, np.int32(1)])
    with pytest.raises(MemoryFault, match="block 0, thread 0"):
        m.launch("copy", (2,), (32,), [x, y, np.int32(-1)])
    with pytest.raises(MemoryFault, match="below all regions"):
        m.launch("copy", (2,), (32,), [None, y, np.int32(0)])


def test_a_write_outside_or_misaligned_is_found() -> None:
    m = machine(COPY)
    x, y = m.array(np.arange(64.0)), m.empty(63, np.float64)
    with pytest.raises(MemoryFault, match=r"thread 31: .*st\.global"):
        m.launch("copy", (2,), (32,), [x, y, np.int32(0)])
    with pytest.raises(MemoryFault, match="not aligned"):
        m.launch("copy", (1,), (32,), [x, np.uint64(y.address + 4), np.int32(0)])


def test_shared_memory_has_bounds() -> None:
    m = machine(SUM)
    x, y = m.array(np.ones(128)), m.empty(1, np.float64)
    with pytest.raises(MemoryFault, match=r"thread 127.*shared"):
        m.launch("sum", (1,), (128,), [x, y], shared=1016)


def test_threads_that_store_different_values_to_one_place_are_found() -> None:
    m = machine('extern "C" __global__ void race(int* y) { y[threadIdx.x / 2] = threadIdx.x / 3; }')
    with pytest.raises(MemoryFault, match="different values"):
        m.launch("race", (1,), (32,), [m.empty(16, np.int32)])


DIVERGENT = """extern "C" __global__ void split(int* y, int n) {
  __shared__ int s[64];
  s[threadIdx.x] = n;
  if (threadIdx.x < n) { __syncthreads(); y[threadIdx.x] = s[63 - threadIdx.x]; }
  else { __syncthreads(); y[threadIdx.x] = s[threadIdx.x / 2] + 1; __syncthreads(); y[0] = s[3]; }
}"""


def test_threads_at_different_barriers_are_a_deadlock() -> None:
    m = machine(DIVERGENT)
    y = m.empty(64, np.int32)
    with pytest.raises(Deadlock, match="different barriers"):
        m.launch("split", (1,), (64,), [y, np.int32(32)])


def test_a_lane_that_waits_for_one_at_a_barrier_is_a_deadlock() -> None:
    m = machine("""extern "C" __global__ void stuck(int* y) {
      __shared__ int s;
      if (threadIdx.x == 3) { s = 1; __syncthreads(); y[0] = s; } else { y[threadIdx.x] = __any_sync(~0u, y[9]); }
    }""")
    with pytest.raises(Deadlock, match="a lane waits"):
        m.launch("stuck", (1,), (32,), [m.array(np.zeros(32, np.int32))])


def test_a_lane_that_takes_no_part_is_not_read() -> None:
    m = machine("""extern "C" __global__ void absent(int* y) {
      const int t = threadIdx.x;
      if (t < 8) y[t] = __shfl_down_sync(0xffu, t, 4);
    }""")
    with pytest.raises(Fault, match="lane 8, which does not take part"):
        m.launch("absent", (1,), (32,), [m.empty(32, np.int32)])


def test_endless_loops_and_traps_end() -> None:
    m = machine("""extern "C" __global__ void spin(volatile int* y) { while (y[0] == 0) { } }
      extern "C" __global__ void fail(int* y) { if (y[threadIdx.x] == 5) __trap(); }""")
    y = m.array(np.array([0, 1, 5], np.int32))
    with pytest.raises(StepLimit):
        m.launch("spin", (1,), (1,), [y], limit=1000)
    with pytest.raises(Trap, match="thread 2"):
        m.launch("fail", (1,), (3,), [y])


def test_a_register_that_is_not_written_is_not_read() -> None:
    m = Machine(
        BODY.format("mov.u32 %r1, %tid.x;\nsetp.lt.u32 %p1, %r1, 3;\n@%p1 mov.u32 %r2, 1;\nadd.s32 %r3, %r2, 1;")
    )
    m.launch("k", (1,), (3,), [None])
    with pytest.raises(Uninitialised, match=r"thread 3: line 11: add.s32 %r3, %r2, 1: %r2 is read"):
        m.launch("k", (1,), (4,), [None])


@pytest.mark.parametrize(
    "text",
    ["ex2.approx.f32 %r1, 0f3F800000;", "add.sat.s32 %r1, 1, 2;", "add.bf16 %r1, 1, 2;", "mov.u32 %r1, %smid;",
     "atom.global.add.f32 %r1, [p], 0f3F800000;", "bar.sync 1;", "frobnicate.u32 %r1, 1;", "add.s32 %r1, 1;"],
)  # fmt: skip
def test_what_is_not_known_is_an_error(text: str) -> None:
    with pytest.raises(Unsupported, match=text.split(".")[0]):
        Machine(BODY.format(text)).launch("k", (1,), (4,), [None])


def test_arguments_are_checked() -> None:
    m = machine(COPY)
    y = m.empty(4, np.float64)
    assert np.isnan(y.get()).all()
    for args in ([y, y], [y, y, np.int64(1)], [y, y, b"123"]):
        with pytest.raises(ValueError, match=r"arguments|bytes"):
            m.launch("copy", (1,), (4,), args)
    with pytest.raises(TypeError):
        m.launch("copy", (1,), (4,), [y, y, 1.5])
    with pytest.raises(ValueError, match="no kernel"):
        m.launch("paste", (1,), (4,), [])
    with pytest.raises(ValueError, match="order"):
        m.launch("copy", (2,), (2,), [y, y, 0], order=[0, 0])
