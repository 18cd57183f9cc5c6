"""The trainer: records a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.loop import Recording, record

__all__ = ["Recording", "record"]


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: the command line lists commands without it.
    if name in __all__:
        import trainer.loop as module

        return getattr(module, name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
