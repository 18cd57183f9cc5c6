"""A run as an auditor has it, once it is opened; its files are compared with their leaves as they are used (§7.1).

Imports no torch. A run may change while it is read. So what was checked is never read again from the disk: it is used
from memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.evidence.kinds import RunKind, kind_of
from auditor.evidence.sites import is_canonical, is_narrow, is_site, numel
from vtrain.commit import heads, merkle, statement
from vtrain.commit.chunks import chunks_digest
from vtrain.commit.digest import StateDigest, TensorBytes, files_digest
from vtrain.commit.leaf import Leaf
from vtrain.errors import (
    CheckpointError,
    IncompleteRunError,
    LogError,
    MalformedRunError,
    UnsupportedError,
)
from vtrain.job import Job, LoopJob
from vtrain.store.checkpoint import MAX_FILE_BYTES, RESUME, read_checkpoint, scan_checkpoint
from vtrain.store.identity import Identity
from vtrain.store.layout import MAX_PROGRAM_BYTES, Layout, safe_open, step_name
from vtrain.store.logformat import OFFSETS, step_digest
from vtrain.store.steplog import COLUMNS, SITE_COLUMNS, StepLog

if TYPE_CHECKING:
    from vtrain.store.logread import SegmentLog

# A step has far fewer host scalars than sites; this only bounds memory.
_MAX_SCALARS = 1 << 20
_T = TypeVar("_T")  # a file of a checkpoint: tensors, or their chunks' hashes


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
    def kind(self) -> RunKind:
        """What its steps are of."""
        return kind_of(self.job)

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
        """Check that the run did all that its job promises, and ends in what it attests.

        Raises:
            IncompleteRunError: it did not.
            CheckpointError: the last checkpoint is not the state that the last leaf commits to.
            MalformedRunError: the attested file is another one.
        """
        wanted = self.kind.promised(self.job)
        if wanted is not None and self.last_step != wanted:
            raise IncompleteRunError(f"{self.layout.root}: {self.last_step} steps; the job promises {wanted}")
        if self.attestation is None:
            raise IncompleteRunError(f"{self.layout.root}: no attestation; the run was not finished")
        self.state(self.last_step)

    def state(self, step: int) -> StateDigest:
        """The digest of a checkpoint, which is what its leaf commits to; reads it in a few MiB of memory.

        Raises:
            CheckpointError: missing, corrupt, or not what the leaf commits to.
            MalformedRunError: it is the last, and the attestation is about another file.
        """
        if step == self.last_step and self._final is not None:
            return self._final
        attested = step == self.last_step and self.attestation is not None
        scanned = scan_checkpoint(self.layout, step, whole=attested)
        found = self._committed(step, {name: file.tensors for name, file in scanned.items()}, chunks_digest)
        if attested:
            name, sha256 = self.subject
            if self.kind.product not in scanned or scanned[self.kind.product].sha256 != sha256:
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
            if not isinstance(sites, list) or not all(is_site(s) for s in sites):
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
        narrow = any(is_narrow(site) and not is_canonical(site) for step in steps for site in self.sites(step))
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
