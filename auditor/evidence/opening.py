"""Opening a run as an auditor reads it: bounded, authenticated, and only then parsed (protocol §7.1). Imports no torch.

What opening checks, in this order:

1. The tree holds only plain files and directories under known names, no links (``layout.check_tree``).
2. ``job.json`` is the canonical text of a job of a version that this release reads.
3. ``run.json``: canonical, of this job; what it says of a loop's initial state is what leaf 0 commits to.
4. The trainer's key: the one that the auditor expects, or the run's own, which then is *not* authenticated.
5. ``transcript.jsonl``: canonical lines; leaves of the steps 0, 1, 2, ... without a gap; every head signed by that key,
   of this run and job, and the head of exactly the leaves before it (so all heads are consistent, RFC 6962 §2.1.2).
6. ``attestation.json``, where the run is complete: signed by the key, about the file that the last head's run ends in.

What is not checked here: the content of log, checkpoints and programs. ``Evidence.log``, ``.checkpoint`` and ``.sites``
compare each with its leaf when it is used, and ``auditor.evidence.verify`` all of them. ``Evidence.require_complete``
reads the last checkpoint: the attested file must hold the state that the last leaf commits to.

A run may change while it is read. So what was checked is never read again from the disk: it is used from memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.evidence.kinds import kind_of
from vtrain.commit import heads, keys, merkle, statement
from vtrain.commit.heads import KEY_NAME
from vtrain.commit.leaf import Leaf, leaf_from_json
from vtrain.errors import (
    EquivocationError,
    IncompleteRunError,
    KeyFileError,
    MalformedRunError,
    SignatureError,
    TranscriptError,
    VersionError,
)
from vtrain.job import MAX_BYTES as MAX_JOB_BYTES
from vtrain.job import Job, LoopJob, job_digest, parse_canonical
from vtrain.store import canonical, transcript
from vtrain.store.identity import MAX_BYTES as MAX_IDENTITY_BYTES
from vtrain.store.identity import Identity, parse_identity
from vtrain.store.layout import Layout, check_tree, safe_open, step_name

if TYPE_CHECKING:
    pass
from auditor.evidence.run import Evidence

# A statement about a run, with what the trainer says of its machine.
MAX_ATTESTATION_BYTES = 1 << 20


def open_run(path: Path, expected_key: Ed25519PublicKey | None = None) -> Evidence:
    """Open a run for audit; hostile input, never modified.

    Args:
        path: the run directory.
        expected_key: the trainer's public key, if the auditor knows it.

    Raises:
        MalformedRunError: one of the rules above is broken; says which.
        KeyFileError: ``trainer.pub`` is no public key.
    """
    check_tree(path)
    layout = Layout(path)
    with safe_open(path, "job.json", max_bytes=MAX_JOB_BYTES) as handle:
        data = handle.read(MAX_JOB_BYTES + 1)
    job = parse_canonical(data, canonical.loads(data, where="job.json", floats=True), "job.json")
    digest = job_digest(data)
    identity = _identity(layout, job, digest)
    key = _key(layout, expected_key)
    leaves, found, notes, tree = _transcript(layout, key, digest, identity.digest, _most_lines(job))
    if identity.loop is not None and identity.loop.state != leaves[0].state:
        raise MalformedRunError("run.json: its initial state is not the one that the leaf of step 0 commits to")
    evidence = Evidence(layout, job, digest, identity, key, expected_key is not None, leaves, found, tree, notes)
    if layout.attestation.exists():
        evidence.attestation = _attestation(evidence)
    return evidence


def _identity(layout: Layout, job: Job | LoopJob, digest: bytes) -> Identity:
    if not os.path.lexists(layout.identity):
        raise VersionError(f"{layout.root}: no run.json: made by an earlier release; this one reads runs that have it")
    with safe_open(layout.root, "run.json", max_bytes=MAX_IDENTITY_BYTES) as handle:
        found = parse_identity(handle.read(MAX_IDENTITY_BYTES + 1), heads.job_text(digest))
    if (found.loop is not None) != isinstance(job, LoopJob):
        raise MalformedRunError("run.json: describes a loop where its job is none, or none where it is one")
    return found


def _key(layout: Layout, expected: Ed25519PublicKey | None) -> Ed25519PublicKey:
    with safe_open(layout.root, "trainer.pub", max_bytes=keys.MAX_KEY_FILE_BYTES) as handle:
        text = handle.read().decode("ascii", "replace")
    try:
        own = keys.parse_public(text)
    except KeyFileError as error:
        raise MalformedRunError(f"trainer.pub: {error}") from error
    if keys.public_text(own) != text:
        raise MalformedRunError("trainer.pub: not the one spelling of a public key in PEM")
    if expected is not None and keys.raw_public(expected) != keys.raw_public(own):
        raise SignatureError(f"trainer.pub: key {keys.key_id(own)}; expected {keys.key_id(expected)}")
    return own


def _most_lines(job: Job | LoopJob) -> int:
    """A leaf for each step and the initialisation, and at most one head after each; some more, to be able to count."""
    promised = kind_of(job).promised(job)
    return transcript.MAX_LINES if promised is None else 2 * (promised + 1) + 1000


def _transcript(
    layout: Layout, key: Ed25519PublicKey, digest: bytes, run: bytes, max_lines: int
) -> tuple[list[Leaf], list[heads.Head], list[str], merkle.Tree]:
    """Leaves up to the last head, the heads, their notes, and the tree over the leaves."""
    leaves: list[Leaf] = []
    hashes: list[bytes] = []
    found: list[heads.Head] = []
    notes: list[str] = []
    for line, value in transcript.walk(layout.transcript, max_lines=max_lines):
        if value["type"] == "leaf":
            leaves.append(leaf_from_json(value, len(leaves)))
            hashes.append(merkle.leaf_hash(line))
            continue
        if value.keys() != {"type", "note"} or not isinstance(value["note"], str):
            raise TranscriptError(f"head after step {len(leaves) - 1}: expected a note")
        head = heads.open_head(value["note"], key, KEY_NAME)
        if (head.job_digest, head.run) != (digest, run):
            raise TranscriptError(f"head of size {head.size}: is of another {'run' if head.run != run else 'job'}")
        if head.size != len(leaves):
            raise TranscriptError(f"head of size {head.size} after {len(leaves)} leaves")
        if found and head.size == found[-1].size:
            heads.check_consistent([found[-1], head], merkle.Tree(hashes))
            raise TranscriptError(f"head of size {head.size}: is there twice")
        found.append(head)
        notes.append(value["note"])
    if not found:
        raise IncompleteRunError(f"{layout.root}: no signed head; nothing can be audited")
    tree = merkle.Tree(hashes)
    heads.check_consistent(found, tree)
    signed = found[-1].size
    return leaves[:signed], found, notes, merkle.Tree(hashes[:signed])


def _attestation(evidence: Evidence) -> dict[str, Any]:
    """The trainer's statement, if it is by the key and about what this run ends in."""
    layout = evidence.layout
    with safe_open(layout.root, "attestation.json", max_bytes=MAX_ATTESTATION_BYTES) as handle:
        envelope = handle.read(MAX_ATTESTATION_BYTES + 1)
    found = statement.open_statement(envelope, evidence.key, evidence.kind.predicate)
    predicate, subject = found["predicate"], found["subject"][0]
    name = f"checkpoints/{step_name(evidence.last_step)}/{evidence.kind.product}.safetensors"
    wanted = {
        "job": heads.job_text(evidence.digest), "run": heads.run_text(evidence.run), "steps": evidence.last_step
    }  # fmt: skip
    if differ := list(canonical.differences({name: predicate.get(name) for name in wanted}, wanted)):
        raise MalformedRunError(f"attestation.json: is about another run: {', '.join(path[0] for path, *_ in differ)}")
    note = predicate.get("head")
    head = heads.open_head(note if isinstance(note, str) else "", evidence.key, KEY_NAME)
    if head != evidence.heads[-1]:
        raise EquivocationError("attestation.json: its head is not the transcript's last one")
    if subject["name"] != name:
        raise MalformedRunError(f"attestation.json: its subject is {subject['name'][:200]!r}; expected {name}")
    return found
