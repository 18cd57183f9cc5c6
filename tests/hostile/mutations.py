"""Ways to spoil valid input, for fuzzing: of bytes, and of JSON by its structure. All are drawn by hypothesis."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Sizes and counts that overflow something, somewhere.
NUMBERS = (0, 1, -1, 7, 255, 256, 2**16, 2**31 - 1, 2**32, 2**48, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
STRANGE: tuple[Any, ...] = (
    None, True, False, "", "x", "\0", "\u00fc\u2028", "\x1b[2J", "a" * 5000, "../../x", "/etc/passwd", "0x1p5000",
    "1e3", 1.0, -0.0, 1e400, math.nan, 10**30, [], {}, [[]], [0], ["", ""], {"": ""}, [[[[[[[[]]]]]]]], "0" * 64,
    "F32:3f800000", *NUMBERS,
)  # fmt: skip
DEEP = "\ue000"  # stands for JSON nested too deeply to build as a value

Step = tuple[int, float, float, Any]
steps = st.tuples(st.integers(0, 9), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True),
                  st.sampled_from(STRANGE))  # fmt: skip
plans = st.lists(steps, min_size=1, max_size=4)


def spoil_bytes(data: bytes, plan: list[Step], other: bytes) -> bytes:
    """Bytes with each step of a plan done to them."""
    for kind, a, b, value in plan:
        at, length = int(a * len(data)), 1 + int(b * 64)
        end = min(len(data), at + length)
        if kind <= 1 and data:
            data = data[:at] + bytes([data[at] ^ 1 << int(b * 8)]) + data[at + 1 :]
        elif kind == 2:
            number = value if isinstance(value, int) else len(data)
            data = data[:at] + (int(number) % 2**64).to_bytes(8, "little") + data[at + 8 :]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data = data[:at] + data[end:]
        elif kind == 5:
            data = data[:end] + data[at:end] * (1 + int(b * 100)) + data[end:]
        elif kind == 6:
            data = data[:at] + other[int(b * len(other)) :][:200] + data[at:]
        elif kind == 7:
            data = data[:at] + bytes(length) + data[end:]
        elif kind == 8:
            data = data[:at] + repr(value).encode("utf-8", "surrogateescape") + data[end:]
        else:
            data += data[at:end]
    return data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def spoil_json(data: bytes, plan: list[Step], other: bytes) -> bytes:
    """A JSON text whose value has each step of a plan done to it; canonical but for what can't be."""
    box = [json.loads(data)]
    text_steps: list[Step] = []
    for step in plan:
        kind, a, b, value = copy.deepcopy(step)
        places = list(_places(box))
        if not places:
            break
        container, key = places[int(a * len(places))]
        if kind <= 3:
            container[key] = value
        elif kind == 4:
            del container[key]
        elif kind == 5 and isinstance(container, dict):
            container[str(value)[:50]] = container.pop(key)
        elif kind == 6 and isinstance(container, dict):
            container[f"extra{int(b * 9)}"] = value
        elif kind == 7 and isinstance(container, list):
            container.extend([container[key]] * int(b * 50))
        elif kind == 8:
            container[key] = DEEP * (1 + int(b * 2))
        else:
            text_steps.append(step)
    text = json.dumps(box[0] if box else None, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = text.replace(f'"{DEEP}"', "[" * 60 + "]" * 60).replace(f'"{DEEP * 2}"', "[" * 20_000)
    return spoil_bytes(text.encode("utf-8", "surrogatepass"), text_steps, other)
