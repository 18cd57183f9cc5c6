"""A job's program whose model lies on the device that an environment variable names: each side's own choice."""

from __future__ import annotations

import os

from vtrain.engine.jobs.program import Program
from vtrain.programs import mlp


def perceptron(inputs: int, hidden: int) -> Program:
    """The built-in one, on a device."""
    made = mlp.perceptron(inputs, hidden)
    made.model.to(os.environ.get("VTRAIN_TEST_DEVICE", "cpu"))
    return made
