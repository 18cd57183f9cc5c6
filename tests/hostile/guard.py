"""Bounds around one call: its time, its memory, and what it may touch."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

GIB = 1 << 30
_CHANGES = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "shutil.rmtree", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
    "socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen", "compile",
}  # fmt: skip
_state: dict[str, Any] = {"allowed": None, "hooked": False, "seen": []}


class TooSlow(Exception):
    """A call took longer than it may."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    allowed = _state["allowed"]
    if allowed is None or threading.current_thread() is not threading.main_thread():
        return
    if event == "open":
        path, mode, flags = arguments
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (mode and set(mode) & set("wax+"))
        if writes and isinstance(path, str | os.PathLike) and not str(path).startswith(allowed):
            _state["seen"].append((event, str(path)))
    elif event in _CHANGES and not any(str(a).startswith(allowed) for a in arguments):
        _state["seen"].append((event, str(arguments)[:200]))


@contextmanager
def confined(folder: Path, seconds: float) -> Iterator[None]:
    """Run the body for at most ``seconds``; fails if it writes outside ``folder`` or starts anything."""
    if not _state["hooked"]:
        sys.addaudithook(_hook)
        _state["hooked"] = True

    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _state["allowed"], _state["seen"] = str(folder), []
    try:
        yield
    finally:
        _state["allowed"] = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not _state["seen"], _state["seen"]


def limit_memory(more: int = GIB) -> None:
    """Let this process map at most ``more`` bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def peak() -> int:
    """The most memory that this process had resident, in bytes; unlike ``ru_maxrss`` nothing of its parent's."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
