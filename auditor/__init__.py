"""The auditor: verifies evidence, replays runs, and issues verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.audit.loop import Replaying, replay
    from auditor.verdict import Verdict

__all__ = ["Replaying", "Verdict", "replay"]


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: verification works without it.
    if name == "Verdict":
        from auditor.verdict import Verdict

        return Verdict
    if name in __all__:
        import auditor.audit.loop as module

        return getattr(module, name)
    raise AttributeError(f"module 'auditor' has no attribute {name!r}")
