"""What a recorded loop began with, as its job says nothing of it: classes and files (``vtrain.store.identity``)."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from vtrain.errors import StorageError
from vtrain.roles import HOME
from vtrain.store.identity import LoopFacts

# whose operation table the job names, and whose version the statement; a script may have a trainer.py of its own
_OURS = tuple(Path(os.path.realpath(HOME / name)) for name in ("vtrain", "trainer", "auditor"))


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
    folder, are none of the script's, nor are vtrain's own. Empty where no file runs (a notebook, ``python -c``, an
    archive), or an installed one does.

    Raises:
        StorageError: a file can't be read.
    """
    script = _file_of(sys.modules.get("__main__"))
    if script is None or not script.is_file() or _is_installed(script.parent):
        return {}
    try:
        return {
            _name(path.relative_to(script.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted({script, *_imported_from(script.parent)})
        }
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}: a source file of the loop") from error


def _imported_from(folder: Path) -> Iterator[Path]:
    for module in list(sys.modules.values()):
        path = _file_of(module)
        if path is None or not path.is_relative_to(folder) or any(path.is_relative_to(ours) for ours in _OURS):
            continue
        if not _is_installed(path.parent) and path.is_file():
            yield path


def _file_of(module: object) -> Path | None:
    name = getattr(module, "__dict__", {}).get("__file__")  # some lazy modules import much where asked by getattr
    return _real(os.path.dirname(name)) / os.path.basename(name) if isinstance(name, str) else None


@cache
def _real(directory: str) -> Path:
    return Path(os.path.realpath(directory))


@cache
def _is_installed(directory: Path) -> bool:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    places = {Path(os.path.realpath(found)) for kind in kinds if (found := sysconfig.get_path(kind))}
    return "site-packages" in directory.parts or any(directory.is_relative_to(place) for place in places)


def _name(path: Path) -> str:
    """Text for any file name: bytes that are no UTF-8, and control characters, are escaped."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
