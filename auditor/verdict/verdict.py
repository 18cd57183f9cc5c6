"""The verdict of an audit: for people, for machines, and signed (protocol §6, §7.4). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditor.evidence.kinds import TRAINING, RunKind
from auditor.evidence.run import Evidence
from auditor.verdict.counts import Counts
from auditor.verdict.draw import bad_segments, caught
from auditor.verdict.freedom import Freedom, excess
from vtrain.commit import heads, keys, statement
from vtrain.errors import Refuted
from vtrain.store.address import Url
from vtrain.store.objects import write

VERDICT_PREDICATE = "https://vtrain.dev/attestation/verdict/v2"
VERIFIED, REFUTED, UNFINISHED = "verified", "refuted", "unfinished"
MOST_GROUPS = 500  # of steps, whose corrections a verdict tells apart
SHARES = (0.01, 0.05, 0.1, 0.5)
NOT_CLAIMED = (
    "that the job was wise, the data clean or the program harmless",
    "anything about steps that were not replayed",
    "anything about the job's code, if the trainer chose it",
    "that the trainer kept no other copy",
)


def detection(segments: int, share: float) -> float:
    """Probability that replaying so many random segments meets one of a share ``share`` that is bad: 1-(1-q)^n."""
    return 1.0 - (1.0 - share) ** segments


@dataclass
class Verdict:
    """What an audit found.

    Attributes:
        result: ``verified`` or ``refuted``; ``unfinished`` while a recorded loop is being replayed, and for good where
            it ends before the run does without a difference.
        job: the job's digest, as text.
        job_pinned: whether the auditor compared it with a job of its own; else it is what the run says.
        run: the digest of the run's identity, as text: two runs of one job have two.
        head: the signed note of the last head.
        key_id: of the trainer's key.
        key_pinned: whether the auditor knew that key beforehand.
        steps: number of the run's last step.
        replayed: ranges ``(first, last)`` of the steps replayed.
        sampled: segments drawn at random, 0 if the steps were chosen.
        nonce: the auditor's, which with the head decided the draw; empty if the steps were chosen.
        program: the code that was run (``vtrain.engine.jobs.program.Code.to_json``); None where no job names it.
        drawn: numbers of the segments drawn, from 0, ascending; see ``auditor.verdict.draw.check_draw``.
        segments: how many segments the run has.
        canonical: values of canonical operations, which are the same on every machine and need no log.
        settled, entries, corrections: values settled, decisions in the log, decisions that departed from the
            auditor's own rounding.
        by_step: corrections by step, where there were any.
        freedom: how far decisions lay from where rounding errors could decide them.
        violations: logged decisions outside the certified bound.
        first_bad_step: where a refuted run first goes wrong; None otherwise.
        what: what differs there: ``data``, ``scalars``, ``log``, ``loss``, ``state``, ``sites``, ``steps`` or ``job``.
        detail: one line for people.
        subject: name and SHA-256 of the file that the run's attestation is about.
        environment: the auditor's hardware and library versions.
        trainer: the trainer's, as it says.
        notes: what else a reader should know.
        repairs: differences that disputes found to be benign: step, number of the result, site, elements, record.
        dispute: the difference that was not, down to its elements; None without a dispute.
        kind: what was run.
    """

    result: str
    job: str
    run: str
    head: str
    key_id: str
    key_pinned: bool
    steps: int
    replayed: list[tuple[int, int]]
    segments: int
    sampled: int = 0
    canonical: int = 0
    settled: int = 0
    entries: int = 0
    corrections: int = 0
    by_step: dict[int, int] = field(default_factory=dict)
    freedom: Freedom = field(default_factory=Freedom)
    violations: int = 0
    first_bad_step: int | None = None
    what: str = ""
    detail: str = ""
    subject: tuple[str, str] = ("", "")
    environment: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    repairs: list[dict[str, Any]] = field(default_factory=list)
    dispute: dict[str, Any] | None = None
    nonce: str = ""
    drawn: list[int] = field(default_factory=list)
    program: dict[str, Any] | None = None
    job_pinned: bool = False
    kind: RunKind = TRAINING

    @property
    def verified(self) -> bool:
        """Whether everything replayed was equal in every bit."""
        return self.result == VERIFIED

    @property
    def exit_code(self) -> int:
        """0 verified, 1 refuted, 3 unfinished."""
        return {VERIFIED: 0, REFUTED: 1}.get(self.result, 3)

    def refute(self, found: Refuted) -> None:
        """Record a difference; the first one stands."""
        if self.first_bad_step is not None and self.first_bad_step <= found.step:
            return
        self.result = REFUTED
        self.first_bad_step, self.what, self.detail = found.step, found.what, found.detail
        self.violations = int(found.what == "log")

    def doubt(self) -> None:
        """Note why honest machines may differ, where the difference is in what code of the user's made."""
        if note := self.kind.doubts.get(self.what):
            self.notes.append(note)

    def count(self, found: Counts) -> None:
        """Take over what was counted."""
        self.canonical, self.settled = found.canonical, found.settled
        self.entries, self.corrections = found.entries, found.corrections
        self.freedom, self.by_step = found.freedom, found.by_step
        if note := excess(found.freedom.kinds()):
            self.notes.append(note)

    @property
    def detection(self) -> dict[str, str]:
        """Probability of having met a trainer that cheated in a share of the segments, by share; for random samples."""
        return {f"{q:.2f}": f"{detection(self.sampled, q):.6f}" for q in SHARES} if self.sampled else {}

    @property
    def detection_exact(self) -> dict[str, str]:
        """The same without replacement, as the segments are drawn (``auditor.verdict.draw.caught``): never less."""
        if not self.sampled:
            return {}
        bad = {f"{q:.2f}": bad_segments(self.segments, Fraction(f"{q:.2f}")) for q in SHARES}
        return {q: f"{float(caught(self.segments, self.sampled, m)):.6f}" for q, m in bad.items()}

    @property
    def corrections_over_steps(self) -> dict[str, Any]:
        """Corrections by groups of ``width`` steps from step 0 on: pairs (first step, corrections), without zeros."""
        width = -(-(self.steps + 1) // MOST_GROUPS)
        groups: dict[int, int] = {}
        for step, count in sorted(self.by_step.items()):
            first = step - step % width
            groups[first] = groups.get(first, 0) + count
        return {"width": width, "counts": [[first, count] for first, count in groups.items()]}

    def predicate(self) -> dict[str, Any]:
        """JSON values of the statement."""
        return {
            "result": self.result,
            "job": self.job,
            "jobPinned": self.job_pinned,
            "run": self.run,
            "head": self.head,
            "trainerKey": {"id": self.key_id, "pinned": self.key_pinned},
            "steps": self.steps,
            "replayed": [list(r) for r in self.replayed],
            "segments": {"all": self.segments, "sampled": self.sampled},
            "draw": {"nonce": self.nonce, "segments": self.drawn} if self.sampled else None,
            "detection": self.detection,
            "detectionExact": self.detection_exact,
            "canonical": self.canonical,
            "settled": self.settled,
            "entries": self.entries,
            "corrections": self.corrections,
            "correctionsOverSteps": self.corrections_over_steps,
            "freedom": self.freedom.to_json(),
            "violations": self.violations,
            "firstBadStep": self.first_bad_step,
            "what": self.what,
            "detail": self.detail,
            "repairs": self.repairs,
            "dispute": self.dispute,
            "program": self.program,
            "auditor": self.environment,
            "trainer": self.trainer,
            "notes": self.notes,
            "notClaimed": list(NOT_CLAIMED),
        }

    def to_json(self) -> dict[str, Any]:
        """For machines: the predicate and the subject."""
        name, sha256 = self.subject
        return {**self.predicate(), "subject": {"name": name, "sha256": sha256}}

    def sign(self, path: Path | Url, key: Ed25519PrivateKey) -> None:
        """Write the verdict as a signed statement.

        Raises:
            StorageError: the disk or the store refuses.
        """
        made = statement.make_statement(*self.subject, VERDICT_PREDICATE, self.predicate())
        write(path, statement.sign_statement(made, key))

    def __str__(self) -> str:
        ranges = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.replayed) or "none"
        lines = [f"{self.result.upper()}: {self._headline()}"]
        lines.append(
            f"  steps replayed  {ranges} of 0-{self.steps}, in {self.segments} segments"
            if not self.sampled
            else f"  steps replayed  {ranges} ({self.sampled} of {self.segments} segments, drawn at random)"
        )
        lines.append(f"  values canonical {self.canonical:,}, the same on every machine")
        lines.append(f"  values settled  {self.settled:,}; decisions in the log {self.entries:,}")
        lines.append(f"  corrections     {self.corrections:,}; violations {self.violations}")
        lines.append(f"  freedom         {self.freedom}")
        if self.repairs:
            elements = sum(r["elements"] for r in self.repairs)
            where = f"{elements:,} elements of {len(self.repairs):,} results"
            lines.append(f"  repairs         {where}, all within the certified bound")
        if self.sampled:
            exact = self.detection_exact
            odds = ", ".join(
                f"{float(p):.1%} if {float(q):.0%} of segments were bad ({float(exact[q]):.1%} exactly)"
                for q, p in self.detection.items()
            )
            lines.append(f"  detection       at least {odds}")
        lines.append(f"  job             {self.job} ({'as expected' if self.job_pinned else 'taken from the run'})")
        lines.append(f"  run             {self.run}")
        if self.program is not None:
            files, digest = self.program["files"], self.program["filesDigest"]
            lines.append(f"  program         {self.program['entry']}, SHA-256 {self.program['sha256'][:16]}")
            if files:
                lines.append(f"  its imports     {files} files of its folder, and no other; SHA-256 {digest[:16]}")
        lines.append(
            f"  trainer's key   {self.key_id[:16]} ({'as expected' if self.key_pinned else 'taken from the run'})"
        )
        lines += [f"  note            {note}" for note in self.notes]
        lines.append(f"  not claimed     {'; '.join(NOT_CLAIMED)}")
        return "\n".join(lines)

    def _headline(self) -> str:
        if self.verified:
            return self.kind.equal
        if self.result == UNFINISHED:
            done = f"ended after step {self.replayed[-1][1]}" if self.replayed else "has not begun"
            return f"the replay of {self.steps} steps {done}: no verdict"
        return f"first bad step {self.first_bad_step}: {self.what}: {self.detail}"


def begin(evidence: Evidence, environment: dict[str, Any]) -> Verdict:
    """A verdict with nothing replayed yet, result ``verified``."""
    attested = evidence.attestation["predicate"].get("environment") if evidence.attestation else None
    theirs = attested if isinstance(attested, dict) else {}
    verdict = Verdict(
        result=VERIFIED,
        job=heads.job_text(evidence.digest),
        run=heads.run_text(evidence.run),
        head=evidence.notes[-1],
        key_id=keys.key_id(evidence.key),
        key_pinned=evidence.pinned,
        steps=evidence.last_step,
        replayed=[],
        segments=len(evidence.checkpoints),
        subject=evidence.subject,
        environment=environment,
        trainer=theirs,
        kind=evidence.kind,
    )
    if theirs.get("torch") != environment.get("torch"):
        verdict.notes.append(f"PyTorch {environment.get('torch')} here, {str(theirs.get('torch'))[:40]} at the trainer")
    return verdict
