"""Compile the kernels for CUDA devices with NVRTC, from the sources that the host build uses too.

NVRTC sees only what is given to it here: sources in memory, a fixed set of flags, no include path. The code is
thus a function of sources, flags, NVRTC's version and the architecture, and is cached by a digest of these.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Literal

from vtrain.errors import BackendError, StorageError

Kind = Literal["ptx", "cubin"]

FLAGS = (
    "--std=c++17",
    "--fmad=false",  # a product and a sum stay two roundings unless the source says fma
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--device-as-default-execution-space",  # constexpr functions and lambdas of the shared headers carry no mark
    "--no-source-include",  # the working directory must not contribute headers
)
MAIN = "device.cu"

_ROOT = Path(__file__).parent
_SUFFIXES = {".hpp", ".cu"}
_INCLUDE = re.compile(rb'^([ \t]*#[ \t]*include[ \t]*)"([^"\n]+)"', re.MULTILINE)


def sources() -> dict[str, bytes]:
    """Device sources by path relative to this folder, with ``/`` between folders; what only the host uses is left out.

    Raises:
        BackendError: a file can't be read.
    """
    found = {}
    try:
        for path in sorted(_ROOT.rglob("*")):
            name = path.relative_to(_ROOT).as_posix()
            if path.suffix in _SUFFIXES and not name.startswith("host/") and path.is_file():
                found[name] = path.read_bytes()
    except OSError as error:
        raise BackendError(f"the kernels' sources can't be read: {error}") from error
    return found


def _digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over parts, each behind its length, so that no two lists of parts give the same bytes."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def source_digest() -> str:
    """Digest of all device sources and flags, whatever the NVRTC: ``sha256:<hex>``."""
    files = sources()
    parts = [str(len(files)).encode()]
    for name in sorted(files):
        parts += [name.encode(), files[name]]
    return "sha256:" + _digest([*parts, *(flag.encode() for flag in FLAGS)])


def _nvrtc() -> ModuleType:
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"NVRTC, CUDA's run-time compiler, is missing: install vtrain[cuda] ({error})") from error
    return nvrtc


def version() -> tuple[int, int]:
    """NVRTC's version.

    Raises:
        BackendError: NVRTC is missing.
    """
    major, minor = _nvrtc().getVersion()
    return int(major), int(minor)


def architectures() -> tuple[int, ...]:
    """Architectures that NVRTC knows, ascending; 75 is sm_75.

    Raises:
        BackendError: NVRTC is missing.
    """
    return tuple(sorted(int(number) for number in _nvrtc().getSupportedArchs()))


def _resolved(name: str, text: bytes, known: set[str]) -> bytes:
    """text with its includes written as paths from the root: NVRTC matches headers in memory by spelling only."""

    def canonical(match: re.Match[bytes]) -> bytes:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2].decode()))
        return match[1] + b'"' + target.encode() + b'"' if target in known else match[0]

    return _INCLUDE.sub(canonical, text)


def compile_source(text: str, arch: str, kind: Kind, *, flags: tuple[str, ...] = FLAGS, name: str = MAIN) -> bytes:
    """Compile one CUDA source, which may include the kernels' headers by their path from this folder.

    Args:
        arch: a real architecture, ``sm_80``; for PTX also a virtual one, ``compute_80``.
        kind: ``ptx`` for NVIDIA's assembly language, ``cubin`` for machine code.
        name: what messages call the source; includes are relative to its folder.

    Raises:
        BackendError: NVRTC is missing, or the source does not compile; then with NVRTC's log.
    """
    nvrtc = _nvrtc()
    headers = {path: body for path, body in sources().items() if path != MAIN}
    known = set(headers)
    bodies = tuple(_resolved(path, body, known) for path, body in headers.items())
    main = _resolved(name, text.encode(), known).decode()
    program = nvrtc.createProgram(main, name, bodies, tuple(path.encode() for path in headers))
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={arch}", *flags))
        return bytes(nvrtc.getPTX(program) if kind == "ptx" else nvrtc.getCUBIN(program))
    except (nvrtc.NVRTCError, RuntimeError) as error:
        log = nvrtc.getProgramLog(program).strip()
        raise BackendError(f"NVRTC can't compile {name} for {arch}: {error}\n{log}".rstrip()) from error
    finally:
        nvrtc.destroyProgram(program)


def compile(arch: str, kind: Kind) -> bytes:
    """Compile the kernels; arguments and errors as in ``compile_source``."""
    try:
        text = sources()[MAIN].decode()
    except KeyError:
        raise BackendError(f"{_ROOT / MAIN} is missing: the installation is incomplete") from None
    return compile_source(text, arch, kind)


def _folder() -> Path:
    """Per-user cache folder; a relative XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "vtrain" / "kernels"


def _write(path: Path, data: bytes) -> None:
    """Write data so that path is complete whenever it exists; readable by its owner only."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")  # creates with mode 0600
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cached(arch: str) -> Path:
    """The kernels' code for an architecture, compiled unless a file of these very sources is there.

    Args:
        arch: a real architecture, ``sm_80``, for machine code; a virtual one, ``compute_80``, for PTX.

    Raises:
        BackendError: as ``compile``.
        StorageError: the cache folder can't be written.
    """
    key = _digest([source_digest().encode(), "{}.{}".format(*version()).encode(), arch.encode()])
    kind: Kind = "cubin" if arch.startswith("sm_") else "ptx"
    path = _folder() / f"{key}.{kind}"
    if path.is_file():
        return path
    code = compile(arch, kind)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, code)
    except OSError as error:
        raise StorageError(f"the compiled kernels can't be stored in {path.parent}: {error}") from error
    return path
