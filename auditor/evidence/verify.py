"""Everything about a run that can be checked without repeating it (protocol §4-7). Imports no torch.

1. - 5. Layout, job, run's identity, key, transcript with signed heads, attestation: see ``auditor.evidence.run``.
6. The run is complete: as many steps as the job promises, and attested; the attested file holds the committed state.
7. Every program file has the SHA-256 that leaves name it by, and names sites with shapes.
8. Every step's rounding log is there, well-formed, and what the step's leaf commits to; nothing else is in the log.
9. Every checkpoint has the state digest that its leaf commits to; there are no others.

10. A head that the auditor saw elsewhere, if there is one, is a head of this run's leaves.
11. An auditor's verdict, if there is one, is about this run, and its sample is what its nonce and the head give.

What is not checked: that the steps were computed as the job says. That is what ``vtrain audit`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.evidence import Evidence, open_run
from auditor.evidence.prove import read_note
from auditor.evidence.sites import numel
from vtrain.commit import heads, keys
from vtrain.errors import CheckpointError, LogError
from vtrain.store.address import Url
from vtrain.store.checkpoint import list_checkpoints
from vtrain.store.logcheck import segments


@dataclass(frozen=True)
class Check:
    """One rule that held.

    Attributes:
        name: what was checked.
        found: what was found, for people.
    """

    name: str
    found: str


def verify(
    path: Path,
    key: Ed25519PublicKey | None,
    on_step: Callable[[int, int], None],
    seen: Path | Url | None = None,
    verdict: Callable[[Evidence], str] | None = None,
) -> list[Check]:
    """Check a run; hostile input, never modified.

    Args:
        path: the run directory.
        key: the trainer's public key, if known.
        on_step: hears (step, last step) as logs are checked.
        seen: file or object with a signed head seen elsewhere, hostile like the run.
        verdict: checks somebody's verdict against the opened run, and says what it found.

    Returns:
        The checks that held, in order.

    Raises:
        MalformedRunError: the first rule that is broken.
        EquivocationError: the head seen elsewhere is of another history of this run.
        TranscriptError: it is of another run, or of more leaves than this one has.
        UsageError: the file of that head can't be read.
    """
    evidence = open_run(path, key)
    known = "as expected" if evidence.pinned else "the run's own: pass --trainer-key to pin it"
    checks = [
        Check("job", heads.job_text(evidence.digest)),
        Check("run", heads.run_text(evidence.run)),
        Check("key", f"{keys.key_id(evidence.key)} ({known})"),
        Check("transcript", f"{len(evidence.leaves)} leaves under {len(evidence.heads)} consistent signed heads"),
    ]
    if seen is not None:
        head = heads.open_head(read_note(seen), evidence.key, heads.KEY_NAME)
        heads.check_consistent([*evidence.heads, head], evidence.tree)
        checks.append(Check("head seen", f"of {head.size} leaves, which are this run's first"))
    evidence.require_complete()
    checks.append(Check("attestation", f"of steps 0-{evidence.last_step}"))
    checks.append(Check("programs", f"{_programs(evidence)} lists of sites"))
    checks.append(Check("log", f"{_logs(evidence, on_step):,} decisions"))
    checks.append(Check("checkpoints", f"{_checkpoints(evidence)} states"))
    if verdict is not None:
        checks.append(Check("verdict", verdict(evidence)))
    return checks


def _programs(evidence: Evidence) -> int:
    distinct = {leaf.sites: leaf.step for leaf in evidence.leaves}
    for step in distinct.values():
        for site in evidence.sites(step):
            numel(site)
    return len(distinct)


def _logs(evidence: Evidence, on_step: Callable[[int, int], None]) -> int:
    found, wanted = segments(evidence.layout.log), evidence.checkpoints
    if found != wanted:
        raise LogError(f"log segments end at steps {found[:20]}; the leaves' checkpoints are {wanted[:20]}")
    entries = 0
    for leaf in evidence.leaves:
        entries += evidence.measure(leaf.step)
        on_step(leaf.step, evidence.last_step)
    return entries


def _checkpoints(evidence: Evidence) -> int:
    found, wanted = list_checkpoints(evidence.layout), evidence.checkpoints
    if found != wanted:
        raise CheckpointError(f"checkpoints at steps {found[:20]}; the leaves' are {wanted[:20]}")
    for step in wanted:
        evidence.state(step)
    return len(wanted)
