"""A run as an auditor reads it: bounded, authenticated, and only then parsed (protocol §7.1). Imports no torch.

What opening checks, in this order:

1. The tree holds only plain files and directories under known names, no links (``layout.check_tree``).
2. ``job.json`` is the canonical text of a job of a version that this release reads.
3. The trainer's key: the one that the auditor expects, or the run's own, which then is *not* authenticated.
4. ``transcript.jsonl``: canonical lines; leaves of the steps 0, 1, 2, ... without a gap; every head signed by that key,
   of this job, and the head of exactly the leaves before it (so all heads are consistent, RFC 6962 §2.1.2).
5. ``attestation.json``, where the run is complete: signed by the key, about the last head's model file.

What is not checked here: the content of log, checkpoints and programs. ``Evidence.log``, ``.checkpoint`` and ``.sites``
compare each with its leaf when it is used, and ``auditor.verify`` all of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vtrain.commit import heads, keys, merkle, statement
from vtrain.commit.digest import TensorBytes, file_digest, files_digest
from vtrain.commit.leaf import Leaf, leaf_from_json
from vtrain.errors import (
    CheckpointError,
    EquivocationError,
    IncompleteRunError,
    KeyFileError,
    LogError,
    MalformedRunError,
    SignatureError,
    TranscriptError,
)
from vtrain.job import MAX_BYTES as MAX_JOB_BYTES
from vtrain.job import Job, LoopJob, job_digest, parse_canonical
from vtrain.store import canonical, transcript
from vtrain.store.checkpoint import read_checkpoint
from vtrain.store.layout import Layout, check_tree, safe_open, step_name
from vtrain.store.logformat import step_digest
from vtrain.store.steplog import StepLog
from vtrain.store.writer import KEY_NAME, RUN_PREDICATE

MAX_PROGRAM_BYTES = 64 << 20
MAX_SITES = 10_000_000
# A step has far fewer host scalars than sites; this only bounds memory.
_MAX_SCALARS = 10_000_000
# Bytes of log that one element can take: a gap of up to 7 bytes, a whole value of 4, a share of a code.
_BYTES_AN_ELEMENT = 12


@dataclass
class Evidence:
    """An opened run.

    Attributes:
        layout: where it is.
        job: what was to be trained.
        digest: the job's digest, 32 bytes.
        key: the key that its heads are signed with.
        pinned: whether the auditor brought that key.
        leaves: one a step that a head covers; number 0 is the initialisation.
        heads: the signed heads, ascending.
        tree: over the leaves.
        notes: the heads' signed notes.
        attestation: the trainer's statement; None for an unfinished run.
    """

    layout: Layout
    job: Job | LoopJob
    digest: bytes
    key: Ed25519PublicKey
    pinned: bool
    leaves: list[Leaf]
    heads: list[heads.Head]
    tree: merkle.Tree
    notes: list[str]
    attestation: dict[str, Any] | None = None
    _segment: Any = field(default=None, repr=False)
    _programs: dict[str, list[str]] = field(default_factory=dict, repr=False)

    @property
    def last_step(self) -> int:
        """Number of the last step that a head covers."""
        return len(self.leaves) - 1

    @property
    def checkpoints(self) -> list[int]:
        """Steps whose leaves carry a state digest, ascending."""
        return [leaf.step for leaf in self.leaves if leaf.state]

    def require_complete(self) -> None:
        """Check that the run did all that its job promises.

        Raises:
            IncompleteRunError: it did not.
        """
        wanted = self.job.train.steps if isinstance(self.job, Job) else None
        if wanted is not None and self.last_step != wanted:
            raise IncompleteRunError(f"{self.layout.root}: {self.last_step} steps; the job promises {wanted}")
        if self.attestation is None:
            raise IncompleteRunError(f"{self.layout.root}: no attestation; the run was not finished")

    def sites(self, step: int) -> list[str]:
        """The sequence of sites that a step commits to: operation, format and shape of each settled result.

        Raises:
            MalformedRunError: the program file is missing, not what the leaf says, or nonsense.
        """
        name = self.leaves[step].sites
        if name not in self._programs:
            with safe_open(self.layout.root, f"programs/{name}.json", max_bytes=MAX_PROGRAM_BYTES) as handle:
                data = handle.read(MAX_PROGRAM_BYTES + 1)
            if hashlib.sha256(data).hexdigest() != name:
                raise MalformedRunError(f"programs/{name}.json: has another SHA-256")
            value = statement.strict_json(data, f"programs/{name}.json")
            sites = value.get("sites") if isinstance(value, dict) else None
            if not isinstance(sites, list) or len(sites) > MAX_SITES or not all(isinstance(s, str) for s in sites):
                raise MalformedRunError(f"programs/{name}.json: not a list of sites")
            self._programs[name] = sites
        return self._programs[name]

    def log(self, step: int) -> StepLog:
        """A step's rounding log.

        Raises:
            LogError: missing, corrupt, or not what the leaf commits to.
        """
        from vtrain.store.log import SegmentLog, read_segment  # zarr: only where a log is read

        segment = self._segment
        if not isinstance(segment, SegmentLog) or not segment.first <= step <= segment.last:
            ends = [s for s in self.checkpoints if s >= step]
            if not ends:
                raise LogError(f"step {step}: no segment of the log holds it")
            segment = self._segment = read_segment(self.layout.log, ends[0], max_bytes=self._log_bound(ends[0]))
            begins = max((s for s in self.checkpoints if s < ends[0]), default=-1) + 1
            if segment.first != begins:
                raise LogError(f"log segment {ends[0]} begins at step {segment.first}; expected {begins}")
        log = segment.step(step)
        if step_digest(log).hex() != self.leaves[step].log:
            raise LogError(f"step {step}: the rounding log is not what the leaf commits to")
        return log

    def checkpoint(self, step: int) -> dict[str, dict[str, TensorBytes]]:
        """The tensors of a checkpoint by file and name.

        Raises:
            CheckpointError: missing, corrupt, or not what the leaf commits to.
        """
        files, _ = read_checkpoint(self.layout, step)
        found = files_digest(files).text
        if found != self.leaves[step].state:
            raise CheckpointError(
                f"checkpoints/{step_name(step)}: state {found}; the leaf commits to {self.leaves[step].state}"
            )
        return files

    def _log_bound(self, last: int) -> int:
        """Bytes that the log of a segment can have at most, from the sizes of its sites."""
        first = max((s for s in self.checkpoints if s < last), default=-1) + 1
        distinct = {self.leaves[s].sites: s for s in range(first, last + 1)}.values()
        per_step = max(
            sum(_BYTES_AN_ELEMENT * numel(site) + 48 for site in self.sites(s) if not is_canonical(site))
            for s in distinct
        )
        return (last - first + 1) * (per_step + 8 * _MAX_SCALARS)


def is_canonical(site: str) -> bool:
    """Whether a site's result has one defined order of arithmetic, and so no log."""
    return site.split(" ")[1:2] == ["canonical"]


def numel(site: str) -> int:
    """Elements of the result that a site names.

    Raises:
        MalformedRunError: the text names no shape.
    """
    _, _, shape = site.rpartition("[")
    try:
        count = 1
        for part in shape.removesuffix("]").split(","):
            count *= int(part) if part.strip() else 1
    except ValueError as error:
        raise MalformedRunError(f"site {site[:100]!r} has no shape") from error
    if not 0 <= count < 2**48:
        raise MalformedRunError(f"site {site[:100]!r}: {count} elements")
    return count


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
    key = _key(layout, expected_key)
    leaves, found, notes, tree = _transcript(layout, key, digest)
    evidence = Evidence(layout, job, digest, key, expected_key is not None, leaves, found, tree, notes)
    if layout.attestation.exists():
        evidence.attestation = _attestation(evidence)
    return evidence


def _key(layout: Layout, expected: Ed25519PublicKey | None) -> Ed25519PublicKey:
    with safe_open(layout.root, "trainer.pub", max_bytes=keys.MAX_KEY_FILE_BYTES) as handle:
        text = handle.read().decode("ascii", "replace")
    try:
        own = keys.load_public(text if text.startswith("-----BEGIN") else "-----BEGIN" + text)
    except KeyFileError as error:
        raise MalformedRunError(f"trainer.pub: {error}") from error
    if keys.public_text(own) != text:
        raise MalformedRunError("trainer.pub: not the one spelling of a public key in PEM")
    if expected is not None and keys.raw_public(expected) != keys.raw_public(own):
        raise SignatureError(f"trainer.pub: key {keys.key_id(own)}; expected {keys.key_id(expected)}")
    return own


def _transcript(
    layout: Layout, key: Ed25519PublicKey, digest: bytes
) -> tuple[list[Leaf], list[heads.Head], list[str], merkle.Tree]:
    """Leaves up to the last head, the heads, their notes, and the tree over the leaves."""
    leaves: list[Leaf] = []
    hashes: list[bytes] = []
    found: list[heads.Head] = []
    notes: list[str] = []
    for line, value in transcript.read(layout.transcript).lines:
        if value["type"] == "leaf":
            leaves.append(leaf_from_json(value, len(leaves)))
            hashes.append(merkle.leaf_hash(line))
            continue
        if value.keys() != {"type", "note"} or not isinstance(value["note"], str):
            raise TranscriptError(f"head after step {len(leaves) - 1}: expected a note")
        head = heads.open_head(value["note"], key, KEY_NAME)
        if head.job_digest != digest:
            raise TranscriptError(f"head of size {head.size}: is of another job")
        if head.size != len(leaves):
            raise TranscriptError(f"head of size {head.size} after {len(leaves)} leaves")
        found.append(head)
        notes.append(value["note"])
    if not found:
        raise IncompleteRunError(f"{layout.root}: no signed head; nothing can be audited")
    tree = merkle.Tree(hashes)
    heads.check_consistent(found, tree)
    signed = found[-1].size
    return leaves[:signed], found, notes, merkle.Tree(hashes[:signed])


def _attestation(evidence: Evidence) -> dict[str, Any]:
    """The trainer's statement, if it is by the key and about this run's last model."""
    layout = evidence.layout
    with safe_open(layout.root, "attestation.json", max_bytes=statement.MAX_ENVELOPE_BYTES) as handle:
        envelope = handle.read(statement.MAX_ENVELOPE_BYTES + 1)
    found = statement.open_statement(envelope, evidence.key, RUN_PREDICATE)
    predicate, subject = found["predicate"], found["subject"][0]
    name = f"checkpoints/{step_name(evidence.last_step)}/model.safetensors"
    if predicate.get("job") != heads.job_text(evidence.digest) or predicate.get("steps") != evidence.last_step:
        raise MalformedRunError("attestation.json: is about another job or another number of steps")
    note = predicate.get("head")
    head = heads.open_head(note if isinstance(note, str) else "", evidence.key, KEY_NAME)
    if head != evidence.heads[-1]:
        raise EquivocationError("attestation.json: its head is not the transcript's last one")
    if not (layout.root / name).is_file():
        raise CheckpointError(f"{layout.root / name}: missing; the attestation is about it")
    if subject["name"] != name or subject["digest"]["sha256"] != file_digest(layout.root / name):
        raise MalformedRunError(f"attestation.json: its subject is not the file {name}")
    return found
