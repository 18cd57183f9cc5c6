"""A verdict that somebody hands over: hostile like the run, parsed once, then frozen. Imports no torch.

1. At most ``MAX_ENVELOPE_BYTES``; a DSSE envelope around canonical JSON: an in-toto statement with a verdict.
2. Its signature is by the auditor's key, where that is known. Where it isn't, nothing says who wrote it.
3. Each known field has its type and size, and they agree: a verified run has no first bad step, for example.
4. It is about the run at hand: the job, the run's identity, the last head under the trainer's key, the steps and the
   model file.

What is not checked: that it is true. Fields that this release does not know are passed over; ``unknown`` names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from auditor.evidence import Evidence
from auditor.evidence.prove import read_bounded
from auditor.verdict.verdict import VERDICT_PREDICATE, VERIFIED
from vtrain.commit import heads, keys, statement
from vtrain.errors import MalformedRunError
from vtrain.policy import explain
from vtrain.store.address import Url

_MOST_ITEMS = 100_000
_MOST_GROUPS = 10_000
Text = Annotated[str, Field(max_length=20_000)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Probability = Annotated[str, Field(pattern="^[01]\\.[0-9]{1,20}$")]
Odds = Annotated[dict[Probability, Probability], Field(max_length=100)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class VerdictFileError(MalformedRunError):
    """A verdict file is malformed, or its verdict is about another run."""


class _Known(BaseModel):
    # in-toto wants consumers to pass over fields that they don't know
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class TrainerKey(_Known):
    """The trainer's key, and whether the auditor knew it."""

    id: Text
    pinned: bool


class Segments(_Known):
    """How many segments the run has, and how many were drawn at random."""

    all: Count
    sampled: Count


class KindOf(_Known):
    """Decisions of one kind of operation."""

    kind: Text
    inDoubt: Count
    departures: Count
    expected: FiniteFloat | None = None
    pValue: FiniteFloat | None = None


class OverSteps(_Known):
    """Corrections by groups of steps: first step and corrections of each that has any."""

    width: Annotated[int, Field(ge=1)]
    counts: list[tuple[Count, Count]] = Field(max_length=_MOST_ITEMS)

    def checked(self, last: int, corrections: int) -> list[int]:
        """The groups' first steps, of a run with this last step and so many corrections in all."""
        firsts = [first for first, _ in self.counts]
        if last // self.width >= _MOST_GROUPS:
            raise ValueError(f"corrections of {last // self.width + 1} groups of steps; want at most {_MOST_GROUPS}")
        if any(first % self.width for first in firsts) or firsts != sorted(set(firsts)):
            raise ValueError(f"corrections of groups of {self.width} steps: want their first steps, ascending")
        if sum(count for _, count in self.counts) != corrections:
            raise ValueError(f"corrections by step that are not {corrections} in all")
        return firsts


class FreedomOf(_Known):
    """Decisions that departed from the auditor's rounding, over all and by kind."""

    inDoubt: Count
    departures: Count
    expected: FiniteFloat | None = None
    pValue: FiniteFloat | None = None
    by: list[KindOf] = Field(default_factory=list, max_length=_MOST_ITEMS)


class Repair(_Known):
    """Where the audit went on with the run's value after a dispute."""

    step: Count
    seq: Count
    site: Text
    elements: Count
    record: Sha256 | Literal[""]


class Element(_Known):
    """One disputed element: both sides' values, the exact one, and what the bound allows."""

    index: Count
    run: Text
    other: Text
    exact: Text
    bound: Text
    within: bool


class Dispute(_Known):
    """A difference brought before the referee."""

    step: Count
    event: Annotated[int, Field(ge=-1, lt=2**53)]
    operation: Text
    site: Text
    result: Literal["benign", "refuted"]
    wrong: list[Text] = Field(max_length=16)
    elements: list[Element] = Field(max_length=_MOST_ITEMS)
    record: Sha256 | Literal[""]


class Draw(_Known):
    """What decided which segments a random sample has, beside the signed head."""

    nonce: Text


class ProgramOf(_Known):
    """The code that was run: its own file, the files that it imported from its folder, versions of what else."""

    entry: Text
    sha256: Sha256
    distribution: Text
    files: Count
    filesDigest: Sha256
    imports: Annotated[dict[Text, Text], Field(max_length=10_000)]


class Predicate(_Known):
    """A verdict's predicate, as ``Verdict.predicate`` writes it."""

    result: Literal["verified", "refuted"]
    job: Text
    jobPinned: bool
    run: Text
    head: Annotated[str, Field(max_length=heads.MAX_NOTE_BYTES)]
    trainerKey: TrainerKey
    steps: Count
    replayed: list[tuple[Count, Count]] = Field(max_length=_MOST_ITEMS)
    segments: Segments
    detection: Odds
    canonical: Count
    settled: Count
    entries: Count
    corrections: Count
    violations: Count
    firstBadStep: Count | None
    what: Text
    detail: Text
    auditor: dict[str, Any]
    trainer: dict[str, Any]
    notes: list[Text] = Field(max_length=_MOST_ITEMS)
    notClaimed: list[Text] = Field(max_length=1000)
    correctionsOverSteps: OverSteps | None = None
    freedom: FreedomOf | None = None
    detectionExact: Odds | None = None
    draw: Draw | None = None
    repairs: list[Repair] | None = Field(None, max_length=_MOST_ITEMS)
    dispute: Dispute | None = None
    program: ProgramOf | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Predicate:
        if (self.result == VERIFIED) != (self.firstBadStep is None):
            raise ValueError(f"a {self.result} run with first bad step {self.firstBadStep}")
        if self.result == VERIFIED and not self.replayed:
            raise ValueError("a verified run of which nothing was replayed")
        if self.result == VERIFIED and self.dispute is not None and "run" in self.dispute.wrong:
            raise ValueError("a verified run whose value a dispute found outside the bound")
        steps = [s for a, b in self.replayed for s in (a, b + 1)]
        if any(a > b for a, b in self.replayed) or steps != sorted(steps):
            raise ValueError("replayed: want ascending ranges")
        named = [self.firstBadStep, *(r.step for r in self.repairs or ()), self.dispute.step if self.dispute else None]
        named += [b for _, b in self.replayed]
        if self.correctionsOverSteps is not None:
            named += self.correctionsOverSteps.checked(self.steps, self.corrections)
        if any(step is not None and step > self.steps for step in named):
            raise ValueError(f"a step beyond the run's last, {self.steps}")
        if self.segments.sampled > self.segments.all:
            raise ValueError("more segments drawn than there are")
        return self


class _Signature(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    keyid: Text
    sig: Text


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]
    signatures: list[_Signature] = Field(max_length=statement.MAX_SIGNATURES)


class _Digest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    sha256: Sha256


class _Subject(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: Text
    digest: _Digest


class _Statement(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[_Subject] = Field(min_length=1, max_length=1)
    predicateType: Literal["https://vtrain.dev/attestation/verdict/v2"]
    predicate: Predicate


@dataclass(frozen=True)
class VerdictFile:
    """A verdict of a run at hand.

    Attributes:
        found: what it says.
        signers: key ids that its envelope names; not checked unless ``authenticated``.
        authenticated: whether its signature is by the auditor's key.
        unknown: fields of the predicate that this release does not know.
    """

    found: Predicate
    signers: tuple[str, ...]
    authenticated: bool
    unknown: tuple[str, ...]


def read_verdict(path: Path | Url, evidence: Evidence, auditor_key: Ed25519PublicKey | None) -> VerdictFile:
    """Read a verdict on a run; hostile input.

    Args:
        path: the file.
        evidence: the run that it must be about.
        auditor_key: who must have signed it; None leaves the signature unchecked.

    Raises:
        UsageError: the file can't be read.
        VerdictFileError: malformed, or about another run.
        VersionError: of another version.
        SignatureError: not signed by that key.
        MalformedRunError: no envelope or statement of the form wanted.
    """
    data = read_bounded(path, statement.MAX_ENVELOPE_BYTES)
    if auditor_key is not None:
        statement.open_statement(data, auditor_key, VERDICT_PREDICATE)
    envelope, opened, raw = _parse(data)
    found = opened.predicate
    _about(found, opened.subject[0], evidence)
    signers = (keys.key_id(auditor_key),) if auditor_key is not None else tuple(s.keyid for s in envelope.signatures)
    unknown = tuple(sorted(raw["predicate"].keys() - Predicate.model_fields.keys()))
    return VerdictFile(found, signers, auditor_key is not None, unknown)


def _parse(data: bytes) -> tuple[_Envelope, _Statement, dict[str, Any]]:
    """Envelope, statement, and the statement's JSON; nothing here depends on a signature."""
    statement.strict_json(data, "verdict")  # refuses what pydantic's own parser would let pass: duplicate keys, NaN
    try:
        envelope = _Envelope.model_validate_json(data)
        payload = keys.decode_base64(envelope.payload)
        raw = statement.strict_json(payload, "verdict: statement")
        if rfc8785.dumps(raw) != payload:
            raise VerdictFileError("verdict: the statement is not canonical JSON (RFC 8785)")
        if isinstance(raw, dict) and isinstance(raw.get("predicateType"), str):
            statement.check_predicate_type(raw["predicateType"], VERDICT_PREDICATE)
        return envelope, _Statement.model_validate_json(payload), raw
    except ValidationError as error:
        raise VerdictFileError(str(explain(error, "verdict"))[:2000]) from error
    except (ValueError, RecursionError) as error:
        raise VerdictFileError(f"verdict: no statement: {str(error)[:200]}") from error


def _about(found: Predicate, subject: _Subject, evidence: Evidence) -> None:
    pairs = {
        "job": (found.job, heads.job_text(evidence.digest)),
        "identity": (found.run, heads.run_text(evidence.run)),
        "trainer's key": (found.trainerKey.id, keys.key_id(evidence.key)),
        "last step": (found.steps, evidence.last_step),
        evidence.kind.product: ((subject.name, subject.digest.sha256), evidence.subject),
    }
    for what, (said, wanted) in pairs.items():
        if said != wanted:
            raise VerdictFileError(f"verdict: is about another run: {what} {said!r:.300}; the run's is {wanted!r}")
    if heads.open_head(found.head, evidence.key, heads.KEY_NAME) != evidence.heads[-1]:
        raise VerdictFileError("verdict: is about another run, or this one at another time: its head is another one")
