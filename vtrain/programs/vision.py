"""Classifiers of ``torchvision`` from random initial weights."""

from __future__ import annotations

from typing import Any

import torch

from vtrain.engine.jobs.program import Program
from vtrain.errors import ProgramError


def cross_entropy(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Cross entropy of ``model(image)`` and ``label``."""
    return torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])


def classifier(name: str = "resnet18", classes: int = 10) -> Program:
    """A classification model of torchvision by name, on samples ``{"image", "label"}``.

    Raises:
        ProgramError: torchvision has no such model.
    """
    import torchvision

    try:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    except ValueError as error:
        raise ProgramError(str(error)) from error
    return Program(model, cross_entropy)
