"""Checking somebody's verdict on a run at hand, and the draw of its sample (protocol §7). Imports no torch."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.evidence import Evidence
from auditor.evidence.prove import read_bounded
from auditor.verdict.draw import check_draw
from auditor.verdict.file import read_verdict
from auditor.verdict.verdict import VERDICT_PREDICATE
from vtrain.commit import statement
from vtrain.store.address import Url


def check_verdict(path: Path | Url, key: Ed25519PublicKey, evidence: Evidence, nonce: str | None) -> str:
    """Check a verdict: signed by the auditor, about this run, and with the draw that its nonce and the head give.

    Args:
        path: the file or object, hostile.
        key: the auditor's.
        evidence: the opened, complete run.
        nonce: the one that the auditor was to use; None takes the verdict's own.

    Returns:
        What it says, for people. Whether that is true only another audit tells.

    Raises:
        MalformedRunError: a rule is broken: see ``read_verdict`` and ``check_draw``.
        UsageError: the file can't be read, has another nonce, or has none although one was wanted.
    """
    found = read_verdict(path, evidence, key).found
    opened = statement.open_statement(read_bounded(path, statement.MAX_ENVELOPE_BYTES), key, VERDICT_PREDICATE)
    if found.segments.sampled == 0 and opened["predicate"].get("draw") is None and nonce is None:
        return f"{found.result}; its steps were chosen, not drawn"
    numbers = check_draw(opened["predicate"], nonce=nonce, evidence=evidence)
    return f"{found.result}; {len(numbers)} of {found.segments.all} segments, drawn as its nonce and the head say"
