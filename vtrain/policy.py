"""What is promised and how much is logged: precision, threshold, encoding (numerics §1, §3, §4)."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vtrain.errors import JobError
from vtrain.rounding.formats import Format, target_in_float32
from vtrain.rounding.threshold import Threshold, parse_threshold

MOST_SCALAR_ULPS = 4  # numerics §2: what an auditor accepts, whatever a run says
_DIFFERENCE = re.compile(r"0x[01](\.[0-9a-f]{1,13})?p[-+][0-9]{1,3}")


def explain(error: ValidationError, where: str) -> JobError:
    """A validation error as one line a key: the key, what was wrong, what was given."""
    lines = []
    for item in error.errors():
        key = ".".join(str(p) for p in item["loc"]) or "value"
        what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
        if item["type"] == "missing":
            lines.append(f"{where}: {key}: required key is missing")
        else:
            lines.append(f"{where}: {key}: {what} (found {item['input']!r})"[:400])
    return JobError("\n".join(lines))


class Frozen(BaseModel):
    """Parsed once, then frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Policy(Frozen):
    """Precision and threshold policy of a run.

    Attributes:
        target: what float32 tensors are held to: ``float32``, ``bfloat16`` or ``float16`` values. Tensors that are
            bfloat16 or float16 themselves keep their own format.
        bits: significant bits of a ``float32`` target, 8..24.
        matmul: how matrix products and convolutions are done. ``logged``: computed in C and settled; ``chain``:
            canonical, one chain of fused multiply-adds an element in float32; ``chain64``: the same in float64;
            ``integer``: canonical, fixed-point numbers multiplied and added as integers, exactly, by any library.
        accumulator: what products of 16-bit operands are allowed to be summed by in a logged run. ``float32``: IEEE
            arithmetic. ``tensor_core``: matrix units as well, where a device has them; four times the certified width.
        other: how sums, functions and what is made of them are done: ``canonical`` where there is a canonical kernel
            (no log), or ``logged``.
        threshold: ``certified``, ``mixed``, ``adaptive``, ``statistical``, ``off``, or a number: tau itself. Default:
            ``mixed`` for float32, certified for float32 tensors and adaptive for 16-bit ones, such as autocast's;
            ``adaptive`` for 16-bit targets.
        encoding: how decisions are written: ``sparse``, ``ternary``, or ``auto``, the smaller one for each result.
        calibration_steps: first steps that calibrate adaptive thresholds (logged at the statistical width).
        calibration: largest differences by kind of operation, as hexadecimal floats: what ``vtrain calibrate`` measured
            across instruction sets and thread counts. With it a run calibrates nothing itself.
        scalar_ulps: by how many float64 ulps a recomputed operand of plain arithmetic may differ from the recorded one,
            the two being one number in float32. All other host scalars are equal in every bit.
    """

    target: Literal["float32", "bfloat16", "float16"] = "float32"
    bits: int = 24
    matmul: Literal["logged", "chain", "chain64", "integer"] = "logged"
    accumulator: Literal["float32", "tensor_core"] = "float32"
    other: Literal["logged", "canonical"] = "canonical"
    threshold: str | float | int | None = None
    encoding: Literal["auto", "sparse", "ternary"] = "auto"
    calibration_steps: int = 2
    calibration: dict[str, str] = Field(default_factory=dict)
    scalar_ulps: int = 4

    def __init__(self, *positional: Any, **values: Any) -> None:
        if positional:
            raise JobError(f"policy: {positional[0]!r} without a key; want keys, such as Policy(matmul='chain')")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, "policy") from error

    @field_validator("threshold")
    @classmethod
    def _known_threshold(cls, value: str | float | int | None) -> str | float | int | None:
        if value is not None:
            try:
                parse_threshold(value)
            except JobError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("calibration")
    @classmethod
    def _hexadecimal(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if not _DIFFERENCE.fullmatch(text):
                raise ValueError(f"{key}: want a positive number as a hexadecimal float, such as 0x1p-24")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Policy:
        try:
            target_in_float32(self.target, self.bits)
        except JobError as error:
            raise ValueError(str(error)) from error
        if self.accumulator != "float32" and self.matmul != "logged":
            raise ValueError(f"accumulator={self.accumulator!r} is for matmul='logged', not for {self.matmul!r}")
        for name, low, high in (("calibration_steps", 1, 1_000_000), ("scalar_ulps", 0, MOST_SCALAR_ULPS)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, want {low} to {high}")
        return self

    @property
    def format(self) -> Format:
        """What float32 results are rounded to."""
        return target_in_float32(self.target, self.bits)

    @property
    def parsed_threshold(self) -> Threshold:
        """The threshold, defaults filled in."""
        default = "mixed" if self.target == "float32" else "adaptive"
        return parse_threshold(default if self.threshold is None else self.threshold)

    @property
    def differences(self) -> dict[str, float]:
        """``calibration`` as numbers."""
        return {key: float.fromhex(text) for key, text in self.calibration.items()}

    def canonical(self) -> dict[str, Any]:
        """JSON values that identify the policy; a fixed tau by its bits."""
        values = self.model_dump()
        threshold = self.parsed_threshold
        values["threshold"] = threshold.value.hex() if threshold.kind == "fixed" else threshold.kind
        return values

    @classmethod
    def from_canonical(cls, values: dict[str, Any]) -> Policy:
        """The inverse of ``canonical``.

        Raises:
            JobError: an unknown key or impossible value.
        """
        values = dict(values)
        threshold = values.get("threshold")
        if isinstance(threshold, str) and threshold.lower().startswith("0x"):
            try:
                values["threshold"] = float.fromhex(threshold)
            except (ValueError, OverflowError) as error:
                raise JobError(f"policy: threshold: {threshold!r} is no number") from error
            if not math.isfinite(values["threshold"]):
                raise JobError(f"policy: threshold: {threshold!r} is not finite")
        return cls(**values)
