"""Doing one operation again, for a referee with PyTorch: operations without rounding freedom (protocol §8.3).

Canonical operations and single IEEE operations have the same bits on every machine; so whoever does one again knows
which side's result is wrong. Only operations of the operation table are run, on tensors that the record holds in full.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from auditor.dispute.tracing import blocks_of_tensor, plain_arguments
from vtrain.commit.blocks import Shown
from vtrain.commit.digest import TensorBytes
from vtrain.commit.trace import Event
from vtrain.engine.forms import form_of
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.engine.optable import OpClass
from vtrain.engine.session import Session
from vtrain.engine.state.tensors import to_tensor
from vtrain.errors import ProofError, UnsupportedError
from vtrain.policy import Policy

_NAME = re.compile(r"(aten|vtrain)\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


class _Deterministic:
    """A listener for operations in which nothing is settled."""

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        raise UnsupportedError(f"{site}: is logged, so that doing the operation again does not give its bits")

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        pass

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        return value


def outputs(event: Event, tensors: Mapping[str, Shown], policy: Policy, seed: int | str, step: int) -> dict[str, str]:
    """Digests of an operation's results by name, computed here.

    Args:
        event: what was done; hostile, but signed by both sides.
        tensors: its tensor arguments, complete.
        policy, seed: of the run.

    Raises:
        ProofError: no operation of the table, or arguments that don't fit it.
        UnsupportedError: an operation that draws random numbers or has settled results.
    """
    func = _operation(event.name)
    made = {name: _tensor(shown) for name, shown in tensors.items()}
    try:
        args, kwargs = _decoded(event.args["args"], made), _decoded(event.args["kwargs"], made)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ProofError(f"{event.name}: arguments of the wrong form: {error!r}"[:300]) from error
    with torch.no_grad(), Session(_Deterministic(), policy, seed).step(step):
        try:
            out = func(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ProofError(f"{event.name}: arguments that don't fit it: {error}"[:300]) from error
    results: dict[str, torch.Tensor] = {}
    plain_arguments(out, results, "")
    return {name: blocks_of_tensor(t).digest for name, t in results.items()}


def _operation(name: str) -> Any:
    found = _NAME.fullmatch(name)
    func = getattr(getattr(getattr(torch.ops, found[1]), found[2], None), found[3], None) if found else None
    form = form_of(func) if func is not None else None
    if form is None or form.entry.cls is OpClass.FORBIDDEN:
        raise ProofError(f"{name[:80]!r} is no operation of the table")
    if form.entry.cls is OpClass.RANDOM:
        raise UnsupportedError(f"{name} draws random numbers, whose place in the step one operation does not tell")
    return func


def _tensor(shown: Shown) -> torch.Tensor:
    head = shown.header
    if len(shown.blocks) != head.count:
        raise ProofError(f"a tensor of {head.count} blocks, of which {len(shown.blocks)} are shown")
    data = b"".join(shown.blocks[i] for i in range(head.count))
    return to_tensor(TensorBytes(head.dtype, head.shape, data))


def _decoded(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of ``tracing.plain_arguments``."""
    if isinstance(value, list):
        return [_decoded(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _decoded(v, tensors) for k, v in content.items()}
    if kind == "int":
        return int(content)
    if kind == "float":
        return float.fromhex(content) if "x" in content else _NUMBERS[content]
    return _text(content)


_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _text(text: str) -> Any:
    if text.startswith("torch."):
        constant = getattr(torch, text.removeprefix("torch."))
        if not isinstance(constant, _CONSTANTS):
            raise ValueError(text)
        return constant
    return torch.device("cpu") if text == "cpu" else text
