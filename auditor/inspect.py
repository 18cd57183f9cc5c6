"""What a run logged, per operation. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from auditor.evidence import Evidence, numel
from vtrain.store.logformat import TERNARY


@dataclass
class Row:
    """One kind of operation over the steps looked at.

    Attributes:
        operation: its name, and what part of it.
        sites: settled results.
        values: values settled.
        entries: decisions logged.
        wide: those of them whose whole value is logged.
        ternary: results in the ternary encoding.
        bytes: of log before compression.
    """

    operation: str
    sites: int = 0
    values: int = 0
    entries: int = 0
    wide: int = 0
    ternary: int = 0
    bytes: int = 0


def table(evidence: Evidence, steps: list[int]) -> list[Row]:
    """Rows by operation, most bytes first, with a last row ``total``.

    Raises:
        MalformedRunError: what the run holds there is not what it commits to.
    """
    rows: dict[str, Row] = {}
    total = Row("total")
    for step in steps:
        sites, log = evidence.sites(step), evidence.log(step)
        for site in sites:
            row = rows.setdefault(_operation(site), Row(_operation(site)))
            for r in (row, total):
                r.sites += 1
                r.values += numel(site)
        for seq, count, encoding, narrow, wide, gap_bytes in log.sites.tolist():
            name = _operation(sites[seq]) if seq < len(sites) else "beyond the step's sites"
            row = rows.setdefault(name, Row(name))
            codes = (count + 4) // 5 if encoding == TERNARY else (narrow + 3) // 4
            for r in (row, total):
                r.entries += narrow + wide
                r.wide += wide
                r.ternary += int(encoding == TERNARY)
                r.bytes += 48 + gap_bytes + codes + 4 * wide
    return [*sorted(rows.values(), key=lambda r: (-r.bytes, -r.values)), total]


def _operation(site: str) -> str:
    return site.split(" ")[0]


def to_json(rows: list[Row]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(row) for row in rows]
