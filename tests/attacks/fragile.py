"""A program whose process dies in the middle of a segment, where a test wants it to; otherwise a perceptron."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from vtrain import Program
from vtrain.programs.mlp import perceptron

# Where a test says whom to kill: the name of a file. "once-..." is consumed by the first process that finds it.
VARIABLE = "VTRAIN_TEST_FRAGILE"


def fragile(**config: Any) -> Program:
    """The perceptron, with a loss that looks for the file."""
    program = perceptron(**config)
    loss = program.loss

    def dying(model: Any, batch: Any) -> Any:
        name = os.environ.get(VARIABLE)
        if name is not None:
            _perhaps_die(Path(name))
        return loss(model, batch)

    return Program(program.model, dying)


def _perhaps_die(wish: Path) -> None:
    try:
        wish.unlink() if wish.name.startswith("once") else wish.stat()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
