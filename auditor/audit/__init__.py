"""Replaying a run: the plan, the replay of each segment and by whom, what it keeps, and whole loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.audit.auditing import Request, audit
    from auditor.audit.segment import Found

__all__ = ["Found", "Request", "audit"]


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: what is kept of an audit is read without it.
    if name in __all__:
        import auditor.audit.auditing as module

        return getattr(module, name)
    raise AttributeError(f"module 'auditor.audit' has no attribute {name!r}")
