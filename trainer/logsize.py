"""How much a run logs: said while it is trained, as another policy may log nothing (numerics §3)."""

from __future__ import annotations

import warnings

from vtrain.policy import Policy
from vtrain.store.steplog import StepLog

# A log is large where a step's is above both. Of float32 results in doubt a log takes a thousandth of a byte a value,
# of 16-bit ones at adaptive widths some hundredths, at certified ones up to a whole byte.
LARGE_BYTES, LARGE_SHARE = 100_000, 0.1  # bytes a step; bytes a value settled


def log_bytes(log: StepLog) -> int:
    """Size of a step's log before compression, in bytes."""
    return sum(column.nbytes for column in (log.sites, log.gaps, log.codes, log.values, log.scalars))


class LogSize:
    """Adds up what steps log, and warns once where it is large.

    Args:
        policy: the run's.

    Attributes:
        steps, bytes, values: steps seen, bytes logged before compression, values settled.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._warned = False
        self.steps = self.bytes = self.values = 0

    def add(self, step: int, log: StepLog, values: int, calibrating: bool) -> None:
        """Count a step; a UserWarning for the first one whose log is large."""
        size = log_bytes(log)
        if step > 0:
            self.steps, self.bytes, self.values = self.steps + 1, self.bytes + size, self.values + values
        if not self._warned and self._avoidable and size > max(LARGE_BYTES, LARGE_SHARE * values):
            self._warned = True
            first = f", at the width of the first {self._policy.calibration_steps} steps" if calibrating else ""
            warnings.warn(
                f"step {step} logged {size / 1000:,.0f} kB for {values:,} values{first}: {_WAY_OUT}", stacklevel=2
            )

    @property
    def note(self) -> str:
        """A line for the end of a run whose log was large; empty for others."""
        if not self._avoidable or self.bytes <= max(LARGE_BYTES * self.steps, LARGE_SHARE * self.values):
            return ""
        return f"the log took {self.bytes / self.steps / 1000:,.0f} kB a step: {_WAY_OUT}"

    @property
    def _avoidable(self) -> bool:
        return self._policy.matmul == "logged" or self._policy.other == "logged"


_WAY_OUT = (
    "16-bit results are often in doubt. vtrain.Policy(matmul='chain') logs no products and is mostly faster then; in a "
    'job file, matmul = "chain" under [policy]. `vtrain calibrate JOB.toml` measures what each policy costs here'
)
