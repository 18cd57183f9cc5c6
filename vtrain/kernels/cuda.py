"""CUDA devices: launching the kernels with CuPy, on torch's current stream; no copies: kernels get addresses.

The code is compiled by ``nvrtc`` (not by CuPy, which appends ``-ftz=true``), cached, and loaded once a device. All that
the framework knows of CUDA by name is here.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vtrain.errors import BackendError, VtrainError
from vtrain.kernels import nvrtc
from vtrain.rounding.accumulators import ARCHITECTURES, Accumulator

THREADS = 128  # of a block: what the tiles of products are cut for
_BLOCKS_A_PROCESSOR = 8  # a persistent grid; results don't depend on it
_RECENT = 8  # kernels that are named where one of them failed

_CODE = re.compile(r"\b(cudaError[A-Za-z]+|CUDA_ERROR_[A-Z_]+)")
# Names of the driver's errors and of the run-time library's. What a driver says of code that is newer than itself:
_OLD_DRIVER = frozenset(
    """
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION CUDA_ERROR_NO_BINARY_FOR_GPU CUDA_ERROR_INVALID_IMAGE CUDA_ERROR_INVALID_PTX
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH CUDA_ERROR_JIT_COMPILER_NOT_FOUND CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
    cudaErrorInsufficientDriver cudaErrorUnsupportedPtxVersion cudaErrorNoKernelImageForDevice cudaErrorInvalidPtx
    cudaErrorInvalidKernelImage cudaErrorSystemDriverMismatch cudaErrorJitCompilerNotFound
    cudaErrorCompatNotSupportedOnDevice
    """.split()
)
_NO_DEVICE = frozenset(
    """
    CUDA_ERROR_NO_DEVICE CUDA_ERROR_INVALID_DEVICE CUDA_ERROR_DEVICE_UNAVAILABLE CUDA_ERROR_DEVICE_NOT_LICENSED
    cudaErrorNoDevice cudaErrorInvalidDevice cudaErrorDevicesUnavailable cudaErrorDeviceNotLicensed
    """.split()
)
# After these a process can't use the device any more, whoever asks it for something:
_LOST = frozenset(
    """
    CUDA_ERROR_ILLEGAL_ADDRESS CUDA_ERROR_ILLEGAL_INSTRUCTION CUDA_ERROR_MISALIGNED_ADDRESS CUDA_ERROR_INVALID_PC
    CUDA_ERROR_INVALID_ADDRESS_SPACE CUDA_ERROR_LAUNCH_FAILED CUDA_ERROR_LAUNCH_TIMEOUT CUDA_ERROR_ASSERT
    CUDA_ERROR_ECC_UNCORRECTABLE CUDA_ERROR_HARDWARE_STACK_ERROR cudaErrorIllegalAddress cudaErrorIllegalInstruction
    cudaErrorMisalignedAddress cudaErrorInvalidPc cudaErrorInvalidAddressSpace cudaErrorLaunchFailure
    cudaErrorLaunchTimeout cudaErrorAssert cudaErrorECCUncorrectable cudaErrorHardwareStackError
    """.split()
)
_NO_MEMORY = frozenset({"CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation"})
_USE_ANOTHER = "or leave out --device, for the CPU"


@functools.cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendError(f"kernels on a CUDA device need CuPy: install vtrain[cuda] ({error})") from error
    return cupy


def _described(index: int) -> str:
    """A device by number, name and architecture."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"cuda:{index} ({torch.cuda.get_device_name(index)}, sm_{major}{minor})"


def _architecture(index: int) -> str:
    """What the kernels are compiled for: the device's own architecture, or the newest that NVRTC knows before it.

    Raises:
        BackendError: it is older than NVRTC knows, or torch has no CUDA.
    """
    if torch.version.cuda is None:
        raise BackendError(
            f"torch {torch.__version__} was built without CUDA, and kernels on this device are CUDA's: install a torch "
            f"for CUDA (https://pytorch.org/get-started/locally), {_USE_ANOTHER}"
        )
    major, minor = torch.cuda.get_device_capability(index)
    known, number = nvrtc.architectures(), 10 * major + minor
    if number in known:
        return f"sm_{number}"
    older = [arch for arch in known if arch < number]
    if not older:
        raise BackendError(
            f"{_described(index)} is too old: NVRTC {_dotted(nvrtc.version())} compiles for sm_{min(known)} and newer. "
            f"Use a newer card, install torch and CuPy for an older CUDA that still knows it, {_USE_ANOTHER}"
        )
    return f"compute_{max(older)}"  # the driver makes machine code of it


def _dotted(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)


class _Torchs:
    """torch's current stream on a device, as CuPy takes streams of others."""

    def __init__(self, index: int) -> None:
        self.pointer = torch.cuda.current_stream(index).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


class _Loaded:
    """The kernels on one device.

    Args:
        index: its number; it is the current one.
    """

    def __init__(self, index: int) -> None:
        processors = torch.cuda.get_device_properties(index).multi_processor_count
        self.grid = (_BLOCKS_A_PROCESSOR * processors,)
        self.functions: dict[str, Any] = {}
        self._module = _cupy().RawModule(path=str(nvrtc.cached(_architecture(index))))

    def load(self, name: str) -> Any:
        """A kernel, loaded now, so that what fails there is not taken for a launch's."""
        function = self._module.get_function(f"vt_{name}")
        function.compile()
        self.functions[name] = function
        return function


class Cuda:
    """torch's CUDA devices, as ``device.Backend`` has it."""

    precisions = (("cuda", "matmul"),)
    # cuDNN's batch norm and recurrent layers are operations of their own, which no CPU has
    libraries = ((torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),)

    def __init__(self) -> None:
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._loaded: dict[int, _Loaded] = {}
        self._loading = threading.Lock()  # one thread compiles and loads; the others wait for what it makes

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

    def absent(self) -> str:
        """Why torch finds no such device, as torch says it; empty where it does."""
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:  # the latter is of a torch without CUDA
            return str(error).strip()
        return ""

    def lost(self) -> str:
        """What is to be said of a device that failed; empty where no kernel was launched."""
        if not self._recent:
            return ""
        return (
            "The error is of something that was launched before, as errors on a device come late; the last kernels "
            f"were: {', '.join(self._recent)}. With CUDA_LAUNCH_BLOCKING=1 it comes where it happens. This "
            "process can't use the device any more: go on with the run in a new one"
        )

    def launch(self, device: torch.device, name: str, arguments: bytes) -> None:
        """Run a kernel with its arguments' struct; the caller keeps alive what they point to.

        Raises:
            BackendError: CuPy or NVRTC is missing, the kernels don't compile or load for this device, or one that was
                launched before has failed.
            torch.OutOfMemoryError: the device has no room for the kernel.
        """
        index = torch.cuda.current_device() if device.index is None else device.index
        cupy = _cupy()
        try:
            with cupy.cuda.Device(index):  # the device of before is the current one again afterwards
                loaded, function = self._function(index, name)
                with _stream(cupy, index):
                    # A NumPy array is passed by value: its bytes are the kernel's one parameter.
                    function(loaded.grid, (THREADS,), (np.frombuffer(arguments, np.uint8),))
        except VtrainError:
            raise
        except RuntimeError as error:
            raise _explained(error, index, name, self.lost()) from error
        self._recent.append(f"{name} on cuda:{index}")

    def _function(self, index: int, name: str) -> tuple[_Loaded, Any]:
        loaded = self._loaded.get(index)
        function = None if loaded is None else loaded.functions.get(name)
        if loaded is not None and function is not None:
            return loaded, function
        with self._loading:
            loaded = self._loaded.get(index)
            if loaded is None:
                loaded = self._loaded[index] = _Loaded(index)
            return loaded, loaded.functions.get(name) or loaded.load(name)


def _stream(cupy: Any, index: int) -> Any:
    mine = _Torchs(index)
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(mine)
    return cupy.cuda.ExternalStream(mine.pointer, index)  # CuPy before 14


def _explained(error: RuntimeError, index: int, name: str, lost: str) -> Exception:
    """What an error of CuPy's, the driver's or torch's means where a kernel is launched."""
    found = _CODE.search(str(error))
    code, text = found[0] if found else "", str(error).strip().splitlines()[0]
    if code in _NO_MEMORY:
        return torch.OutOfMemoryError(f"CUDA out of memory. No room for kernel {name} on cuda:{index} ({text})")
    if code in _OLD_DRIVER:
        return BackendError(
            f"kernel {name}: the driver of cuda:{index} does not take what NVRTC {_dotted(nvrtc.version())} compiles "
            f"({text}). Update NVIDIA's driver (`nvidia-smi` says which CUDA the one here is for), install torch and "
            f"CuPy for that CUDA, {_USE_ANOTHER}"
        )
    if code in _NO_DEVICE:
        return BackendError(
            f"kernel {name}: cuda:{index} can't be used by CuPy ({text}). CuPy and torch must see the same devices: "
            "set CUDA_VISIBLE_DEVICES before Python starts, and see in `nvidia-smi` whether another process holds it"
        )
    if code in _LOST:
        return BackendError(f"kernel {name} could not be launched on cuda:{index}: {text}. {lost}".rstrip())
    return BackendError(f"kernel {name} could not be launched on cuda:{index}: {text}; `vtrain doctor` checks devices")
