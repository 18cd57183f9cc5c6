"""Where in the user's code something happened, for messages."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback

import torch

from vtrain.errors import UnsupportedOperation

_HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_OURS = tuple(os.path.join(_HOME, name, "") for name in ("vtrain", "auditor", "trainer"))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_STDLIB = tuple({sysconfig.get_path("stdlib"), os.path.dirname(os.path.abspath(os.__file__))})


def _is_installed(file: str) -> bool:
    return any(folder in file for folder in _INSTALLED)


def _is_library(file: str) -> bool:
    """Whether a file is torch's, vtrain's or Python's own; installed packages are the user's choice."""
    if file.startswith((_TORCH + os.sep, *_OURS, "<")):
        return True
    return file.startswith(_STDLIB) and not _is_installed(file)


def _frames() -> list[traceback.FrameSummary]:
    """The caller's frames, innermost first, without vtrain's."""
    frames = traceback.extract_stack(sys._getframe(2))
    return [f for f in reversed(frames) if not f.filename.startswith(_OURS)]


def _user_frame(frames: list[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """The innermost frame that is neither torch's nor Python's; where all are, what was typed in, if anything."""
    # Python's generated methods, of dataclasses say, are of "<string>" too
    typed = (f for f in frames if f.filename in ("<stdin>", "<string>") and not f.name.startswith("__"))
    return next((f for f in frames if not _is_library(f.filename)), None) or next(typed, None)


def user_line() -> str:
    """``file:line in function`` of the innermost frame that is neither torch's, vtrain's nor Python's.

    Where that is an installed package's, the line that led there follows.
    """
    frames = _frames()
    frame = _user_frame(frames)
    if frame is None:
        return "unknown line"
    text = _shown(frame)
    own = _user_frame([f for f in frames if not _is_installed(f.filename)])
    if own is None or not _is_installed(frame.filename):
        return text
    return f"{text}\n    by way of {_shown(own)}"


def said(error: BaseException) -> str:
    """What an error of the user's code says, and where, in one line: the innermost line of theirs that led to it.

    A line of theirs in a file of their own comes before one of an installed package, which theirs called.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}".removesuffix(": ")
    if isinstance(error, SyntaxError):  # it says where itself
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    own = [f for f in frames if not _is_installed(f.filename)] or frames
    return f"{text} ({_shown(own[-1])})" if own else text


def _shown(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ")


def short_line() -> str:
    """``file:line`` of what called an operation, and of the user's line that led there, for a line of text."""
    frames = [f for f in _frames() if not f.filename.startswith("<frozen")]
    calling = next((f for f in frames if not f.filename.startswith(_SEAMS)), None)
    own = _user_frame([f for f in frames if not _is_installed(f.filename)]) or _user_frame(frames)
    if calling is None:
        return "unknown line"
    if own is None or own is calling:
        return _short(calling)
    return f"{_short(calling)} (called from {_short(own)})"


# what stands between a call and the operation that it dispatches
_SEAMS = tuple(os.path.join(_TORCH, name) for name in ("_tensor.py", "_ops.py", "_compile.py", "_decomp/", "_dynamo/",
               "utils/_python_dispatch.py", "utils/_contextlib.py", "utils/_device.py"))  # fmt: skip


def _short(frame: traceback.FrameSummary) -> str:
    """A frame's file, from its package's folder or the current one on, and line."""
    file = frame.filename
    if file.startswith(_TORCH + os.sep):
        file = "torch" + file[len(_TORCH) :]
    elif _is_installed(file):
        file = next(file.rpartition(folder)[2] for folder in _INSTALLED if folder in file)
    else:
        here = os.path.join(os.getcwd(), "")
        file = file.removeprefix(here)
    return f"{file}:{frame.lineno}"


def unsupported(name: str, why: str, register: bool = True) -> UnsupportedOperation:
    """The error for an operation that can't be run under audit: what, where, and what to do about it.

    Args:
        register: whether a handler could help.
    """
    advice = (
        f"\n  register a handler: @vtrain.engine.optable.register({name.removeprefix('aten.')!r}) "
        "def handler(engine, *args, **kwargs); see CONTRIBUTING.md, 'Add an operation'"
    )
    return UnsupportedOperation(f"{name}: {why}\n  called from {user_line()}{advice if register else ''}")
