"""CUDA devices: launching the kernels with CuPy, on torch's current stream; no copies: kernels get addresses.

The code is compiled by ``nvrtc`` (not by CuPy, which appends ``-ftz=true``), cached, and loaded once a device. All that
the framework knows of CUDA by name is here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vtrain.errors import BackendError
from vtrain.kernels import nvrtc
from vtrain.rounding.accumulators import ARCHITECTURES, Accumulator

THREADS = 128  # of a block: what the tiles of products are cut for
_BLOCKS_A_PROCESSOR = 8  # a persistent grid; results don't depend on it


@functools.cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendError("kernels on a CUDA device need CuPy: install vtrain[cuda]") from error
    return cupy


@functools.cache
def _module(index: int) -> Any:
    cupy = _cupy()
    major, minor = torch.cuda.get_device_capability(index)
    with cupy.cuda.Device(index):
        return cupy.RawModule(path=str(nvrtc.cached(f"sm_{major}{minor}")))


@functools.cache
def _function(index: int, name: str) -> Any:
    return _module(index).get_function(f"vt_{name}")


class Cuda:
    """torch's CUDA devices, as ``device.Backend`` has it."""

    precisions = (("cuda", "matmul"),)
    # cuDNN's batch norm and recurrent layers are operations of their own, which no CPU has
    libraries = ((torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),)

    @property
    def flags(self) -> dict[str, Callable[[], object]]:
        prefix, c = "torch.backends.cuda.matmul", torch._C
        reductions = {
            f"{prefix}.allow_{kind}_reduced_precision_reduction": getattr(
                c, f"_get_cublas_allow_{kind}_reduced_precision_reduction"
            )
            for kind in ("fp16", "bf16")
        }
        reductions["torch.backends.cudnn.enabled"] = c._get_cudnn_enabled
        return {f"{prefix}.allow_fp16_accumulation": c._get_cublas_allow_fp16_accumulation, **reductions}

    def matrix_units(self, device: torch.device) -> Accumulator | None:
        """By the compute capability."""
        return ARCHITECTURES.get(torch.cuda.get_device_capability(device))

    def matrix_product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """cuBLAS with float32 sums and results."""
        return (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out_dtype=torch.float32)

    def launch(self, device: torch.device, name: str, arguments: bytes) -> None:
        """Run a kernel with its arguments' struct.

        Raises:
            BackendError: CuPy or NVRTC is missing, or the kernels don't compile for this device.
        """
        cupy = _cupy()
        index = torch.cuda.current_device() if device.index is None else device.index
        blocks = _BLOCKS_A_PROCESSOR * torch.cuda.get_device_properties(index).multi_processor_count
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream, index)
        with cupy.cuda.Device(index), stream:
            # A NumPy array is passed by value: its bytes are the kernel's one parameter.
            _function(index, name)((blocks,), (THREADS,), (np.frombuffer(arguments, np.uint8),))
