"""Compile snippets of CUDA for the tests; without NVRTC the tests are skipped, and say so."""

from __future__ import annotations

import numpy as np
import pytest
from interpreter import Machine
from numpy.typing import NDArray

from vtrain.errors import BackendError
from vtrain.kernels import nvrtc

ARCHITECTURES = ("sm_80", "sm_120")  # their PTX comes from different generations of the compiler


# A kernel k around instructions.
HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
BODY = (
    HEADER + ".visible .entry k(.param .u64 p) {{\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\n.reg .pred %p<3>;\n{}\nret;\n}}"
)

# The sum of x over each block.
SUM = """extern "C" __global__ void sum(const double* x, double* y) {
  extern __shared__ double part[];
  __shared__ int touched;
  const int t = threadIdx.x;
  if (t == 0) touched = 0;
  part[t] = x[blockIdx.x * blockDim.x + t];
  for (int k = blockDim.x / 2; k; k /= 2) {
    __syncthreads();
    if (t < k) part[t] += part[t + k];
  }
  if (t == 0) { y[blockIdx.x] = part[0] + touched; }
}"""


def require_nvrtc() -> None:
    """Skip the test module where NVRTC is missing."""
    try:
        nvrtc.version()
    except BackendError as error:
        pytest.skip(str(error), allow_module_level=True)


def compiled(source: str, arch: str = "sm_80", flags: tuple[str, ...] = nvrtc.FLAGS) -> str:
    """PTX of a snippet; the test is skipped if this NVRTC does not know the architecture."""
    if arch == "sm_120" and nvrtc.version() < (12, 8):
        pytest.skip("this NVRTC does not know sm_120")
    return nvrtc.compile_source(source, arch, "ptx", flags=flags).decode()


def machine(source: str, arch: str = "sm_80") -> Machine:
    return Machine(compiled(source, arch))


def elementwise(
    expression: str, inputs: list[NDArray], output: np.dtype | type, arch: str = "sm_80", threads: int = 128
) -> NDArray:
    """``expression`` of a, b, c... (elements of the inputs) computed by a kernel, one thread for each element."""
    names = "abcdefg"[: len(inputs)]
    loads = "".join(f"const {_C[x.dtype]} {n} = p_{n}[i];" for n, x in zip(names, inputs, strict=True))
    parameters = "".join(f"const {_C[x.dtype]}* p_{n}, " for n, x in zip(names, inputs, strict=True))
    target = np.dtype(output)
    source = f"""extern "C" __global__ void each({parameters} {_C[target]}* out, int count) {{
      const int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < count) {{ {loads} out[i] = {expression}; }}
    }}"""
    m = machine(source, arch)
    count = inputs[0].size
    out = m.empty(count, target)
    blocks = -(-count // threads)
    m.launch("each", (blocks,), (threads,), [*map(m.array, inputs), out, np.int32(count)])
    return out.get()


_C = {
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.int8): "signed char",
    np.dtype(np.uint8): "unsigned char",
    np.dtype(np.int16): "short",
    np.dtype(np.uint16): "unsigned short",
    np.dtype(np.int32): "int",
    np.dtype(np.uint32): "unsigned",
    np.dtype(np.int64): "long long",
    np.dtype(np.uint64): "unsigned long long",
}
