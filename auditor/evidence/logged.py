"""What a run logged, per operation. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from auditor.evidence import Evidence
from auditor.evidence.sites import is_canonical, numel
from vtrain.store.logformat import TERNARY


@dataclass
class Row:
    """One kind of operation over the steps looked at.

    Attributes:
        operation: its name, and what part of it.
        canonical: whether its results have one defined order of arithmetic, so that nothing is settled or logged.
        sites: results.
        values: their elements.
        entries: decisions logged.
        wide: those of them whose whole value is logged.
        ternary: results in the ternary encoding.
        bytes: of log before compression.
        bits: of choice that the decisions leave at most: 1 a ternary digit, log2(3) a short code, which tells at most
            three neighbours apart, and a whole value's width. An audit counts which of them departed (numerics §9).
    """

    operation: str
    canonical: bool = False
    sites: int = 0
    values: int = 0
    entries: int = 0
    wide: int = 0
    ternary: int = 0
    bytes: int = 0
    bits: float = 0.0


def table(evidence: Evidence, steps: list[int]) -> list[Row]:
    """Rows by operation, logged ones first, most bytes first; the last two rows are the totals.

    Raises:
        MalformedRunError: what the run holds there is not what it commits to.
    """
    rows: dict[tuple[str, bool], Row] = {}
    total, fixed = Row("total logged"), Row("total canonical", canonical=True)
    for step in steps:
        sites, log = evidence.sites(step), evidence.log(step)
        for site in sites:
            name, kind = _operation(site), is_canonical(site)
            row = rows.setdefault((name, kind), Row(name, kind))
            for r in (row, fixed if kind else total):
                r.sites += 1
                r.values += numel(site)
        for seq, count, encoding, narrow, wide, gap_bytes in log.sites.tolist():
            name = _operation(sites[seq]) if seq < len(sites) else "beyond the step's sites"
            row = rows.setdefault((name, False), Row(name))
            short = 1.0 if encoding == TERNARY else math.log2(3)
            bits = narrow * short + wide * (_width(sites[seq]) if seq < len(sites) else 32)
            codes = (count + 4) // 5 if encoding == TERNARY else (narrow + 3) // 4
            for r in (row, total):
                r.entries += narrow + wide
                r.wide += wide
                r.ternary += int(encoding == TERNARY)
                r.bytes += 48 + gap_bytes + codes + 4 * wide
                r.bits += bits
    return [*sorted(rows.values(), key=lambda r: (r.canonical, -r.bytes, -r.values)), fixed, total]


def _operation(site: str) -> str:
    return site.split(" ")[0]


def _width(site: str) -> int:
    """Bits of a value of a site's format."""
    fmt = site.rpartition(" ")[2].partition("[")[0]
    if restricted := re.fullmatch(r"float32p([0-9]{1,2})", fmt):
        return int(restricted[1]) + 8
    return 32 if fmt == "float32" else 16


def to_json(rows: list[Row]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(row) for row in rows]
