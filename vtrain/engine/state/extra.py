"""Objects of a loop beyond its model and optimizer: schedules, second optimizers, averages of weights, scalers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from vtrain.errors import UsageError

Extra: TypeAlias = (
    Mapping[str, Any] | Callable[[torch.nn.Module, torch.optim.Optimizer | None], Mapping[str, Any]] | None
)


def objects(extra: Extra, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """The ``extra`` objects by name.

    Raises:
        UsageError: one can't be kept and put back.
    """
    made = extra(model, optimizer) if callable(extra) else extra
    if made is None:
        return {}
    if not isinstance(made, Mapping):
        raise UsageError(
            f"extra is a {type(made).__name__}; want a dict of objects by name, or a function that makes it"
        )
    for name, o in made.items():
        missing = [m for m in ("state_dict", "load_state_dict") if not callable(getattr(o, m, None))]
        if missing or not isinstance(name, str):
            raise UsageError(
                f"extra[{name!r}] is a {type(o).__name__}, which has no {' and no '.join(missing)}; want objects with "
                "state_dict() and load_state_dict(), such as a scheduler, an optimizer or a module"
            )
    return dict(made)
