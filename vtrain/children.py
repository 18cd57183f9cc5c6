"""The processes that vtrain starts, all of them: none imports from the current directory. Imports no torch.

``-P`` keeps Python itself from it, ``PYTHONSAFEPATH`` whatever that process starts, and the entries of PYTHONPATH that
mean the current directory are left out (``vtrain.searchpath``).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from vtrain import searchpath
from vtrain.errors import UnsupportedError
from vtrain.profiles import profile_environment

if TYPE_CHECKING:
    from subprocess import CompletedProcess

_lock = threading.Lock()
_outside: dict[str, str | None] = {}  # the variables as they are outside of all bodies, while there are any
_bodies = 0


def _safe(variables: dict[str, str], folder: Path | None = None) -> dict[str, str]:
    """These variables, so that a process doesn't import from the current directory, but from ``folder``."""
    kept = {**variables, searchpath.SAFE: "1"}
    entries = [str(folder)] if folder is not None else []
    entries += searchpath.named(kept.pop(searchpath.PATH, ""))
    return {**kept, searchpath.PATH: os.pathsep.join(entries)} if entries else kept


def _command(arguments: tuple[str, ...]) -> list[str]:
    flags = ["-I"] if sys.flags.isolated else ["-P", *["-E"] * sys.flags.ignore_environment]
    return [sys.executable, *flags, *["-s"] * sys.flags.no_user_site, *arguments]


def run(
    *arguments: str, profile: str | None = None, variables: Mapping[str, str] | None = None,
    folder: Path | None = None, tool: str = "", **how: Any,
) -> CompletedProcess[str]:  # fmt: skip
    """Run Python with these arguments, such as ``-m``, ``vtrain``, ``doctor``, to its end.

    Args:
        arguments: Python's.
        profile: whose arithmetic it has (``vtrain.profiles``); None for this process's.
        variables: added to the environment.
        folder: an absolute path that it may import from as well.
        tool: a program, with arguments of its own separated by spaces, that runs Python; such as ``compute-sanitizer``.
        how: as ``subprocess.run`` takes them, such as ``capture_output``.
    """
    import subprocess

    env = dict(os.environ) if profile is None else profile_environment(profile)
    command = [*tool.split(), *_command(arguments)]
    return subprocess.run(command, env=_safe({**env, **(variables or {})}, folder), text=True, **how)


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: its exit status; None where its time was up.
        out, err: what it printed, so far.
    """

    code: int | None
    out: str
    err: str


def bounded(seconds: float, *arguments: str, **how: Any) -> Ended:
    """``run`` for so long at most, after which the process is killed; what it printed is kept.

    Raises:
        FileNotFoundError: there is no such tool.
    """
    import subprocess

    try:
        done = run(*arguments, capture_output=True, timeout=seconds, **how)
    except subprocess.TimeoutExpired as late:
        texts = (t.decode("utf-8", "replace") if isinstance(t, bytes) else t or "" for t in (late.stdout, late.stderr))
        return Ended(None, *texts)
    return Ended(done.returncode, done.stdout, done.stderr)


def replace(*arguments: str, profile: str) -> NoReturn:
    """Replace this process by Python with these arguments, under a profile."""
    sys.stdout.flush()
    os.execve(sys.executable, _command(arguments), _safe(profile_environment(profile)))


@contextmanager
def safe_environment() -> Iterator[None]:
    """While the body runs, processes that others start from here don't import from the current directory either.

    Raises:
        UnsupportedError: this Python, and so its children, ignore the variable that keeps them from it.
    """
    if sys.flags.ignore_environment and not sys.flags.safe_path:
        raise UnsupportedError("python -E lets its children import from the current directory; want python -I or -E -P")
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    """Count the bodies that are running, in whatever thread: the first sets the variables, the last resets them."""
    global _bodies
    with _lock:
        if not _bodies:
            safe = _safe(dict(os.environ))
            for name in (searchpath.SAFE, searchpath.PATH):
                _outside[name] = os.environ.get(name)
                _set(name, safe.get(name))
        _bodies += change
        if not _bodies:
            for name, value in _outside.items():
                _set(name, value)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
