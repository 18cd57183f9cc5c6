"""Launching on CUDA devices without one: CuPy, torch's CUDA and NVRTC are stand-ins that record and fail."""

from __future__ import annotations

import sys
import threading
import types
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from vtrain.engine.jobs.device import chosen_device
from vtrain.errors import BackendError, UnsupportedError
from vtrain.kernels import cuda, device, launch, nvrtc
from vtrain.profiles import DEVICE

NAMES = ["NVIDIA A100", "NVIDIA B300"]


class CUDADriverError(RuntimeError):
    """CuPy's, of which the name of the error begins the text."""


class CUDARuntimeError(RuntimeError):
    """CuPy's."""


class Machine:
    """Two cards with a driver, as CuPy and torch show them.

    Attributes:
        current: the current device.
        streams: torch's current stream on each device.
        calls: what was launched: (device, stream, module's file, kernel, grid, block, bytes).
        loads: (device, file, kernel) of each load.
        load_error, launch_error: raised there.
        during: called in each launch.
    """

    def __init__(self) -> None:
        self.current, self.stream = 0, 0
        self.streams = [0, 7]
        self.capabilities = [(8, 0), (10, 3)]
        self.calls: list[tuple[Any, ...]] = []
        self.loads: list[tuple[int, str, str]] = []
        self.load_error: Exception | None = None
        self.launch_error: Exception | None = None
        self.during = lambda: None

    def cupy(self) -> Any:
        machine: Any = self

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            def __enter__(self) -> None:
                self.before, machine.current = machine.current, self.index

            def __exit__(self, *_: object) -> None:
                machine.current = self.before

        class Stream:
            def __init__(self, pointer: int) -> None:
                self.pointer = pointer

            @classmethod
            def from_external(cls, theirs: Any) -> Any:
                version, pointer = theirs.__cuda_stream__()
                assert version == 0
                return cls(pointer)

            def __enter__(self) -> None:
                self.before, machine.stream = machine.stream, self.pointer

            def __exit__(self, *_: object) -> None:
                machine.stream = self.before

        class RawModule:
            def __init__(self, path: str) -> None:
                self.path, self.home = path, machine.current

            def get_function(self, name: str) -> Any:
                return Kernel(self, name)

        class Kernel:
            def __init__(self, module: RawModule, name: str) -> None:
                self.module, self.name = module, name

            def compile(self) -> None:
                if machine.load_error is not None:
                    raise machine.load_error
                machine.loads.append((machine.current, self.module.path, self.name))

            def __call__(self, grid: tuple, block: tuple, arguments: tuple) -> None:
                assert machine.current == self.module.home, "a module of another device: an invalid handle"
                machine.during()
                if machine.launch_error is not None:
                    raise machine.launch_error
                place = machine.current, machine.stream, Path(self.module.path).name
                machine.calls.append((*place, self.name, grid, block, arguments[0].tobytes()))

        cupy: Any = types.ModuleType("cupy")
        cupy.RawModule, cupy.cuda = RawModule, types.SimpleNamespace(Device=Device, Stream=Stream)
        return cupy


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Machine()
    monkeypatch.setitem(sys.modules, "cupy", made.cupy())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    processors = [108, 148]
    for name, function in {
        "current_device": lambda: made.current,
        "current_stream": lambda i: types.SimpleNamespace(cuda_stream=made.streams[i]),
        "get_device_capability": lambda i: made.capabilities[i],
        "get_device_name": lambda i: NAMES[i],
        "get_device_properties": lambda i: types.SimpleNamespace(multi_processor_count=processors[i]),
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80, 90, 100, 103))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "cached", lambda arch: Path(f"/cache/{arch}"))
    cuda._cupy.cache_clear()
    yield made
    cuda._cupy.cache_clear()


def on(index: int) -> torch.device:
    return torch.device("cuda", index)


def test_a_launch(machine: Machine) -> None:
    cuda.Cuda().launch(on(0), "exp", b"12345678")
    assert machine.calls == [(0, 0, "sm_80", "vt_exp", (8 * 108,), (128,), b"12345678")]


def test_each_device_has_its_module_and_stream_and_the_current_one_stays(machine: Machine) -> None:
    backend = cuda.Cuda()
    for index in (1, 0, 1):
        machine.streams[0] += 1
        backend.launch(on(index), "exp", b"")
        assert (machine.current, machine.stream) == (0, 0)
    machine.current = 1
    backend.launch(torch.device("cuda"), "log", b"")
    assert machine.current == 1
    places = [call[:4] for call in machine.calls]
    assert places == [
        (1, 7, "sm_103", "vt_exp"), (0, 2, "sm_80", "vt_exp"), (1, 7, "sm_103", "vt_exp"), (1, 7, "sm_103", "vt_log"),
    ]  # fmt: skip
    assert [(where, name) for where, _, name in machine.loads] == [(1, "vt_exp"), (0, "vt_exp"), (1, "vt_log")]


def test_cupy_before_14_takes_a_stream_by_its_address(machine: Machine) -> None:
    namespace = sys.modules["cupy"].cuda  # type: ignore[attr-defined]
    stream = namespace.Stream
    namespace.ExternalStream = lambda pointer, index: stream(pointer)
    namespace.Stream = object()
    cuda.Cuda().launch(on(1), "exp", b"")
    assert machine.calls[0][:2] == (1, 7)


def test_threads_load_a_kernel_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, together, backend = [], threading.Barrier(4), cuda.Cuda()

    def slowly(arch: str) -> Path:
        compiled.append(arch)
        threading.Event().wait(0.05)
        return Path(arch)

    def work() -> None:
        together.wait()
        backend.launch(on(1), "exp", b"")

    monkeypatch.setattr(nvrtc, "cached", slowly)
    threads = [threading.Thread(target=work) for _ in range(4)]
    machine.current = 1  # the stand-in's current device is of the process, a real one's of a thread
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == ["sm_103"] and len(machine.loads) == 1 and len(machine.calls) == 4


def test_arguments_live_until_they_are_launched(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device._BACKENDS, "cpu", cuda.Cuda())
    alive: list[bool] = []
    seen: list[Any] = []
    machine.during = lambda: alive.extend(ref() is not None for ref in seen)

    def temporary() -> torch.Tensor:
        x = torch.zeros(4)
        seen.append(weakref.ref(x))
        return x

    launch.launch("running_sum", temporary(), temporary(), 1, 4, 1)
    assert alive == [True, True]


# ---- architectures ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("capability", "file"), [((7, 5), "sm_75"), ((12, 1), "compute_103"), ((8, 8), "compute_80"), ((10, 3), "sm_103")]
)
def test_an_architecture_that_nvrtc_does_not_know_gets_ptx(
    machine: Machine, capability: tuple[int, int], file: str
) -> None:
    machine.capabilities[0] = capability
    cuda.Cuda().launch(on(0), "exp", b"")
    assert machine.calls[0][2] == file


def test_too_old_a_card(machine: Machine) -> None:
    machine.capabilities[0] = (7, 0)
    with pytest.raises(BackendError) as found:
        cuda.Cuda().launch(on(0), "exp", b"")
    text = str(found.value)
    assert text.startswith("cuda:0 (NVIDIA A100, sm_70) is too old: NVRTC 13.0 compiles for sm_75 and newer. Use a")
    assert machine.calls == [] and machine.current == 0


def test_the_cache_holds_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    asked = []
    monkeypatch.setattr(nvrtc, "compile", lambda arch, kind: (asked.append((arch, kind)), kind.encode())[1])
    found = [nvrtc.cached(arch) for arch in ("sm_90", "compute_90", "sm_90")]
    assert [path.suffix for path in found] == [".cubin", ".ptx", ".cubin"] and found[0] == found[2]
    assert asked == [("sm_90", "cubin"), ("compute_90", "ptx")] and found[1].read_bytes() == b"ptx"


def test_what_nvrtc_knows() -> None:
    try:
        known = nvrtc.architectures()
    except BackendError as missing:
        pytest.skip(str(missing))
    assert {75, 80, 90, 120} <= set(known) and list(known) == sorted(known)


# ---- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error",
    [
        CUDADriverError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX was compiled with another toolchain"),
        CUDADriverError("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available for execution on the device"),
        CUDADriverError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid"),
        CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"),
    ],
    ids=lambda e: str(e).split(":")[0],
)
def test_too_old_a_driver(machine: Machine, error: Exception) -> None:
    machine.load_error = error
    with pytest.raises(BackendError) as found:
        cuda.Cuda().launch(on(1), "exp", b"")
    text = str(found.value)
    assert "the driver of cuda:1 does not take what NVRTC 13.0 compiles" in text and str(error) in text
    assert "Update NVIDIA's driver" in text and found.value.__cause__ is error


@pytest.mark.parametrize("name", ["CUDA_ERROR_INVALID_DEVICE", "cudaErrorInvalidDevice", "cudaErrorDevicesUnavailable"])
def test_a_device_that_cupy_does_not_see(machine: Machine, name: str) -> None:
    machine.load_error = CUDADriverError(f"{name}: invalid device ordinal")
    with pytest.raises(BackendError, match=rf"exp: cuda:0 can't be used by CuPy \({name}.*CUDA_VISIBLE_DEVICES"):
        cuda.Cuda().launch(on(0), "exp", b"")


def test_an_error_that_comes_late_names_the_kernels_before(machine: Machine) -> None:
    backend = cuda.Cuda()
    for name in ("exp", "product", "scatter"):
        backend.launch(on(0), name, b"")
    machine.launch_error = CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")
    with pytest.raises(BackendError) as found:
        backend.launch(on(0), "log", b"")
    text = str(found.value)
    assert text.startswith("kernel log could not be launched on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory")
    assert "the last kernels were: exp on cuda:0, product on cuda:0, scatter on cuda:0. " in text
    assert "CUDA_LAUNCH_BLOCKING=1" in text and "in a new one" in text
    assert (machine.current, machine.stream) == (0, 0)


def test_another_error_does_not_say_that_the_device_is_lost(machine: Machine) -> None:
    machine.launch_error = CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
    with pytest.raises(BackendError, match=r"launched on cuda:0: CUDA_ERROR_INVALID_VALUE: invalid argument; `vtrain"):
        cuda.Cuda().launch(on(0), "exp", b"")


def test_no_room_for_a_kernel(machine: Machine) -> None:
    machine.load_error = CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
    backend = cuda.Cuda()
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. No room for kernel exp on cuda:0"):
        backend.launch(on(0), "exp", b"")
    machine.load_error = None
    backend.launch(on(0), "exp", b"")  # what failed to load is not kept
    assert len(machine.calls) == 1


def test_without_cupy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"need CuPy: install vtrain\[cuda\]"):
        cuda.Cuda().launch(on(0), "exp", b"")


def test_a_torch_without_cuda(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch for AMD's cards calls them cuda too."""
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match=r"was built without CUDA, .* install a torch for CUDA"):
        cuda.Cuda().launch(on(0), "exp", b"")


@pytest.mark.parametrize(
    "error", [AssertionError("Torch not compiled with CUDA enabled"), RuntimeError("The NVIDIA driver is too old")]
)
def test_why_there_is_no_device(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(DEVICE, "cuda")
    with pytest.raises(UnsupportedError, match=rf"finds no such device here \({error}\); leave it out"):
        chosen_device()
