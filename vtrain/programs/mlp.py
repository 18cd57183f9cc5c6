"""A small multilayer perceptron, for first steps and tests: needs nothing but torch."""

from __future__ import annotations

import torch

from vtrain.engine.jobs.program import Program
from vtrain.programs.vision import cross_entropy


def perceptron(inputs: int = 3072, hidden: int = 64, classes: int = 10, dropout: float = 0.1) -> Program:
    """Two hidden layers with ReLU and dropout on flattened ``{"image", "label"}``."""
    net = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(inputs, hidden),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(hidden, hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(hidden, classes),
    )
    return Program(net, cross_entropy)
