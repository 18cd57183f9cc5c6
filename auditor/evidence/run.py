"""A run as an auditor reads it: bounded, authenticated, and only then parsed (protocol §7.1). Imports no torch.

What opening checks, in this order:

1. The tree holds only plain files and directories under known names, no links (``layout.check_tree``).
2. ``job.json`` is the canonical text of a job of a version that this release reads.
3. ``run.json``: canonical, of this job; what it says of a loop's initial state is what leaf 0 commits to.
4. The trainer's key: the one that the auditor expects, or the run's own, which then is *not* authenticated.
5. ``transcript.jsonl``: canonical lines; leaves of the steps 0, 1, 2, ... without a gap; every head signed by that key,
   of this run and job, and the head of exactly the leaves before it (so all heads are consistent, RFC 6962 §2.1.2).
6. ``attestation.json``, where the run is complete: signed by the key, about the last head's model file.

What is not checked here: the content of log, checkpoints and programs. ``Evidence.log``, ``.checkpoint`` and ``.sites``
compare each with its leaf when it is used, and ``auditor.evidence.verify`` all of them. ``Evidence.require_complete`` reads the
last checkpoint: the attested file must hold the state that the last leaf commits to.

A run may change while it is read. So what was checked is never read again from the disk: it is used from memory.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vtrain.commit import heads, keys, merkle, statement
from vtrain.commit.chunks import chunks_digest
from vtrain.commit.digest import StateDigest, TensorBytes, files_digest
from vtrain.commit.heads import KEY_NAME
from vtrain.commit.leaf import Leaf, leaf_from_json
from vtrain.commit.statement import RUN_PREDICATE
from vtrain.errors import (
    CheckpointError,
    EquivocationError,
    IncompleteRunError,
    KeyFileError,
    LogError,
    MalformedRunError,
    SignatureError,
    TranscriptError,
    UnsupportedError,
    VersionError,
)
from vtrain.job import MAX_BYTES as MAX_JOB_BYTES
from vtrain.job import Job, LoopJob, job_digest, parse_canonical
from vtrain.store import canonical, transcript
from vtrain.store.checkpoint import MAX_FILE_BYTES, RESUME, read_checkpoint, scan_checkpoint
from vtrain.store.identity import MAX_BYTES as MAX_IDENTITY_BYTES
from vtrain.store.identity import Identity, parse_identity
from vtrain.store.layout import MAX_PROGRAM_BYTES, Layout, check_tree, safe_open, step_name
from vtrain.store.logformat import OFFSETS, step_digest
from vtrain.store.steplog import COLUMNS, SITE_COLUMNS, StepLog

if TYPE_CHECKING:
    from vtrain.store.logread import SegmentLog

# A statement about a run, with what the trainer says of its machine.
MAX_ATTESTATION_BYTES = 1 << 20
# A step has far fewer host scalars than sites; this only bounds memory.
_MAX_SCALARS = 1 << 20
_T = TypeVar("_T")  # a file of a checkpoint: tensors, or their chunks' hashes
_SITE = re.compile(r"[ -~]{1,1000}")
_NARROW = re.compile(r" (bfloat16|float16)\[", re.ASCII)  # a result in a 16-bit tensor
_SHAPE = re.compile(r"[ -~]*\[((?:\d{1,15}(?:, \d{1,15}){0,63})?)\]", re.ASCII)
_MAX_ELEMENTS = 2**48


@dataclass
class Evidence:
    """An opened run.

    Attributes:
        layout: where it is.
        job: what was to be trained.
        digest: the job's digest, 32 bytes.
        identity: what the run says that it is.
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
    identity: Identity
    key: Ed25519PublicKey
    pinned: bool
    leaves: list[Leaf]
    heads: list[heads.Head]
    tree: merkle.Tree
    notes: list[str]
    attestation: dict[str, Any] | None = None
    _final: StateDigest | None = field(default=None, repr=False)
    _segment: SegmentLog | None = field(default=None, repr=False)
    _programs: dict[str, list[str]] = field(default_factory=dict, repr=False)
    _bounds: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)

    @property
    def run(self) -> bytes:
        """The digest of its identity, which every head names, 32 bytes."""
        return self.identity.digest

    @property
    def head_digest(self) -> str:
        """How the last head is named: SHA-256, hex, of what its signature is over."""
        return heads.head_digest(self.notes[-1])

    @property
    def last_step(self) -> int:
        """Number of the last step that a head covers."""
        return len(self.leaves) - 1

    @property
    def checkpoints(self) -> list[int]:
        """Steps whose leaves carry a state digest, ascending."""
        return [leaf.step for leaf in self.leaves if leaf.state]

    @property
    def subject(self) -> tuple[str, str]:
        """Name and SHA-256 (hex) of the file that the attestation is about; of a complete run."""
        assert self.attestation is not None
        found = self.attestation["subject"][0]
        return found["name"], found["digest"]["sha256"]

    def require_complete(self) -> None:
        """Check that the run did all that its job promises, and ends in the model that it attests.

        Raises:
            IncompleteRunError: it did not.
            CheckpointError: the last checkpoint is not the state that the last leaf commits to.
            MalformedRunError: the attested file is another one.
        """
        wanted = self.job.train.steps if isinstance(self.job, Job) else None
        if wanted is not None and self.last_step != wanted:
            raise IncompleteRunError(f"{self.layout.root}: {self.last_step} steps; the job promises {wanted}")
        if self.attestation is None:
            raise IncompleteRunError(f"{self.layout.root}: no attestation; the run was not finished")
        self.state(self.last_step)

    def state(self, step: int) -> StateDigest:
        """The digest of a checkpoint, which is what its leaf commits to; reads it in a few MiB of memory.

        Raises:
            CheckpointError: missing, corrupt, or not what the leaf commits to.
            MalformedRunError: it is the last, and the attestation is about another model file.
        """
        if step == self.last_step and self._final is not None:
            return self._final
        attested = step == self.last_step and self.attestation is not None
        scanned = scan_checkpoint(self.layout, step, whole=attested)
        found = self._committed(step, {name: file.tensors for name, file in scanned.items()}, chunks_digest)
        if attested:
            name, sha256 = self.subject
            if "model" not in scanned or scanned["model"].sha256 != sha256:
                raise MalformedRunError(f"attestation.json: its subject is not the file {name}")
            self._final = found
        return found

    def _committed(
        self, step: int, files: Mapping[str, _T], digest: Callable[[dict[str, _T]], StateDigest]
    ) -> StateDigest:
        """The digest of a checkpoint's state, having compared all of it with the leaf."""
        leaf = self.leaves[step]
        found = digest({name: tensors for name, tensors in files.items() if name != RESUME})
        resume = digest({RESUME: files[RESUME]}).text if RESUME in files else ""
        for what, mine, theirs in (("state", found.text, leaf.state), (RESUME, resume, leaf.resume)):
            if mine != theirs:
                raise CheckpointError(f"checkpoints/{step_name(step)}: {what} {mine}; the leaf commits to {theirs}")
        return found

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
            if not isinstance(sites, list) or not all(isinstance(s, str) and _SITE.fullmatch(s) for s in sites):
                raise MalformedRunError(f"programs/{name}.json: not a list of sites")
            self._programs[name] = sites
        return self._programs[name]

    @property
    def promise(self) -> str:
        """The kind of the run's thresholds; ``certified`` too where only float32 results of ``mixed`` ones were logged.

        Raises:
            MalformedRunError: as ``sites``.
        """
        kind = self.job.policy.parsed_threshold.kind
        if kind != "mixed":
            return kind
        steps = {leaf.sites: leaf.step for leaf in self.leaves}.values()
        narrow = any(_NARROW.search(site) and not is_canonical(site) for step in steps for site in self.sites(step))
        return kind if narrow else "certified"

    def log(self, step: int) -> StepLog:
        """A step's rounding log, in memory: at most what the sites that the step commits to can take.

        Raises:
            LogError: missing, corrupt, or not what the leaf commits to.
            UnsupportedError: it takes more than half of this machine's memory.
        """
        segment = self._segment_of(step)
        wanted = sum(np.dtype(COLUMNS[name]).itemsize * size for name, size in segment.sizes(step).items())
        if 2 * wanted > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UnsupportedError(f"step {step}: a log of {wanted} bytes; half of this machine's memory is less")
        try:
            log = segment.step(step)
        except MemoryError as error:
            raise UnsupportedError(f"step {step}: a log of {wanted} bytes does not fit into memory") from error
        self._same_log(step, step_digest(log))
        return log

    def measure(self, step: int) -> int:
        """Check a step's rounding log as :meth:`log` does, in little memory; the number of its decisions.

        Raises:
            LogError: missing, corrupt, or not what the leaf commits to.
        """
        digest, decisions = self._segment_of(step).measure(step)
        self._same_log(step, digest)
        return decisions

    def _same_log(self, step: int, found: bytes) -> None:
        if found.hex() != self.leaves[step].log:
            raise LogError(f"step {step}: the rounding log is not what the leaf commits to")

    def _segment_of(self, step: int) -> SegmentLog:
        """The segment that holds a step, no larger there than the step's sites allow."""
        from vtrain.store.logread import read_segment  # zarr: only where a log is read

        segment = self._segment
        if segment is None or not segment.first <= step <= segment.last:
            ends = [s for s in self.checkpoints if s >= step]
            if not ends:
                raise LogError(f"step {step}: no segment of the log holds it")
            segment = self._segment = read_segment(self.layout.log, ends[0], max_bytes=self._log_bound(ends[0]))
            begins = max((s for s in self.checkpoints if s < ends[0]), default=-1) + 1
            if segment.first != begins:
                raise LogError(f"log segment {ends[0]} begins at step {segment.first}; expected {begins}")
        bounds, sizes = self._step_bounds(step), segment.sizes(step)
        for name, size in sizes.items():
            if size > bounds[name]:
                raise LogError(f"step {step}: {name} has {size} elements; its sites allow {bounds[name]}")
        return segment

    def checkpoint(self, step: int, max_bytes: int = MAX_FILE_BYTES) -> dict[str, dict[str, TensorBytes]]:
        """The tensors of a checkpoint's state by file and name, in memory.

        Args:
            step: which.
            max_bytes: bound on each of its files.

        Raises:
            CheckpointError: missing, corrupt, or not what the leaf commits to.
            PathError: a file is larger than `max_bytes`.
        """
        files, _ = read_checkpoint(self.layout, step, max_bytes=max_bytes)
        self._committed(step, files, files_digest)
        return {name: tensors for name, tensors in files.items() if name != RESUME}

    def _step_bounds(self, step: int) -> dict[str, int]:
        """Elements that each column of a step's log can have at most, from the sizes of its sites."""
        name = self.leaves[step].sites
        if name not in self._bounds:
            logged = [numel(site) for site in self.sites(step) if not is_canonical(site)]
            total = sum(logged)
            sites = SITE_COLUMNS * len(logged)
            self._bounds[name] = {
                "sites": sites, "gaps": 7 * total, "codes": total, "values": total, "scalars": _MAX_SCALARS
            }  # fmt: skip
        return self._bounds[name]

    def _log_bound(self, last: int) -> int:
        """Bytes that the log of a segment can have at most."""
        first = max((s for s in self.checkpoints if s < last), default=-1) + 1
        widths = {name: np.dtype(dtype).itemsize for name, dtype in COLUMNS.items()}
        steps = [self._step_bounds(step) for step in range(first, last + 1)]
        return sum(OFFSETS.row_bytes + sum(widths[name] * bound for name, bound in step.items()) for step in steps)


def is_canonical(site: str) -> bool:
    """Whether a site's result has one defined order of arithmetic, and so no log."""
    return site.split(" ")[1:2] == ["canonical"]


def numel(site: str) -> int:
    """Elements of the result that a site names.

    Raises:
        MalformedRunError: the text names no shape.
    """
    found = _SHAPE.fullmatch(site)
    if found is None:
        raise MalformedRunError(f"site {site[:100]!r} has no shape")
    extents = [int(part) for part in found[1].split(", ") if part]
    count = math.prod(extents)
    if count >= _MAX_ELEMENTS:
        raise MalformedRunError(f"site {site[:100]!r}: {count} elements; expected fewer than {_MAX_ELEMENTS}")
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
    return 2 * (job.train.steps + 1) + 1000 if isinstance(job, Job) else transcript.MAX_LINES


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
    """The trainer's statement, if it is by the key and about this run's last model."""
    layout = evidence.layout
    with safe_open(layout.root, "attestation.json", max_bytes=MAX_ATTESTATION_BYTES) as handle:
        envelope = handle.read(MAX_ATTESTATION_BYTES + 1)
    found = statement.open_statement(envelope, evidence.key, RUN_PREDICATE)
    predicate, subject = found["predicate"], found["subject"][0]
    name = f"checkpoints/{step_name(evidence.last_step)}/model.safetensors"
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
