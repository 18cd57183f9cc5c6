"""``vtrain report``: one offline page about a run and a verdict on it (protocol §6, §7.4). Imports no torch.

The page is made of hostile text: site and metric names, environments, notes. So

1. every text that the template prints is escaped, bounded and stripped of characters that act (``shown.visible``);
   only our own charts are markup;
2. the page has no script, and its policy forbids scripts, requests of any kind, and any style but its own, by hash;
3. the run is checked as ``vtrain verify`` does before anything is shown, and what is shown is compared with the signed
   leaves as it is read.

The same run and verdict give the same bytes: no time, no path, no machine is in them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import vtrain
from auditor.evidence import Evidence, open_run
from auditor.evidence.verify import Check, verify
from auditor.report import charts, facts
from auditor.report.facts import decimal, number, ranges, some
from auditor.report.sanitised import visible
from auditor.verdict.file import VerdictFile, read_verdict
from auditor.verdict.glossary import GLOSSARY
from vtrain.commit import heads, keys
from vtrain.store.address import Url

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_ROWS = 100


def make_report(
    run: Path,
    verdict: Path | Url | None,
    trainer_key: Ed25519PublicKey | None,
    auditor_key: Ed25519PublicKey | None,
    on_step: Callable[[int, int], None],
) -> str:
    """The page's text.

    Args:
        run: the run directory; hostile, never modified.
        verdict: file or object with a verdict on it; hostile.
        trainer_key: the trainer's key, if known.
        auditor_key: the key that the verdict must be signed with; without it the page says that nobody checked.
        on_step: hears (step, last step), twice for each.

    Raises:
        MalformedRunError: the run, or the verdict, is malformed or incomplete, or the verdict is about another run.
        UsageError: the verdict can't be read.
    """
    evidence = open_run(run, trainer_key)
    found = None if verdict is None else read_verdict(verdict, evidence, auditor_key)
    checks = verify(run, trainer_key, on_step)
    return render(evidence, checks, found, on_step)


def render(
    evidence: Evidence, checks: list[Check], verdict: VerdictFile | None, on_step: Callable[[int, int], None]
) -> str:
    """The page of a checked run; arguments as in :func:`make_report`."""
    css = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "ranges": ranges, "decimal": decimal, "n": lambda value: f"{value:,}"}
    return environment.get_template("report.html.j2").render(
        css=Markup(css),  # our own file
        policy=_policy(css),
        glossary=GLOSSARY,
        version=vtrain.__version__,
        **_run(evidence, checks),
        **_verdict(evidence, verdict),
        **_log(evidence, verdict, on_step),
    )


def _shown(value: Any) -> Markup:
    """What Jinja prints: markup as it is, which only our own code makes, and anything else made harmless."""
    return value if isinstance(value, Markup) else visible(value)


def _policy(css: str) -> str:
    """The page's Content-Security-Policy: nothing is loaded or run; one style, known by its hash."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _run(evidence: Evidence, checks: list[Check]) -> dict[str, Any]:
    points = evidence.checkpoints
    shown = [points[i] for i in some(len(points), _MOST_ROWS)]
    name, sha256 = evidence.subject
    return {
        "job": heads.job_text(evidence.digest),
        "run": heads.run_text(evidence.run),
        "job_lines": facts.job_lines(evidence.job),
        "trainer_key": keys.key_id(evidence.key),
        "pinned": evidence.pinned,
        "last": evidence.last_step,
        "kind": evidence.kind,
        "subject": {"name": name, "sha256": sha256},
        "root": evidence.heads[-1].root.hex(),
        "checks": checks,
        "checkpoints": [(step, evidence.leaves[step].state) for step in shown],
        "checkpoints_left_out": len(points) - len(shown),
    }


def _verdict(evidence: Evidence, verdict: VerdictFile | None) -> dict[str, Any]:
    found = None if verdict is None else verdict.found
    steps = [] if found is None else found.replayed
    marks, over = facts.marks(verdict), None if found is None else found.correctionsOverSteps
    strip = charts.coverage("steps", steps, evidence.checkpoints, evidence.last_step, marks)
    corrected = charts.line("corrected", "Corrections by step", facts.corrections(verdict), evidence.last_step, marks)
    return {
        "corrected": corrected,
        "corrected_width": 0 if over is None else over.width,
        "verdict": verdict,
        "found": found,
        "banner": facts.banner(verdict),
        "warnings": facts.warnings(evidence, verdict),
        "not_checked": facts.not_checked(evidence, verdict),
        "not_claimed": facts.not_claimed(verdict)[:_MOST_ROWS],
        "strip": strip,
        "sides": facts.sides(evidence, verdict),
        "most": _MOST_ROWS,
    }


def _log(evidence: Evidence, verdict: VerdictFile | None, on_step: Callable[[int, int], None]) -> dict[str, Any]:
    last, marks = evidence.last_step, facts.marks(verdict)
    drawn, all_metrics = facts.metrics(evidence)
    found = facts.density(evidence, on_step)
    most = max((row.bytes for row in found.rows), default=0)
    return {
        "metrics": [
            (m, charts.line(f"metric-{i}", f"{m.name} by step", m.points, last, marks)) for i, m in enumerate(drawn)
        ],
        "metrics_left_out": all_metrics - len(drawn),
        "share": charts.line("share", "Share of settled values that were logged, in percent", found.share, last, marks),
        "bytes": charts.line("bytes", "Bytes of log before compression", found.bytes, last, marks),
        "rows": [(row, charts.bar(row.bytes / most if most else 0.0)) for row in found.rows],
        "logged": found.logged,
        "canonical": found.canonical,
    }
