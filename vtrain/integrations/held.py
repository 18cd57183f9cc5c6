"""What a class of one's own keeps in its ``transformers.Trainer`` from step to step, as a part of a checkpoint.

TRL's ``GRPOTrainer`` generates completions in one step and trains on them in the next ones; how far it is, and what it
holds, stand in attributes that Trainer's own state knows nothing of.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vtrain.engine.state import attributes, nest


class Held:
    """A trainer's attributes that are integers or hold tensors, and changed since this was made.

    Numbers with a fraction are left out: they are times, and sums for the log. So is what Trainer's own code assigns,
    which its own state brings back, or the loop begins with.

    Args:
        trainer: whose.
        without: names of attributes that are no part of it.
    """

    def __init__(self, trainer: Any, without: frozenset[str]) -> None:
        self._trainer, self._without = trainer, without | _assigned_by(type(trainer))
        self._begun = {name: attributes.print_of(value) for name, value in self._values()}
        self._alive = pytree.tree_leaves([value for _, value in self._values()])  # a print is by identity

    def _values(self) -> Iterator[tuple[str, Any]]:
        for name, value in vars(self._trainer).items():
            if name not in self._without and _counts(value):
                yield name, value

    def state_dict(self) -> dict[str, Any]:
        """The attributes by name; those that can't be kept are left out."""
        return {n: v for n, v in self._values() if attributes.print_of(v) != self._begun.get(n) and nest.keepable(v)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        for name, value in state.items():
            setattr(self._trainer, name, value)


def _counts(value: Any) -> bool:
    if isinstance(value, int):
        return True
    is_nest = isinstance(value, torch.Tensor | list | tuple | dict)
    return is_nest and any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _assigned_by(kind: type) -> frozenset[str]:
    """Names that transformers' classes among a class's bases assign to ``self``."""
    bases = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "transformers"]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(base))) for base in bases]
    return frozenset(
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Name) and node.value.id == "self"
    )
