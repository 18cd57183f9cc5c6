"""What a recorded loop began with, as its job says nothing of it: classes and files (``vtrain.store.identity``)."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import torch

from vtrain.errors import StorageError
from vtrain.store.identity import LoopFacts


def loop_facts(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, state: str) -> LoopFacts:
    """What this process begins a loop with.

    Args:
        model: after the initialisation.
        optimizer: likewise; None for none.
        state: the state digest of step 0.

    Raises:
        StorageError: a source file can't be read.
    """
    modules = {path: type(module).__qualname__ for path, module in model.named_modules()}
    return LoopFacts(modules, "" if optimizer is None else type(optimizer).__qualname__, state, script_sources())


def script_sources() -> dict[str, str]:
    """SHA-256, hex, of the script that runs and of the modules imported so far from its folder, by path in that folder.

    Files are read as they lie on the disk now. Modules of the installation, such as a virtual environment below the
    folder, are none of the script's. Empty where no script runs (a notebook, ``python -c``), or an installed one does.

    Raises:
        StorageError: a file can't be read.
    """
    script = _file_of(sys.modules.get("__main__"))
    if script is None or _is_installed(script):
        return {}
    folder = script.parent
    files = {_file_of(module) for module in list(sys.modules.values())} | {script}
    own = sorted(f for f in files if f is not None and f.is_relative_to(folder) and not _is_installed(f))
    try:
        return {_name(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in own}
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}: a source file of the loop") from error


def _file_of(module: object) -> Path | None:
    name = getattr(module, "__file__", None)
    if not isinstance(name, str):
        return None
    path = Path(name).resolve()
    return path if path.is_file() else None


def _is_installed(path: Path) -> bool:
    places = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")}
    return "site-packages" in path.parts or any(path.is_relative_to(Path(p).resolve()) for p in places if p)


def _name(path: Path) -> str:
    """Text for any file name: bytes that are no UTF-8, and control characters, are escaped."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
