"""A referee's record: one disputed operation in one file that explains itself. Imports no torch.

``vtrain-record-v2``, a newline, a header in RFC 8785 JSON, a newline, and the blocks' bytes, one after the other. The
header:

- ``job``, ``step``, ``event``: which event of which step's trace is disputed;
- ``run``: the trainer's head (signed note), the step's leaf, and its inclusion proof;
- ``keys``: public keys, PEM, of the trainer (who signed the head) and of both sides;
- ``sides``: of each its signed trace root, its event, the event's inclusion proof, and a consistency proof that the
  events before it (``prefix``, a root) are the other side's too;
- ``shown``: blocks of the operands and of both outputs, each with its proof;
- ``elements``: the disputed elements that are shown; ``disputed``: how many there are in all;
- ``log``: the columns of the run's decisions at this site, base64, or null;
- ``job_text``: null for a disputed rounding. For an operation without rounding freedom the run's job, canonical JSON,
  which says how to do it again; its tensors are then shown in full, and neither outputs nor elements.

The two sides are called ``run`` and ``other``. Where the trainer answered itself, the run's side has its key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rfc8785

from auditor.dispute.commitment import COLUMNS
from vtrain.commit.blocks import Shown, header
from vtrain.commit.statement import strict_json
from vtrain.errors import MalformedRunError, ProofError, VersionError

MAGIC = b"vtrain-record-v2\n"
MAX_RECORD_BYTES = 64 << 20
MAX_HEADER_BYTES = 16 << 20
MAX_ELEMENTS = 100_000
MAX_TENSORS = 4096
MAX_HASHES = 1 << 19
SIDES = ("run", "other")
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"job", "step", "event", "run", "keys", "sides", "prefix", "shown", "elements", "disputed", "log", "job_text"}


@dataclass(frozen=True)
class SideProof:
    """What one side committed to.

    Attributes:
        commitment: its signed trace root, as ``commitment.open_commitment`` reads it.
        event: the event's bytes.
        inclusion: proof of the event in the trace.
        consistency: proof that the agreed prefix is one of this trace.
    """

    commitment: Mapping[str, Any]
    event: bytes
    inclusion: Sequence[bytes]
    consistency: Sequence[bytes]


@dataclass(frozen=True)
class Record:
    """A record, parsed but not checked (``auditor.dispute.referee`` checks it); fields as in the module's text."""

    job: str
    step: int
    event: int
    note: str
    leaf: bytes
    leaf_proof: Sequence[bytes]
    keys: Mapping[str, str]
    sides: Mapping[str, SideProof]
    prefix: bytes
    operands: Mapping[str, Shown]
    outputs: Mapping[str, Shown]
    elements: Sequence[int]
    disputed: int
    log: Mapping[str, str] | None = field(default=None)
    job_text: str | None = None

    def encode(self) -> bytes:
        """The file's bytes."""
        blob = bytearray()

        def placed(shown: Shown) -> dict[str, Any]:
            at = len(blob)
            for index in sorted(shown.blocks):
                blob.extend(shown.blocks[index])
            return {
                "dtype": shown.header.dtype, "shape": list(shown.header.shape), "at": at,
                "blocks": sorted(shown.blocks), "proof": _hexes(shown.proof),
            }  # fmt: skip

        head: dict[str, Any] = {
            "job": self.job, "step": self.step, "event": self.event, "keys": dict(self.keys),
            "run": {"note": self.note, "leaf": self.leaf.decode(), "proof": _hexes(self.leaf_proof)},
            "sides": {name: _side(side) for name, side in self.sides.items()},
            "prefix": self.prefix.hex(),
            "shown": {
                "operands": {name: placed(s) for name, s in sorted(self.operands.items())},
                "outputs": {name: placed(s) for name, s in sorted(self.outputs.items())},
            },
            "elements": list(self.elements), "disputed": self.disputed,
            "log": None if self.log is None else dict(self.log), "job_text": self.job_text,
        }  # fmt: skip
        return MAGIC + rfc8785.dumps(head) + b"\n" + bytes(blob)


def _hexes(hashes: Sequence[bytes]) -> list[str]:
    return [h.hex() for h in hashes]


def _side(side: SideProof) -> dict[str, Any]:
    return {
        "commitment": dict(side.commitment), "event": side.event.decode(),
        "inclusion": _hexes(side.inclusion), "consistency": _hexes(side.consistency),
    }  # fmt: skip


def parse_record(data: bytes) -> Record:
    """Parse a record; hostile input. Nothing in it is believed yet.

    Raises:
        ProofError: too large, or not of the form above.
        VersionError: a record of another version.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise ProofError(f"record: {len(data)} bytes; want at most {MAX_RECORD_BYTES}")
    if not data.startswith(MAGIC):
        raise VersionError(f"record: begins with {data[:20]!r}; want {MAGIC!r}")
    end = data.find(b"\n", len(MAGIC), len(MAGIC) + MAX_HEADER_BYTES)
    if end < 0:
        raise ProofError(f"record: no header of at most {MAX_HEADER_BYTES} bytes")
    text, blob = data[len(MAGIC) : end], memoryview(data)[end + 1 :]
    try:
        value = strict_json(text, "record")
        if rfc8785.dumps(value) != text:
            raise ProofError("record: the header is not canonical JSON")
        return _record(_fields(value, _FIELDS, "record"), blob)
    except (MalformedRunError, ProofError):
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProofError(f"record: {error!r}"[:300]) from error


def _record(v: dict[str, Any], blob: memoryview) -> Record:
    run = _fields(v["run"], {"note", "leaf", "proof"}, "run")
    shown = _fields(v["shown"], {"operands", "outputs"}, "shown")
    elements = v["elements"]
    again = v["job_text"] is not None
    if not isinstance(elements, list) or not int(not again) <= len(elements) <= (0 if again else MAX_ELEMENTS):
        raise ProofError(f"record: want 1 to {MAX_ELEMENTS} elements of a rounding, none of another operation")
    numbers = [v["step"], v["event"], v["disputed"], *elements]
    if not all(type(n) is int and 0 <= n < 2**53 for n in numbers) or elements != sorted(set(elements)):
        raise ProofError("record: step, event and elements are numbers, the elements ascending")
    if not all(isinstance(t, str) for t in (run["note"], run["leaf"], v["job_text"] or "")):
        raise ProofError("record: note and leaf are texts")
    keys, sides = _fields(v["keys"], {"trainer", *SIDES}, "keys"), _fields(v["sides"], set(SIDES), "sides")
    return Record(
        unhex(v["job"]).hex(), v["step"], v["event"], run["note"], run["leaf"].encode(), unhexes(run["proof"]), keys,
        {name: _parse_side(side) for name, side in sides.items()}, unhex(v["prefix"]),
        _all_shown(shown["operands"], blob),
        _all_shown(_fields(shown["outputs"], set() if again else set(SIDES), "outputs"), blob),
        elements, v["disputed"], _log(v["log"]), v["job_text"],
    )  # fmt: skip


def _fields(value: Any, wanted: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != wanted:
        raise ProofError(f"record: {what}: fields {sorted(value) if isinstance(value, dict) else value!r}"[:300])
    return value


def unhex(value: Any) -> bytes:
    """A hash from an untrusted source.

    Raises:
        ProofError: it is none.
    """
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ProofError(f"{str(value)[:80]!r} is no hash in hex")
    return bytes.fromhex(value)


def unhexes(value: Any) -> list[bytes]:
    """Hashes from an untrusted source.

    Raises:
        ProofError: they are none, or more than MAX_HASHES.
    """
    if not isinstance(value, list) or len(value) > MAX_HASHES:
        raise ProofError(f"want a list of at most {MAX_HASHES} hashes")
    return [unhex(h) for h in value]


def _parse_side(value: Any) -> SideProof:
    side = _fields(value, {"commitment", "event", "inclusion", "consistency"}, "side")
    if not isinstance(side["event"], str):
        raise ProofError("record: an event is a text")
    return SideProof(
        side["commitment"], side["event"].encode(), unhexes(side["inclusion"]), unhexes(side["consistency"])
    )


def _all_shown(value: Any, blob: memoryview) -> dict[str, Shown]:
    if not isinstance(value, dict) or len(value) > MAX_TENSORS:
        raise ProofError(f"record: shown tensors are an object of at most {MAX_TENSORS}")
    return {name: _parse_shown(item, blob) for name, item in value.items()}


def _parse_shown(value: Any, blob: memoryview) -> Shown:
    v = _fields(value, {"dtype", "shape", "at", "blocks", "proof"}, "shown")
    head, indices, at = header(v["dtype"], v["shape"]), v["blocks"], v["at"]
    if not isinstance(indices, list) or not all(type(i) is int and 0 <= i < head.count for i in indices):
        raise ProofError("record: blocks are numbers below the tensor's count")
    if indices != sorted(set(indices)) or type(at) is not int or at < 0:
        raise ProofError("record: blocks are ascending, and have a place")
    blocks: dict[int, bytes] = {}
    for index in indices:
        size = head.block_size(index)
        blocks[index] = bytes(blob[at : at + size])
        at += size
    return Shown(head, blocks, unhexes(v["proof"]))


def _log(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    found = _fields(value, set(COLUMNS), "log")
    if not all(isinstance(text, str) for text in found.values()):
        raise ProofError("record: the log's columns are texts")
    return found
