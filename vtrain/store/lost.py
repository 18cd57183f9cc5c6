"""Steps that were done and whose checkpoint never came: who resumes a run does them again, and alike (protocol §3)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from vtrain.commit.leaf import Leaf, leaf_from_json
from vtrain.errors import TranscriptError
from vtrain.store import transcript
from vtrain.store.atomic import storage_errors
from vtrain.store.layout import Layout

MACHINE = "machine"  # in metrics.jsonl: digest of what a process ran on, beside the first step that it did


@dataclass(frozen=True)
class LostStep:
    """One of them.

    Attributes:
        leaf: what it had committed to.
        machine: digest of what it was done on; empty where that is not known.
    """

    leaf: Leaf
    machine: str


def lost_steps(layout: Layout, line_count: int) -> dict[int, LostStep]:
    """The steps behind the first ``line_count`` lines of a run's transcript, by number; to be read before it is cut."""
    if not layout.transcript.exists():
        return {}
    machines = _machines(layout)
    lines = transcript.read(layout.transcript).lines
    step = sum(value["type"] == "leaf" for _, value in lines[:line_count])
    found: dict[int, LostStep] = {}
    for _, value in lines[line_count:]:
        if value["type"] != "leaf":
            continue
        try:
            leaf = leaf_from_json(value, step)
        except TranscriptError:
            break
        found[step] = LostStep(leaf, machines.get(step, ""))
        step += 1
    return found


def _machines(layout: Layout) -> dict[int, str]:
    found: dict[int, str] = {}
    last = ""
    if not layout.metrics.exists():
        return found
    with storage_errors(layout.metrics):
        text = layout.metrics.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        try:
            values = json.loads(line)
            last = str(values.get(MACHINE, last))
            found[int(values["step"])] = last
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # torn
    return found
