"""torch's device "emulated" (``device.cpp``), as strict as an accelerator and as near as the host's memory.

Importing this module compiles and loads it, and gives the framework a backend for it. It must be loaded before the
process does its first backward pass, in which autograd starts a thread for each device that it knows of.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtrain.kernels import device
from vtrain.kernels.launch import SIGNATURES
from vtrain.rounding.accumulators import Accumulator, modelled_sums

HERE = Path(__file__).parent
NAME = "emulated"
CACHE = "VTRAIN_EMULATED"  # a folder in which the compiled device is kept
Tensor = torch.Tensor


def compiler() -> str | None:
    """The C++ compiler; None where there is none."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def built(folder: Path) -> Path:
    """The compiled device, in ``folder``; compiled unless it is there (10 to 20 seconds)."""
    source = HERE / "device.cpp"
    parts = [source.read_bytes(), (HERE / "streams.hpp").read_bytes(), torch.__version__.encode()]
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    library = folder / f"emulated-{key}.so"
    if library.exists():
        return library
    found = compiler()
    assert found is not None, "no C++ compiler"
    root = Path(torch.__file__).parent
    includes = [f"-I{root / path}" for path in ("include", "include/torch/csrc/api/include")]
    links = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    half = library.with_suffix(f".{os.getpid()}")
    options = ["-std=c++20", "-O0", "-fPIC", "-shared", "-w", abi, *includes]
    subprocess.run([found, *options, str(source), *links, "-o", str(half)], check=True)
    half.replace(library)
    return library


# ---- torch's module of the device --------------------------------------------------------------------------------
def _module() -> Any:
    ops = torch.ops.emulated
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.default_generators = tuple(ops.default_generator(i) for i in range(2))

    def index(where: Any = None) -> int:
        found = torch.device(NAME if where is None else where) if not isinstance(where, int) else where
        found = found if isinstance(found, int) else found.index
        return ops.current_device() if found is None else found

    @contextlib.contextmanager
    def chosen(where: Any) -> Iterator[None]:
        before = ops.current_device()
        ops.set_device(index(where))
        try:
            yield
        finally:
            ops.set_device(before)

    def manual_seed_all(seed: int) -> None:
        for generator in module.default_generators:
            generator.manual_seed(seed)

    module.is_available, module.is_initialized, module._is_in_bad_fork = (lambda: True), (lambda: True), (lambda: False)
    module.device_count, module.current_device, module.set_device = (lambda: 2), ops.current_device, ops.set_device
    module.device, module.synchronize = chosen, lambda where=None: ops.synchronize(index(where))
    module.get_device_name = lambda where=None: f"an emulated device, number {index(where)}"
    module.manual_seed_all = manual_seed_all
    module.get_rng_state = lambda where=None: module.default_generators[index(where)].get_state()
    module.set_rng_state = lambda state, where=None: module.default_generators[index(where)].set_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return module


# ---- launching -----------------------------------------------------------------------------------------------------
class Emulated:
    """Runs kernels in the PTX interpreter where their memory is small, and in the host's table elsewhere.

    Attributes:
        most: bytes of all blocks of a launch up to which its PTX is interpreted; 0 for never.
        multiplied: how many products its units did.
        launched: names of the kernels that were launched, each with how it ran ("ptx" or "host").
        units: what the device's matrix units add by; None for a device without.
        recent: what ``lost`` names.
        damage: called with the name of each kernel and its blocks as ``(address, size)``, when it has run.
        stream: the number of the stream on which a device's kernels are launched: its current one.
    """

    precisions: tuple[tuple[str, str], ...] = ()
    libraries: tuple[device.Switch, ...] = ()
    flags: dict[str, Callable[[], object]] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.most = 0
        self.recent: tuple[str, ...] = ()
        self.launched: set[tuple[str, str]] = set()
        self.units: Accumulator | None = None
        self.multiplied = 0
        self.damage: Callable[[str, list[tuple[int, int]]], None] | None = None
        self.stream: Callable[[int], int] = lambda index: torch.ops.emulated.current_stream(index)
        self._machine: Any = None

    def matrix_units(self, where: torch.device) -> Accumulator | None:
        return self.units

    def matrix_product(self, a: Tensor, b: Tensor) -> Tensor:
        assert self.units is not None and a.dtype in (torch.bfloat16, torch.float16)
        self.multiplied += 1
        left, right = a.cpu().unsqueeze(-2), b.cpu().mT.unsqueeze(-3)
        left, right = torch.broadcast_tensors(left, right)
        sums = modelled_sums(left.reshape(-1, a.shape[-1]), right.reshape(-1, a.shape[-1]), self.units)
        return sums.float().view(*a.shape[:-1], b.shape[-1]).to(a.device)

    def absent(self) -> str:
        return ""

    def lost(self) -> str:
        return f"The last kernels were: {', '.join(self.recent)}." if self.recent else ""

    def launch(self, where: torch.device, name: str, arguments: bytes) -> None:
        words = np.frombuffer(arguments, "<i8")
        blocks: dict[int, int] = {}
        for place, (kind, word) in enumerate(zip(SIGNATURES[name], words.tolist(), strict=True)):
            if kind == "p" and word:
                begin, size = torch.ops.emulated.block_of(word, where.index or 0)
                if begin < 0:
                    raise RuntimeError(f"kernel {name}: argument {place} is no address of {where}: an illegal access")
                blocks[begin] = size
        small = sum(blocks.values()) <= self.most
        self.launched.add((name, "ptx" if small else "host"))
        index = where.index or 0
        stream = self.stream(index)
        torch.ops.emulated.begin(list(blocks), index, stream)
        if small:
            self._interpret(name, words, blocks)
        else:
            device.Host().launch(where, name, arguments)
        torch.ops.emulated.end(index, stream)
        if self.damage is not None:
            self.damage(name, list(blocks.items()))

    def _interpret(self, name: str, words: np.ndarray, blocks: dict[int, int]) -> None:
        """Run the PTX on copies of the blocks, in memory of the interpreter's own, and copy them back."""
        machine = self._loaded()
        held = {}
        for begin, size in blocks.items():
            held[begin] = machine.array(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(begin)).copy())
        moved = words.copy()
        for place, kind in enumerate(SIGNATURES[name]):
            if kind == "p" and words[place]:
                begin = max(b for b in blocks if b <= words[place])
                moved[place] += held[begin].address - begin
        machine.launch(f"vt_{name}", grid=(2, 1, 1), block=(128, 1, 1), args=[moved.tobytes()])
        for begin, array in held.items():
            data = array.get().tobytes()
            ctypes.memmove(begin, data, len(data))

    def _loaded(self) -> Any:
        if self._machine is None:
            sys.path[:0] = [str(HERE.parent / "kernels" / "ptx")]
            from interpreter import Machine
            from ptx import parse

            from vtrain.kernels import nvrtc

            self._machine = Machine(parse(nvrtc.compile("compute_80", "ptx").decode()))
        return self._machine


BACKEND = Emulated()


def load() -> None:
    """Load the device into this process, once."""
    if hasattr(torch, NAME):
        return
    torch.ops.load_library(str(built(Path(os.environ.get(CACHE) or tempfile.mkdtemp()))))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    device.register(NAME, BACKEND)


def for_a_process() -> None:
    """What a process that loads the device as it starts is told by its environment.

    As it ends, the number of violations goes into the file that ``EMULATED_REPORT`` names. ``EMULATED_DAMAGE`` names a
    kernel whose results get another bit; with ``:beyond`` it writes beyond its memory, with ``:crash`` it ends all.
    """
    path = os.environ.get("EMULATED_REPORT")
    if path:
        atexit.register(lambda: Path(path).write_text(str(torch.ops.emulated.violations())))
    kernel, _, how = os.environ.get("EMULATED_DAMAGE", "").partition(":")

    def damage(name: str, blocks: list[tuple[int, int]]) -> None:
        if name != kernel:
            return
        if how == "crash":
            os.abort()
        for address, size in blocks:
            (ctypes.c_uint8).from_address(address + (size if how else 0)).value ^= 1

    BACKEND.damage = damage if kernel else None


load()
