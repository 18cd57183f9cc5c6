"""Numbers of a transcript or a trace as people read them. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_METRIC = re.compile(r"(F64|F32|BF16|F16|I64):([0-9a-f]{1,16})")
_BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "I64": 64}
_SHOWN = 60  # characters of a text that a run brought along


def metric(text: str) -> str:
    """A metric's bits, such as ``F32:3f800000``, as the shortest decimal number that has them; else the text."""
    found = _number(text)
    return text[:_SHOWN] if found is None else str(found)


def metric_value(text: str) -> float:
    """The number that a leaf's metric commits to; NaN where the bits are of no number.

    Args:
        text: as ``vtrain.commit.leaf`` lets it pass.
    """
    found = _number(text)
    return math.nan if found is None else float(found)


def _number(text: str) -> Any:
    """A metric's number, as NumPy has it in its own width; None where the text is no metric."""
    found = _METRIC.fullmatch(text)
    if found is None or int(found[2], 16) >= 1 << _BITS[found[1]]:
        return None
    kind, bits = found[1], int(found[2], 16)
    if kind == "BF16":
        kind, bits = "F32", bits << 16
    word = np.array([bits], dtype=f"<u{_BITS[kind] // 8}")
    return word.view({"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}[kind])[0]


def argument(value: Any) -> str:
    """An operation's argument, as traces write it."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return str(value)[:_SHOWN]
    ((kind, content),) = value.items()
    if kind == "float" and isinstance(content, str) and "0x" in content:
        try:
            return repr(float.fromhex(content))
        except (ValueError, OverflowError):
            pass
    return f"a tensor ({content})"[:_SHOWN] if kind == "tensor" else str(content)[:_SHOWN]


def differing(theirs: Any, mine: Any, path: str = "") -> Iterator[str]:
    """Where two operations' arguments differ: ``argument 1 is 0.5 in the run, 0.25 here``."""
    inner = [_parts(value) for value in (theirs, mine)]
    if inner[0] is None or inner[1] is None:
        if theirs != mine or type(theirs) is not type(mine):
            yield f"{path or 'it'} is {argument(theirs)} in the run, {argument(mine)} here"
        return
    for key in [*inner[0], *(k for k in inner[1] if k not in inner[0])]:
        at = f"{path}.{key}" if path and path != "argument" else f"argument {key}"
        if key in inner[0] and key in inner[1]:
            yield from differing(inner[0][key], inner[1][key], at)
        else:
            yield f"{at} is only {'in the run' if key in inner[0] else 'here'}"


def _parts(value: Any) -> dict[str, Any] | None:
    """What an argument consists of; None if it is one value."""
    if isinstance(value, list):
        return {str(i): v for i, v in enumerate(value)}
    if isinstance(value, Mapping):
        if isinstance(value.get("dict"), Mapping) and len(value) == 1:
            return dict(value["dict"])
        if value.keys() == {"args", "kwargs"}:  # a whole operation
            inner = (_parts(value["args"]), _parts(value["kwargs"]))
            return {**(inner[0] or {}), **(inner[1] or {})}
        if len(value) != 1:
            return dict(value)
    return None
