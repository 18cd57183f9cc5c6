"""Where in the user's code something happened, for messages."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback

import torch

from vtrain.errors import UnsupportedOperation

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PACKAGES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
_SKIPPED = (os.path.dirname(torch.__file__), _HERE, "<")


def _is_library(file: str) -> bool:
    """Whether a file is torch's, vtrain's or Python's own; installed packages are the user's choice."""
    if file.startswith(_SKIPPED):
        return True
    return file.startswith(sysconfig.get_path("stdlib")) and not file.startswith(_PACKAGES)


def user_line() -> str:
    """``file:line in function`` of the innermost frame that is neither torch's, vtrain's nor Python's."""
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if not _is_library(frame.filename):
            return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ")
    return "unknown line"


def unsupported(name: str, why: str) -> UnsupportedOperation:
    """The error for an operation that can't be run under audit: what, where, and what to do about it."""
    return UnsupportedOperation(
        f"{name}: {why}\n  called from {user_line()}\n  register a handler: "
        f"@vtrain.engine.optable.register({name.removeprefix('aten.')!r}) def handler(engine, *args, **kwargs); "
        f"see CONTRIBUTING.md, 'Add an operation'"
    )
