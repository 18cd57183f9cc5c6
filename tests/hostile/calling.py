"""Commands called on a hostile run: what they raise, their exit code, and that nothing else changes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from guard import GIB, confined
from run_helpers import tree_bytes

import vtrain.cli
from vtrain.errors import VtrainError

HERE = Path(__file__).parent
COMMANDS = ("verify", "audit")
DEADLINE = 60.0


def refused(
    run: Path, error: type[VtrainError], text: str = "", commands: tuple[str, ...] = COMMANDS, code: int = 3
) -> None:
    """Each command raises exactly this error, soon, and touches nothing."""
    for command in commands:
        before = tree_bytes(run)
        with pytest.raises(VtrainError, match=text or None) as caught, confined(run.parent / "nothing", DEADLINE):
            vtrain.cli.group.main([command, str(run)], standalone_mode=False)
        assert type(caught.value) is error, f"{command}: {caught.value!r}"
        assert caught.value.exit_code == code
        assert tree_bytes(run) == before


def limited(*arguments: str | Path, code: int, text: str = "", memory: int = GIB) -> str:
    """A command in a process that may map 1 GiB, and takes less than ``memory``; what it printed."""
    command = [sys.executable, str(HERE / "limited.py"), str(GIB), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-3000:]
    assert text in said and "Traceback" not in said
    grown = re.search(r"grown (\d+)", said)
    assert grown is not None and int(grown[1]) < memory, said[-500:]
    return said
