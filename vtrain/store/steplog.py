"""The columns of one step's rounding log, as they are stored, hashed and replayed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# One row of ``sites``: see StepLog.
SITE_COLUMNS = 6


@dataclass(frozen=True)
class StepLog:
    """One step's rounding log.

    Attributes:
        sites: uint64 ``(n, 6)``; one row a site that has entries, in ascending site order:
            ``seq`` (number of the settled result within the step), ``numel`` (elements of the result),
            ``encoding`` (0 sparse, 1 ternary), ``narrow`` (entries with a short code), ``wide`` (entries whose
            whole value is logged), ``gap_bytes`` (bytes of ``gaps`` that belong to the site).
        gaps: uint8 ``(g,)``; LEB128 gaps between flat indices: first the narrow entries' (sparse encoding only),
            then the wide entries'.
        codes: uint8 ``(c,)``; per site ceil(narrow / 4) bytes of 2-bit codes (sparse), or ceil(numel / 5) bytes of
            five base-3 digits each (ternary).
        values: uint32 ``(w,)``; the whole target-format representation of each wide entry.
        scalars: uint64 ``(k,)``; IEEE float64 bits of the host scalars in the order in which they were used.
    """

    sites: np.ndarray
    gaps: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    scalars: np.ndarray


COLUMNS: dict[str, str] = {"sites": "<u8", "gaps": "|u1", "codes": "|u1", "values": "<u4", "scalars": "<u8"}
assert list(COLUMNS) == [f.name for f in fields(StepLog)]
