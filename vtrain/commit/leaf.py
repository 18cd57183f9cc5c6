"""Leaves: what each step commits to (protocol §4). Imports neither torch nor zarr."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from vtrain.errors import TranscriptError

_HEX = re.compile(r"[0-9a-f]{64}")
_BITS = re.compile(r"(F64|F32|BF16|F16|I64):[0-9a-f]{1,16}")
_NAME = re.compile(r"[ -~]{0,200}")
MAX_ENTRIES = 100_000
_FIELDS = {"type", "step", "batch", "metrics", "log", "sites", "state", "resume", "calibration"}


@dataclass(frozen=True)
class Leaf:
    """One step's commitment.

    Attributes:
        step: step number; 0 is the initialisation.
        batch: digest of each part of the batch, hex, by path; ``#indices`` for the sample indices.
        metrics: bits of each reported metric, such as ``F32:3f800000``, by name.
        log: SHA-256 of the step's rounding log and host scalars, hex.
        sites: SHA-256 of the step's sequence of sites, hex.
        state: state digest at a checkpoint step, else empty.
        resume: digest of what else the trainer needs to go on from that checkpoint; empty where there is nothing.
        calibration: largest differences seen so far, in units of the error scale, as C99 hexadecimal floats, by kind
            and length; only while adaptive thresholds are being made. Not checked by an audit, which uses certified
            bounds.
    """

    step: int
    batch: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    log: str = ""
    sites: str = ""
    state: str = ""
    resume: str = ""
    calibration: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The transcript's object."""
        return {
            "type": "leaf",
            "step": self.step,
            "batch": self.batch,
            "metrics": self.metrics,
            "log": self.log,
            "sites": self.sites,
            "state": self.state,
            "resume": self.resume,
            "calibration": self.calibration,
        }


def leaf_from_json(value: dict[str, Any], step: int) -> Leaf:
    """Parse a leaf; hostile input.

    Args:
        value: the transcript's object.
        step: the step that it must be of.

    Raises:
        TranscriptError: unknown or missing fields, values of the wrong form, or another step.
    """
    where = f"leaf of step {step}"
    if value.keys() != _FIELDS:
        raise TranscriptError(f"{where}: fields {sorted(value)[:12]}, want {sorted(_FIELDS)}")
    if value["type"] != "leaf":
        raise TranscriptError(f"{where}: type {str(value['type'])[:20]!r}, want 'leaf'")
    if type(value["step"]) is not int or value["step"] != step:
        raise TranscriptError(f"{where}: is of step {str(value['step'])[:20]}")
    for name in ("log", "sites"):
        if not isinstance(value[name], str) or not _HEX.fullmatch(value[name]):
            raise TranscriptError(f"{where}: {name} is no SHA-256 in hex")
    for name in ("state", "resume"):
        if not isinstance(value[name], str) or len(value[name]) > 200:
            raise TranscriptError(f"{where}: {name} is no digest")
    if value["resume"] and not value["state"]:
        raise TranscriptError(f"{where}: resume without a checkpoint's state")
    _check_map(value["batch"], _HEX, f"{where}: batch")
    _check_map(value["metrics"], _BITS, f"{where}: metrics")
    _check_map(value["calibration"], re.compile(r"[-+0-9a-fpx.]{1,40}"), f"{where}: calibration")
    return Leaf(**{k: v for k, v in value.items() if k != "type"})


def _check_map(value: object, form: re.Pattern[str], where: str) -> None:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise TranscriptError(f"{where} is no map of at most {MAX_ENTRIES} entries")
    for key, text in value.items():
        if not _NAME.fullmatch(key) or not isinstance(text, str) or not form.fullmatch(text):
            raise TranscriptError(f"{where}: bad entry {key[:60]!r}")
