"""Where in the user's code something happened, for messages."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback

import torch

from vtrain.errors import UnsupportedOperation

_HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_OURS = tuple(os.path.join(_HERE, name, "") for name in ("vtrain", "trainer", "auditor"))
_PACKAGES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
_SKIPPED = (os.path.dirname(torch.__file__), *_OURS, "<")


def _is_library(file: str) -> bool:
    """Whether a file is torch's, vtrain's or Python's own; installed packages are the user's choice."""
    if file.startswith(_SKIPPED):
        return True
    return file.startswith(sysconfig.get_path("stdlib")) and not file.startswith(_PACKAGES)


def user_line() -> str:
    """``file:line in function`` of the innermost frame that is neither torch's, vtrain's nor Python's."""
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if not _is_library(frame.filename):
            return _shown(frame)
    return "unknown line"


def said(error: BaseException) -> str:
    """What an error of the user's code says, and where, in one line: the innermost line of theirs that led to it.

    A line of theirs in a file of their own comes before one of an installed package, which theirs called.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}".removesuffix(": ")
    if isinstance(error, SyntaxError):  # it says where itself
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    own = [f for f in frames if not f.filename.startswith(_PACKAGES)] or frames
    return f"{text} ({_shown(own[-1])})" if own else text


def _shown(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ")


def unsupported(name: str, why: str) -> UnsupportedOperation:
    """The error for an operation that can't be run under audit: what, where, and what to do about it."""
    return UnsupportedOperation(
        f"{name}: {why}\n  called from {user_line()}\n  register a handler: "
        f"@vtrain.engine.optable.register({name.removeprefix('aten.')!r}) def handler(engine, *args, **kwargs); "
        f"see CONTRIBUTING.md, 'Add an operation'"
    )
