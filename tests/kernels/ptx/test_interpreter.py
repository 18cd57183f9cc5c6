"""The interpreter's threads and memory, on kernels compiled from C++."""

from __future__ import annotations

import time

import numpy as np
import pytest
from interpreter import Machine, Trap
from ptx_helpers import ARCHITECTURES, BODY, SUM, machine, require_nvrtc

require_nvrtc()

BOTH = pytest.mark.parametrize("arch", ARCHITECTURES)
ORDERS = pytest.mark.parametrize("warps", [None, (0, 1, 2, 3), (3, 2, 1, 0)], ids=["together", "up", "down"])


@BOTH
def test_threads_of_a_grid(arch: str) -> None:
    m = machine(
        """extern "C" __global__ void index(int* out) {
          const int b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
          const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
          out[b * blockDim.x * blockDim.y * blockDim.z + t] = b * 1000 + t;
        }""",
        arch,
    )
    out = m.empty(6 * 24, np.int32)
    m.launch("index", (3, 1, 2), (4, 3, 2), [out], order=[5, 0, 4, 1, 3, 2])
    np.testing.assert_array_equal(out.get(), np.add.outer(1000 * np.arange(6), np.arange(24)).ravel())


@BOTH
def test_loops_of_different_lengths_and_early_return(arch: str) -> None:
    m = machine(
        """extern "C" __global__ void collatz(const unsigned* start, int* steps, int n) {
          const int i = threadIdx.x;
          if (i >= n) return;
          unsigned x = start[i];
          int k = 0;
          while (x != 1) { if (x & 1) { x = 3 * x + 1; if (k > 90) break; } else x /= 2; ++k; }
          steps[i] = k;
        }""",
        arch,
    )

    def reference(x: int) -> int:
        k = 0
        while x != 1:
            if x & 1:
                x = 3 * x + 1
                if k > 90:
                    break
            else:
                x //= 2
            k += 1
        return k

    start, out = m.array(np.arange(1, 101, dtype=np.uint32)), m.array(np.full(100, -7, np.int32))
    m.launch("collatz", (1,), (128,), [start, out, np.int32(99)])
    assert out.get().tolist() == [reference(x) for x in range(1, 100)] + [-7]


def test_threads_meet_again_after_a_branch() -> None:
    m = machine("""extern "C" __global__ void meet(unsigned* y, int n) {
      const int t = threadIdx.x;
      if (t % 3 == 0) { for (volatile int k = 0; k < t; ++k) y[t] = k; } else if (t % 3 == 1) { y[t] = n; }
      y[t] = __activemask();
    }""")
    y = m.empty(32, np.uint32)
    m.launch("meet", (1,), (32,), [y, np.int32(1)])
    assert (y.get() == 2**32 - 1).all()


@BOTH
@ORDERS
def test_barriers_and_shared_memory(arch: str, warps: tuple[int, ...] | None) -> None:
    m = machine(SUM, arch)
    x = np.random.default_rng(0).normal(size=(3, 128))
    y = m.empty(3, np.float64)
    m.launch("sum", (3,), (128,), [m.array(x), y], shared=1024, order=[2, 1, 0], warps=warps)
    expected = x.copy()
    for k in (64, 32, 16, 8, 4, 2, 1):
        expected = expected[:, :k] + expected[:, k:]
    np.testing.assert_array_equal(y.get(), expected[:, 0])


def test_a_missing_barrier_shows() -> None:
    """The wrong program passes when all warps run together, and not when one runs ahead."""
    m = machine(SUM.replace("__syncthreads();", ""))
    x, y = m.array(np.ones(128)), m.empty(1, np.float64)
    found = []
    for warps in (None, (0, 1, 2, 3)):
        m.launch("sum", (1,), (128,), [x, y], shared=1024, warps=warps)
        found.append(float(y.get()[0]))
    assert found[0] == 128 and found[1] != 128


@BOTH
@ORDERS
def test_barriers_with_a_vote(arch: str, warps: tuple[int, ...] | None) -> None:
    m = machine(
        """extern "C" __global__ void votes(int* y, int n) {
          const int t = threadIdx.x;
          if (t >= 100) return;
          int s = 0;
          for (int k = 0; k < 3; ++k) s = s * 512 + __syncthreads_count(t % 5 <= k);
          y[t] = s;
          y[128 + t] = __syncthreads_or(t == n) * 2 + __syncthreads_and(t < 99);
        }""",
        arch,
    )
    y = m.array(np.zeros(256, np.int32))
    m.launch("votes", (1,), (128,), [y, np.int32(70)], warps=warps)
    assert set(y.get()[:100]) == {(20 * 512 + 40) * 512 + 60} and set(y.get()[128:228]) == {2}


def test_a_barrier_counts_threads_that_are_left() -> None:
    m = machine("""extern "C" __global__ void some(int* y) {
      __shared__ int s[64];
      if (threadIdx.x >= 40) return;
      s[threadIdx.x] = threadIdx.x;
      __syncthreads();
      y[threadIdx.x] = s[39 - threadIdx.x];
    }""")
    y = m.array(np.zeros(64, np.int32))
    m.launch("some", (1,), (64,), [y])
    assert y.get().tolist() == list(range(39, -1, -1)) + [0] * 24


@BOTH
@ORDERS
def test_shuffles_and_votes(arch: str, warps: tuple[int, ...] | None) -> None:
    m = machine(
        """extern "C" __global__ void lanes(const double* x, double* y, unsigned* v) {
          const int t = threadIdx.x, n = blockDim.x;
          double s = x[t];
          for (int k = 16; k; k /= 2) s += __shfl_xor_sync(~0u, s, k);
          y[t] = s;
          y[n + t] = __shfl_down_sync(~0u, x[t], 3);
          y[2 * n + t] = __shfl_up_sync(~0u, x[t], 5);
          y[3 * n + t] = __shfl_sync(~0u, x[t], 11, 16);
          v[t] = __ballot_sync(~0u, x[t] > 0);
          v[n + t] = __any_sync(~0u, x[t] > 2) + 2 * __all_sync(~0u, x[t] > -2);
          v[2 * n + t] = __activemask();
          v[3 * n + t] = __reduce_add_sync(~0u, t);
        }""",
        arch,
    )
    x = np.random.default_rng(0).normal(size=(4, 32))
    y, v = m.empty((4, 4, 32), np.float64), m.empty((4, 4, 32), np.uint32)
    m.launch("lanes", (1,), (128,), [m.array(x), y, v], warps=warps)
    total = x.copy()
    for k in (16, 8, 4, 2, 1):
        total = total + total[:, np.arange(32) ^ k]
    lane = np.arange(32)
    sources = [np.where(lane + 3 < 32, lane + 3, lane), np.where(lane >= 5, lane - 5, lane), (lane & 16) | 11]
    np.testing.assert_array_equal(y.get(), np.stack([total, *(x[:, s] for s in sources)]))
    ballot = ((x > 0) << lane).sum(axis=1)
    agree = (x > 2).any(axis=1) + 2 * (x > -2).all(axis=1)
    reduced = np.arange(128).reshape(4, 32).sum(axis=1)
    expected = np.stack([ballot, agree, np.full(4, 2**32 - 1), reduced])[:, :, None]
    np.testing.assert_array_equal(v.get(), np.broadcast_to(expected, (4, 4, 32)))


def test_shuffles_among_some_lanes() -> None:
    m = machine("""extern "C" __global__ void some(int* out) {
      const int t = threadIdx.x;
      if (t & 1) out[t] = __shfl_sync(0xaaaaaaaau, t, 7);
      else if (t < 16) out[t] = __shfl_sync(0x00005555u, t, 2);
      __syncwarp();
      out[t] += 100;
    }""")
    out = m.array(np.zeros(64, np.int32))
    m.launch("some", (1,), (32,), [out])
    lane = np.arange(32)
    assert out.get()[:32].tolist() == np.where(lane & 1, 107, np.where(lane < 16, 102, 100)).tolist()


def test_lanes_wait_for_lanes_that_come_later() -> None:
    """Lanes wait at a shuffle until the others have come out of a loop, wherever the compiler puts it."""
    m = machine("""extern "C" __global__ void late(int* out) {
      const int t = threadIdx.x;
      int s = 0;
      if (t == 5) { for (volatile int k = 0; k < 9; ++k) s += k; } else s = t;
      out[t] = __shfl_sync(~0u, s, 5);
    }""")
    out = m.empty(32, np.int32)
    m.launch("late", (1,), (32,), [out])
    assert (out.get() == 36).all()


def test_lanes_go_on_when_others_end() -> None:
    m = machine("""extern "C" __global__ void leave(int* out, int n) {
      const int t = threadIdx.x;
      if (t < n) { __syncwarp(); out[t] = 1; return; }
      for (volatile int k = 0; k < t; ++k) out[t] = k;
    }""")
    out = m.array(np.zeros(32, np.int32))
    m.launch("leave", (1,), (32,), [out, np.int32(7)])
    assert out.get().tolist() == [1] * 7 + list(range(6, 31))


@BOTH
def test_functions_local_arrays_and_constants(arch: str) -> None:
    m = machine(
        """__constant__ double weights[3] = {0.5, 0.25, -1};
        __device__ int offsets[4] = {5, 6, 7};
        struct Pair { double a; int b; };
        __device__ __noinline__ Pair mixed(double x, int k) {
          double local[8];
          for (int i = 0; i < 8; ++i) local[i] = x * (i + k);
          return {local[k & 7], k + offsets[k & 3]};
        }
        extern "C" __global__ void functions(double* y, int* z, Pair given) {
          const int t = threadIdx.x;
          Pair p = mixed(weights[t % 3], t);
          if (t & 1) p = mixed(p.a + given.a, p.b);
          y[t] = p.a; z[t] = p.b + given.b;
        }""",
        arch,
    )

    def mixed(x: float, k: int) -> tuple[float, int]:
        return x * ((k & 7) + k), k + [5, 6, 7, 0][k & 3]

    given = np.array([(1.5, 9, 0)], np.dtype([("a", "f8"), ("b", "i4"), ("padding", "i4")]))
    y, z = m.empty(40, np.float64), m.empty(40, np.int32)
    m.launch("functions", (1,), (40,), [y, z, given[0]])
    for t in range(40):
        p = mixed([0.5, 0.25, -1][t % 3], t)
        p = mixed(p[0] + 1.5, p[1]) if t & 1 else p
        assert (y.get()[t], z.get()[t]) == (p[0], p[1] + 9)


@BOTH
def test_vectors_narrow_types_and_generic_pointers(arch: str) -> None:
    m = machine(
        """struct alignas(16) Four { float x, y, z, w; };
        __device__ __noinline__ int pick(const int* p, int k) { return p[k]; }
        extern "C" __global__ void mixed(const Four* f, Four* g, const signed char* c, unsigned short* h, int* out) {
          __shared__ int table[32];
          const int t = threadIdx.x;
          Four v = f[t];
          g[t] = {v.w, v.z, v.y, v.x};
          h[t] = c[t] * 3;
          table[t] = t * t;
          __syncthreads();
          out[t] = pick(t & 1 ? table : out + 32, 31 - t);
        }""",
        arch,
    )
    f = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    c = np.arange(-16, 16, dtype=np.int8)
    g, h = m.empty((32, 4), np.float32), m.empty(32, np.uint16)
    out = m.array(np.arange(64, dtype=np.int32))
    m.launch("mixed", (1,), (32,), [m.array(f), g, m.array(c), h, out])
    np.testing.assert_array_equal(g.get(), f[:, ::-1])
    np.testing.assert_array_equal(h.get().view(np.int16), 3 * c.astype(np.int16))
    expected = [(31 - t) ** 2 if t & 1 else 63 - t for t in range(32)]
    assert out.get()[:32].tolist() == expected


def test_integer_atomics() -> None:
    m = machine("""extern "C" __global__ void count(unsigned long long* total, int* bins, unsigned* first) {
      const int t = blockIdx.x * blockDim.x + threadIdx.x;
      __shared__ int local;
      if (threadIdx.x == 0) local = 0;
      __syncthreads();
      atomicAdd(&local, 1);
      atomicAdd(total, 1ull << 33);
      atomicMax(&bins[t % 3], t);
      atomicCAS(first, 0xffffffffu, 77u);
      __syncthreads();
      if (threadIdx.x == 0) bins[3 + blockIdx.x] = local;
    }""")
    total, bins, first = m.array(np.zeros(1, np.uint64)), m.array(np.zeros(5, np.int32)), m.empty(1, np.uint32)
    m.launch("count", (2,), (64,), [total, bins, first])
    assert total.get()[0] == 128 << 33
    assert bins.get().tolist() == [126, 127, 125, 64, 64] and first.get()[0] == 77


def test_jump_table() -> None:
    """Written by hand, since the compiler prefers comparisons."""
    body = "mov.u32 %r1, %tid.x;\nmov.u32 %r2, 7;\nT: .branchtargets A, B, C, B;\n@%p1 brx.idx %r1, T;\n"
    body += "A:\nmov.u32 %r2, 10;\nB:\nadd.s32 %r2, %r2, 1;\nC:\nmul.wide.u32 %rd1, %r1, 4;\n"
    body += "ld.param.u64 %rd2, [p];\nadd.s64 %rd3, %rd2, %rd1;\nst.global.u32 [%rd3], %r2;"
    m = Machine(BODY.format("setp.ne.u32 %p1, 0, 1;\n" + body))
    y = m.empty(5, np.int32)
    m.launch("k", (1,), (4,), [y])
    assert y.get().tolist() == [11, 8, 7, 8, -1]
    with pytest.raises(Trap, match="thread 4"):
        m.launch("k", (1,), (5,), [y])


def test_many_instructions_are_quick() -> None:
    m = machine("""extern "C" __global__ void busy(double* x, int n) {
      double s = x[threadIdx.x]; float f = 0;
      for (int i = 0; i < n; ++i) { s = s * 0.75 + i; f = fmaf(f, 0.5f, (float)s); x[threadIdx.x] = s + f; }
    }""")
    x = m.array(np.ones(128))
    start = time.process_time()
    m.launch("busy", (1,), (128,), [x, np.int32(15000)])
    assert m.steps >= 100_000 and time.process_time() - start < 10
