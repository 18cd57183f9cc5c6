"""``vtrain.record`` and ``vtrain.replay``: the roles' packages, found where vtrain itself lies. Imports no torch.

``trainer`` and ``auditor`` are top-level packages, and a script's own ``trainer.py`` comes before them on its search
path. Then ours is imported out of sight: while that lasts it has the name, and afterwards the script's has it again, as
if ours were not there. What ``record`` and ``replay`` need is imported by then; they import nothing of ours later.

This is the one place in ``vtrain`` that leads to the roles: nothing in it depends on them.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parents[1]
_LOCK = threading.Lock()
_hidden: dict[str, ModuleType] = {}


def load(name: str) -> ModuleType:
    """A module of ours by its dotted name, whatever else the first part of the name is here.

    Args:
        name: such as ``trainer.loop``.
    """
    package = name.partition(".")[0]
    with _LOCK:
        if _is_ours(package):
            return importlib.import_module(name)
        if name not in _hidden:
            _hidden[name] = _out_of_sight(package, name)
        return _hidden[name]


def _is_ours(package: str) -> bool:
    """Whether an import statement finds our package."""
    there = sys.modules.get(package)
    try:
        spec = there.__spec__ if there is not None else find_spec(package)
    except ValueError:  # a module without a specification
        return False
    wanted = HOME / package / "__init__.py"
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == wanted


def _out_of_sight(package: str, name: str) -> ModuleType:
    aside = _take(package)
    try:
        folder = HOME / package
        spec = spec_from_file_location(package, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[package] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
        return importlib.import_module(name)
    finally:
        _take(package)
        sys.modules.update(aside)


def _take(package: str) -> dict[str, ModuleType]:
    """Remove a package and its modules from those that are imported."""
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}
