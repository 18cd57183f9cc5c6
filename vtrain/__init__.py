"""Verifiable training for PyTorch: train on one kind of hardware, audit on another, equal in every bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtrain.errors import Refuted, UnsupportedOperation, VtrainError

if TYPE_CHECKING:
    from vtrain.engine.program import Program
    from vtrain.engine.seeded import seeded
    from vtrain.policy import Policy

__version__ = "0.1.0"
__all__ = ["Policy", "Program", "Refuted", "UnsupportedOperation", "VtrainError", "__version__", "seeded"]

_HOME = {"Policy": "vtrain.policy", "Program": "vtrain.engine.program", "seeded": "vtrain.engine.seeded"}


def __getattr__(name: str) -> Any:
    # Importing vtrain imports neither torch nor pydantic: its parts do when they are asked for.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vtrain' has no attribute {name!r}")
