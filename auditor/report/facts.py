"""What a report says of a run and of a verdict on it, gathered for the template. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from auditor.evidence import Evidence
from auditor.evidence.decimal import metric_value
from auditor.evidence.logged import Row, table
from auditor.report.charts import Mark
from auditor.report.sanitised import flat
from auditor.verdict.file import Predicate, VerdictFile
from auditor.verdict.freedom import EXCESS
from auditor.verdict.verdict import NOT_CLAIMED
from vtrain.commit import keys

_MOST_METRICS = 6
_HEXADECIMAL = re.compile(r"-?0x[01](\.[0-9a-f]{1,13})?p[-+][0-9]{1,3}")
_MOST_MARKED = 20


@dataclass(frozen=True)
class Banner:
    """The first thing on the page.

    Attributes:
        kind: ``verified``, ``refuted``, ``claimed`` (a verdict whose signature wasn't checked) or ``open`` (none).
        sign: one character that says the same without a colour.
        headline: in a few words.
        lines: what it means here; hostile where a verdict says it.
    """

    kind: str
    sign: str
    headline: str
    lines: tuple[str, ...]


def banner(verdict: VerdictFile | None) -> Banner:
    """The banner of a run with this verdict."""
    if verdict is None:
        lines = (
            "The run keeps its forms, signatures and digests, and its steps were not repeated: "
            "no verdict of an audit was given to this report.",
        )
        return Banner("open", "\N{EN DASH}", "Not audited: only checked", lines)
    found, said = verdict.found, _outcome(verdict.found)
    if not verdict.authenticated:
        warning = "Anybody can have written this verdict. Give its signer's key (--auditor-key) to check the signature."
        return Banner("claimed", "?", f"Signature not checked; the verdict says “{said[0]}”", (warning, *said[1:]))
    return Banner(found.result, "✓" if found.result == "verified" else "✗", said[0], said[1:])


def _outcome(found: Predicate) -> tuple[str, ...]:
    count = sum(b - a + 1 for a, b in found.replayed)
    every = f"{found.steps + 1:,}"
    if found.firstBadStep is not None:
        return f"Refuted at step {found.firstBadStep:,}", f"{found.what}: {found.detail}"
    text = "What was replayed equals what the trainer committed to, bit for bit."
    if count == found.steps + 1:
        return "Verified", f"All {every} steps, the initialisation included, were replayed. {text}"
    return f"Verified in part: {count:,} of {every} steps", f"{text} Nothing is known of the other steps."


def warnings(evidence: Evidence, verdict: VerdictFile | None) -> list[str]:
    """What a reader should know before believing the banner."""
    found = []
    if not evidence.pinned:
        found.append("The trainer's key was taken from the run itself: whoever made the run also chose it.")
    if verdict is None:
        return found
    said = verdict.found
    if keys.key_id(evidence.key) in verdict.signers:
        found.append("The verdict is signed with the trainer's own key: nobody else stands behind it.")
    if not said.trainerKey.pinned:
        found.append("The auditor, too, took the trainer's key from the run.")
    if said.freedom is not None and said.freedom.pValue is not None and said.freedom.pValue < EXCESS:
        found.append(
            "Decisions depart from the auditor's rounding more often, or further, than rounding errors explain."
        )
    if said.repairs:
        found.append(f"Results that the audit repaired, going on with the trainer's value: {len(said.repairs):,}.")
    return found


def not_checked(evidence: Evidence, verdict: VerdictFile | None) -> list[str]:
    """What neither this report nor the audit looked at."""
    found = [
        "the trainer's hardware and versions, which it states itself",
        "metrics.jsonl, which is no evidence",
    ]
    if verdict is None:
        return ["whether any step was computed as the job says: that is what an audit replays", *found]
    if rest := _missing(verdict.found.replayed, evidence.last_step):
        found.insert(0, f"steps that were not replayed: {ranges(rest)}")
    if verdict.found.segments.sampled:
        found.append("that the segments were drawn as the auditor's nonce and the signed head decide")
    if not verdict.authenticated:
        found.insert(0, "who wrote the verdict, and so whether an audit took place at all")
    return found


def not_claimed(verdict: VerdictFile | None) -> list[str]:
    """What no verdict claims; what this one adds comes last."""
    said = verdict.found.notClaimed if verdict is not None else []
    return [*NOT_CLAIMED, *(text for text in said if text not in NOT_CLAIMED)]


def _missing(replayed: Sequence[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    starts = [0, *(b + 1 for _, b in replayed)]
    ends = [*(a - 1 for a, _ in replayed), last]
    return [(a, b) for a, b in zip(starts, ends, strict=True) if a <= b]


def ranges(found: Sequence[tuple[int, int]], most: int = 12) -> str:
    """Ranges of steps for people."""
    shown = [f"{a:,}" if a == b else f"{a:,}\N{EN DASH}{b:,}" for a, b in found[:most]]
    rest = f" and {len(found) - most:,} more ranges" if len(found) > most else ""
    return (", ".join(shown) or "none") + rest


@dataclass(frozen=True)
class Metric:
    """One reported number over the steps, from the bits that leaves commit to.

    Attributes:
        name: hostile.
        points: (step, value); NaN also where the bits are of no number.
        rows: some of them for a table: step, value, bits.
    """

    name: str
    points: list[tuple[int, float]]
    rows: list[tuple[int, str, str]]


def metrics(evidence: Evidence) -> tuple[list[Metric], int]:
    """The metrics to draw, that of the run's kind first, and how many there are in all."""
    found: dict[str, list[tuple[int, str]]] = {}
    for leaf in evidence.leaves:
        for name, bits in leaf.metrics.items():
            found.setdefault(name, []).append((leaf.step, bits))
    first = evidence.kind.first_metric
    names = sorted(found, key=lambda n: (n != first, first not in n.lower(), n))[:_MOST_METRICS]
    made = []
    for name in names:
        points = [(step, metric_value(bits)) for step, bits in found[name]]
        rows = [(points[i][0], f"{points[i][1]:.9g}", found[name][i][1]) for i in some(len(points), 60)]
        made.append(Metric(name, points, rows))
    return made, len(found)


def some(count: int, most: int) -> list[int]:
    """At most so many of the indices 0 .. count-1, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return [i * (count - 1) // (most - 1) for i in range(most)]


@dataclass(frozen=True)
class Density:
    """What was logged.

    Attributes:
        share: (step, decisions over values settled, in percent); steps without settled values are left out.
        bytes: (step, bytes before compression).
        rows: kinds of operation, most bytes first; the smaller ones as one.
        logged, canonical: totals.
    """

    share: list[tuple[int, float]]
    bytes: list[tuple[int, float]]
    rows: list[Row]
    logged: Row
    canonical: Row


def density(evidence: Evidence, on_step: Callable[[int, int], None], most: int = 40) -> Density:
    """Read every step's log; each is compared with its leaf.

    Raises:
        MalformedRunError: what the run holds is not what it commits to.
    """
    share, size = [], []
    by: dict[tuple[str, bool], Row] = {}
    logged, canonical = Row("all logged"), Row("all canonical", canonical=True)
    for step in range(evidence.last_step + 1):
        *rows, fixed, total = table(evidence, [step])
        for row in rows:
            _add(by.setdefault((row.operation, row.canonical), Row(row.operation, row.canonical)), row)
        _add(logged, total)
        _add(canonical, fixed)
        if total.values:
            share.append((step, 100.0 * total.entries / total.values))
        size.append((step, float(total.bytes)))
        on_step(step, evidence.last_step)
    return Density(share, size, _largest(by.values(), most), logged, canonical)


def _largest(rows: Iterable[Row], most: int) -> list[Row]:
    ordered = sorted(rows, key=lambda r: (r.canonical, -r.bytes, -r.values, r.operation))
    kept, rest = ordered[:most], ordered[most:]
    for kind in (False, True):
        if others := [r for r in rest if r.canonical == kind]:
            kept.append(Row(f"{len(others):,} other operations", kind))
            for row in others:
                _add(kept[-1], row)
    return kept


def _add(total: Row, row: Row) -> None:
    for name in ("sites", "values", "entries", "wide", "ternary", "bytes"):
        setattr(total, name, getattr(total, name) + getattr(row, name))


def corrections(verdict: VerdictFile | None) -> list[tuple[int, float]]:
    """(first step, corrections) of each group of steps of which some were replayed; empty where no verdict says."""
    over = None if verdict is None else verdict.found.correctionsOverSteps
    if verdict is None or over is None:
        return []
    counts = dict(over.counts)
    groups = {g for a, b in verdict.found.replayed for g in range(a - a % over.width, b + 1, over.width)}
    return [(first, float(counts.get(first, 0))) for first in sorted(groups)]


def sides(evidence: Evidence, verdict: VerdictFile | None) -> list[tuple[str, str, str, bool]]:
    """Rows (key, trainer's, auditor's, whether they differ) of hardware and versions; hostile."""
    attested = evidence.attestation["predicate"].get("environment") if evidence.attestation else None
    theirs = dict(flat(attested if isinstance(attested, dict) else {}))
    mine = dict(flat(verdict.found.auditor)) if verdict is not None else {}
    names = list(dict.fromkeys([*theirs, *mine]))
    return [(n, theirs.get(n, "not said"), mine.get(n, "not said"), theirs.get(n) != mine.get(n)) for n in names if n]


def marks(verdict: VerdictFile | None) -> list[Mark]:
    """Steps to point at in charts."""
    if verdict is None:
        return []
    found = verdict.found
    made = [Mark(r.step, "repaired") for r in (found.repairs or [])[:_MOST_MARKED] if r.step != found.firstBadStep]
    if found.firstBadStep is not None:
        made.append(Mark(found.firstBadStep, f"first bad step {found.firstBadStep:,}", bad=True))
    return made


def number(value: float | None) -> str:
    """A number of a verdict for people."""
    if value is None:
        return "not said"
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return f"{int(value):,}" if whole else f"{value:.3g}"


def decimal(text: str) -> str:
    """A hexadecimal float as a decimal one, nearly; empty for any other text."""
    return f"\N{ALMOST EQUAL TO} {float.fromhex(text):.9g}" if _HEXADECIMAL.fullmatch(text) else ""


def job_lines(job: Any) -> list[tuple[str, str]]:
    """What was to be trained, as lines of key and value; hostile."""
    return flat({**job.model_dump(), "policy": job.policy.canonical()})
