"""The trace of one step: what it did, operation by operation, as leaves of an RFC 6962 tree (protocol §8).

An event is RFC 8785 JSON. ``kind`` says what it is of:

- ``begin``: the state before the step and the batch; ``end``: the state after it and the metrics;
- ``site``: one settled or canonical result. ``args`` has its number, the definition of its exact value
  (``vtrain.engine.definition``; null where there is none) and the digest of its decisions; ``inputs`` its operands;
- ``op``: one dispatched operation, with its arguments. The sites inside it come before it.

Digests of tensors are those of ``vtrain.commit.blocks``. The order of events is the order of execution, so two honest
traces of a step are equal up to the first result that hardware may decide otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rfc8785

from vtrain.commit.merkle import Tree, leaf_hash
from vtrain.commit.statement import strict_json
from vtrain.errors import MalformedRunError, ProofError, UsageError

KINDS = ("begin", "op", "site", "end")
MAX_EVENT_BYTES = 1 << 20
MAX_EVENTS = 1 << 22
_FIELDS = {"kind", "name", "args", "inputs", "outputs"}
_DIGEST = re.compile(r"[ -~]{1,200}")
_MAX_TENSORS = 100_000


@dataclass(frozen=True)
class Event:
    """One thing that a step did.

    Attributes:
        kind: one of KINDS.
        name: the operation; for a site its text, with format and shape.
        args: what is no tensor, as JSON without floats.
        inputs, outputs: digests by name.
    """

    kind: str
    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)

    def unlike(self, other: Event) -> str | None:
        """What makes it another operation, or one on other operands, than ``other``: the first such field's name."""
        parts = ("kind", "name", "args", "inputs")
        return next((part for part in parts if self._text(part) != other._text(part)), None)

    def _text(self, part: str) -> bytes:
        """A field as canonical bytes: to Python 0 is ``False``, and an event tells them apart."""
        value = getattr(self, part)
        return bytes(rfc8785.dumps(dict(value) if isinstance(value, Mapping) else value))

    def encode(self) -> bytes:
        """Its canonical bytes.

        Raises:
            UsageError: more than an event can have.
        """
        parts = {"args": dict(self.args), "inputs": dict(self.inputs), "outputs": dict(self.outputs)}
        data = rfc8785.dumps({"kind": self.kind, "name": self.name, **parts})
        if len(data) > MAX_EVENT_BYTES:
            raise UsageError(f"an event of {len(data)} bytes ({self.name[:60]}); at most {MAX_EVENT_BYTES}")
        return bytes(data)


def parse_event(data: bytes) -> Event:
    """The inverse of ``encode``; hostile input.

    Raises:
        ProofError: too large, no canonical JSON, or other fields than an event's.
    """
    if len(data) > MAX_EVENT_BYTES:
        raise ProofError(f"event: {len(data)} bytes; want at most {MAX_EVENT_BYTES}")
    try:
        value = strict_json(data, "event")
        canonical = rfc8785.dumps(value)
    except (MalformedRunError, ValueError, RecursionError) as error:
        raise ProofError(f"event: {error}") from error
    if canonical != data or not isinstance(value, dict) or value.keys() != _FIELDS:
        raise ProofError("event: not the canonical JSON of an event")
    if value["kind"] not in KINDS or not isinstance(value["name"], str) or not isinstance(value["args"], dict):
        raise ProofError(f"event: kind {str(value['kind'])[:40]!r}; want one of {', '.join(KINDS)}")
    for part in ("inputs", "outputs"):
        if not isinstance(value[part], dict) or len(value[part]) > _MAX_TENSORS:
            raise ProofError(f"event: {part} are no digests by name")
        if not all(isinstance(v, str) and _DIGEST.fullmatch(v) for v in value[part].values()):
            raise ProofError(f"event: {part} are no digests by name")
    return Event(**value)


class Trace:
    """A step's events and the tree over them.

    Args:
        events: their bytes.
    """

    def __init__(self, events: Sequence[bytes] = ()) -> None:
        self.events: list[bytes] = []
        self.tree = Tree()
        for event in events:
            self.append(event)

    def append(self, event: bytes) -> None:
        """Add an event's bytes."""
        self.events.append(event)
        self.tree.append(leaf_hash(event))

    def __len__(self) -> int:
        """Number of events."""
        return len(self.events)
