"""The processes that vtrain starts, all of them: none imports from the current directory. Imports no torch.

``-P`` keeps Python itself from it, ``PYTHONSAFEPATH`` whatever that process starts, and the entries of PYTHONPATH that
mean the current directory are left out (``vtrain.searchpath``).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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


def _started(
    arguments: tuple[str, ...], profile: str | None = None, variables: Mapping[str, str] | None = None,
    folder: Path | None = None, tool: str = "",
) -> tuple[list[str], dict[str, str]]:  # fmt: skip
    """The command and the environment of ``run``."""
    env = dict(os.environ) if profile is None else profile_environment(profile)
    return [*tool.split(), *_command(arguments)], _safe({**env, **(variables or {})}, folder)


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

    command, env = _started(arguments, profile, variables, folder, tool)
    return subprocess.run(command, env=env, text=True, **how)


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: its exit status; None where its time was up.
        out, err: what it printed, so far.
    """

    code: int | None
    out: str
    err: str


def bounded(
    seconds: float, *arguments: str, each: Callable[[str], None] = lambda line: None, alone: bool = False, **what: Any
) -> Ended:
    """``run`` for so long at most, after which the process is killed; what it printed is kept.

    Args:
        seconds: that it may take.
        arguments: Python's.
        each: called with each line of its output as it comes.
        alone: in a process group of its own, of which nothing is left when it has ended.
        what: ``profile``, ``variables``, ``folder`` and ``tool`` of ``run``.

    Raises:
        FileNotFoundError: there is no such tool.
    """
    import subprocess

    command, env = _started(arguments, **what)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=env, text=True, errors="replace", start_new_session=alone, **pipes)
    out: list[str] = []
    err: list[str] = []
    readers = [
        threading.Thread(target=_read, args=(process.stdout, out, each), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, err, lambda line: None), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        code: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _kill(process, alone)
        for reader in readers:
            reader.join(5)  # a process that it started, and that outlives it, may hold the pipe
    return Ended(code, "".join(out), "".join(err))


def _read(pipe: Any, lines: list[str], each: Callable[[str], None]) -> None:
    for line in pipe:
        lines.append(line)
        each(line)


def _kill(process: Any, group: bool) -> None:
    with suppress(ProcessLookupError):
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


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
