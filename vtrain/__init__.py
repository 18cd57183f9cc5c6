"""Verifiable training for PyTorch: train on one kind of hardware, audit on another, equal in every bit."""

# Nothing is imported here: `python -m vtrain` reads this before it has left the current directory.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vtrain.engine.jobs.program import Program
    from vtrain.engine.seeded import seeded
    from vtrain.errors import Refuted, UnsupportedOperation, VtrainError
    from vtrain.policy import Policy

__version__ = "0.1.0"
__all__ = [
    "Policy", "Program", "Refuted", "UnsupportedOperation", "VtrainError", "__version__", "record", "replay", "seeded",
]  # fmt: skip

_HOME = {
    "Policy": "vtrain.policy",
    "Program": "vtrain.engine.jobs.program",
    "seeded": "vtrain.engine.seeded",
    "Refuted": "vtrain.errors",
    "UnsupportedOperation": "vtrain.errors",
    "VtrainError": "vtrain.errors",
}
_ROLES = {"record": "trainer.loop", "replay": "auditor.audit.loop"}


def __getattr__(name: str) -> "Any":
    # Importing vtrain imports neither torch nor pydantic: its parts do when they are asked for.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROLES:
        from vtrain import roles

        return getattr(roles.load(_ROLES[name]), name)
    raise AttributeError(f"module 'vtrain' has no attribute {name!r}")
