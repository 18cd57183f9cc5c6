"""Writes a run: log, leaves, heads, checkpoints, in an order that a kill at any moment can't spoil (protocol §3-6).

What the run is (``run.json``) is fixed before the first head, which names it. A checkpoint at step c is acknowledged by
its signed head, written last: log segment, checkpoint, leaves, head. What follows the last head is dropped on resuming,
and done again with the same bits.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vtrain.commit import heads, keys, merkle, statement
from vtrain.commit.digest import TensorBytes, file_digest
from vtrain.commit.heads import KEY_NAME
from vtrain.commit.leaf import Leaf, leaf_from_json
from vtrain.commit.statement import RUN_PREDICATE
from vtrain.errors import (
    BatchError,
    CheckpointError,
    KeyFileError,
    StorageError,
    TranscriptError,
    UsageError,
    VersionError,
)
from vtrain.store import layout as places
from vtrain.store import transcript
from vtrain.store.atomic import remove_temporaries, remove_tree, storage_errors, write_bytes
from vtrain.store.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from vtrain.store.identity import MAX_BYTES as MAX_IDENTITY_BYTES
from vtrain.store.identity import Identity, LoopFacts, parse_identity
from vtrain.store.layout import MAX_PROGRAM_BYTES, Layout, WriterLock, safe_open, step_name
from vtrain.store.log import LogWriter, discard_after
from vtrain.store.lost import MACHINE, LostStep, lost_steps
from vtrain.store.steplog import StepLog


class RunWriter:
    """The one writer of a run.

    Args:
        layout: a run directory made by ``create``, or one to go on with.
        job: the job's canonical bytes.
        digest: the job's digest.
        key: the trainer's.

    Attributes:
        checkpoint_step: step of the last acknowledged checkpoint, -1 if there is none.
        identity: what the run is; None until ``identify``.
        lost: steps that were done after that checkpoint, as far as is known.
        on_acknowledged: called when a checkpoint or the statement is durable, before anything else is written.
    """

    def __init__(self, layout: Layout, job: bytes, digest: bytes, key: Ed25519PrivateKey) -> None:
        self.layout = layout
        self._digest = digest
        self._key = key
        self.on_acknowledged: Callable[[], None] = _nobody
        self.lost: dict[int, LostStep] = {}
        self._lock = WriterLock(layout)
        self._lock.__enter__()
        try:
            self._open(job)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def _open(self, job: bytes) -> None:
        layout = self.layout
        begun = layout.job.exists()
        if not begun or not layout.public_key.exists():
            write_bytes(layout.public_key, keys.public_text(self._key).encode())
        elif keys.raw_public(keys.load_public(layout.public_key)) != keys.raw_public(self._key.public_key()):
            raise KeyFileError(f"{layout.root}: was begun with another key; resume it with that one")
        if not begun:
            write_bytes(layout.job, job)  # last: a run without a job has nothing to go on with
        self._tree, self.checkpoint_step, lines = _acknowledged(layout)
        self.identity = _identity(layout, self._digest)
        if self.identity is None and self.checkpoint_step >= 0:
            raise VersionError(f"{layout.root}: has no run.json: an earlier release began it, and must go on with it")
        self.lost = lost_steps(layout, lines)
        self._drop_after(self.checkpoint_step, lines)
        self._transcript = transcript.TranscriptWriter(layout.transcript)
        self._log = LogWriter(layout.log)
        self._programs = {path.stem for path in layout.programs.iterdir()}
        with storage_errors(layout.metrics):
            self._metrics = open(layout.metrics, "a", encoding="utf-8")  # noqa: SIM115

    def _drop_after(self, step: int, lines: int) -> None:
        layout = self.layout
        if layout.transcript.exists():
            transcript.truncate_after(layout.transcript, lines)
        discard_after(layout.log, step)
        for found in list_checkpoints(layout):
            if found > step:
                remove_tree(layout.checkpoint(found))
        for directory in (layout.root, layout.checkpoints, layout.programs):
            remove_temporaries(directory)
        layout.attestation.unlink(missing_ok=True)
        _keep_metrics(layout.metrics, step)

    def identify(self, loop: LoopFacts | None) -> None:
        """Say what the run is, under a random nonce; before the first checkpoint. What heads name already, stays.

        Args:
            loop: what a recorded loop began with; None for the run of a job file.

        Raises:
            UsageError: the loop has more modules or files than an auditor reads.
            StorageError: the disk refuses.
        """
        if self.identity is not None and self.checkpoint_step >= 0:
            return
        self.identity = Identity(heads.job_text(self._digest), new_nonce(), loop)
        write_bytes(self.layout.identity, self.identity.encode())

    def step(self, leaf: Leaf, log: StepLog, program: bytes) -> None:
        """Take one step: its log goes to the background writer, its leaf to the transcript.

        Raises:
            BatchError: a batch or metric has a name that a leaf can't carry.
            UsageError: the step has more results than an auditor reads.
            StorageError: the disk is full, read-only or failing.
        """
        value = leaf.to_json()
        try:
            leaf_from_json(value, leaf.step)
        except TranscriptError as error:
            raise BatchError(str(error)) from error
        if len(program) > MAX_PROGRAM_BYTES:
            found = f"its results take {len(program)} bytes to name"
            raise UsageError(f"step {leaf.step}: {found}; an auditor reads at most {MAX_PROGRAM_BYTES}")
        if leaf.sites not in self._programs:
            write_bytes(self.layout.programs / f"{leaf.sites}.json", program)
            self._programs.add(leaf.sites)
        self._log.append(leaf.step, log)
        self._tree.append(merkle.leaf_hash(self._transcript.append(value)))

    def checkpoint(self, step: int, files: Mapping[str, Mapping[str, TensorBytes]], meta: dict[str, Any]) -> None:
        """Make everything up to ``step``, whose leaf carries the state digest, durable, and sign it.

        Raises:
            StorageError: the disk is full, read-only or failing; the checkpoint before stays valid.
        """
        self._log.end_segment(step)
        write_checkpoint(self.layout, step, files, meta)
        self._transcript.append({"type": "head", "note": heads.sign_head(self._head(), self._key, KEY_NAME)})
        self._transcript.sync()
        self.checkpoint_step = step
        with storage_errors(self.layout.metrics):
            self._metrics.flush()
        self.on_acknowledged()

    def _head(self) -> heads.Head:
        assert self.identity is not None, "identify comes before the first checkpoint"
        return heads.Head(len(self._tree), self._tree.root(), self._digest, self.identity.digest)

    def metrics(self, values: dict[str, Any]) -> None:
        """Append a line for people; neither durable nor evidence."""
        with storage_errors(self.layout.metrics):
            self._metrics.write(json.dumps(values) + "\n")

    def attest(self, environment: dict[str, Any]) -> None:
        """Write the trainer's statement on the last checkpoint's model (protocol §6)."""
        name = f"checkpoints/{step_name(self.checkpoint_step)}/model.safetensors"
        head = self._head()
        predicate = {
            "job": heads.job_text(self._digest),
            "run": heads.run_text(head.run),
            "steps": self.checkpoint_step,
            "head": heads.sign_head(head, self._key, KEY_NAME),
            "environment": environment,
        }
        made = statement.make_statement(name, file_digest(self.layout.root / name), RUN_PREDICATE, predicate)
        write_bytes(self.layout.attestation, statement.sign_statement(made, self._key))
        self.on_acknowledged()

    def put_back(self, step: int) -> None:
        """Write the lost steps from ``step`` on again: who resumes next compares with them, too."""
        for number in range(step, step + len(self.lost)):
            if number not in self.lost:
                return
            self.metrics({"step": number, MACHINE: self.lost[number].machine})
            self._transcript.append(self.lost[number].leaf.to_json())

    def close(self) -> None:
        """Give up what follows the last checkpoint, and let go of the run."""
        self._log.abort()
        try:
            self._transcript.close()
            with storage_errors(self.layout.metrics):
                self._metrics.close()
        finally:
            self._lock.__exit__(None, None, None)

    def remove_if_empty(self) -> None:
        """Remove a run, closed before, that has no checkpoint: it holds nothing, and its name is free again."""
        if self.checkpoint_step < 0:
            with suppress(StorageError):
                remove_tree(self.layout.root)


def new_nonce() -> str:
    """16 random bytes, hex: two trainings of one job by one key are two runs."""
    return secrets.token_hex(16)


def _nobody() -> None:
    """Nobody waits for acknowledgements."""


def create(root: Path, job: bytes, digest: bytes, key: Ed25519PrivateKey) -> RunWriter:
    """Begin a new run.

    Raises:
        RunExistsError: the directory exists and is not empty.
        StorageError: the disk refuses.
    """
    return RunWriter(places.create(root), job, digest, key)


def _identity(layout: Layout, digest: bytes) -> Identity | None:
    if not layout.identity.exists():
        return None
    with safe_open(layout.root, "run.json", max_bytes=MAX_IDENTITY_BYTES) as handle, storage_errors(layout.identity):
        return parse_identity(handle.read(), heads.job_text(digest))


def _acknowledged(layout: Layout) -> tuple[merkle.Tree, int, int]:
    """Tree and step of the last head whose checkpoint is there, and the transcript lines up to it."""
    best = (0, 0)
    hashes: list[bytes] = []
    if not layout.transcript.exists():
        return merkle.Tree(), -1, 0
    there = set(list_checkpoints(layout))
    for number, (line, value) in enumerate(transcript.read(layout.transcript).lines, 1):
        if value["type"] == "leaf":
            hashes.append(merkle.leaf_hash(line))
        elif len(hashes) - 1 in there:
            best = (len(hashes), number)
    size, lines = best
    return merkle.Tree(hashes[:size]), size - 1, lines


def acknowledged_step(layout: Layout) -> int:
    """Step of the checkpoint that resuming goes on from, -1 if there is none; modifies nothing."""
    return _acknowledged(layout)[1]


def last_checkpoint(layout: Layout, step: int) -> tuple[dict[str, dict[str, TensorBytes]], dict[str, Any]]:
    """The checkpoint to resume from.

    Raises:
        CheckpointError: there is none.
    """
    if step < 0:
        raise CheckpointError(f"{layout.root}: no complete checkpoint to resume from; train anew")
    return read_checkpoint(layout, step)


def _keep_metrics(path: Path, step: int) -> None:
    """Drop the metrics of steps that will be done again."""
    if not path.exists():
        return
    kept = []
    with storage_errors(path):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # torn
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def written_leaves(layout: Layout) -> list[Leaf]:
    """The leaves of the writer's own run, after it dropped what was not acknowledged."""
    values = [value for _, value in transcript.read(layout.transcript).lines if value["type"] == "leaf"]
    return [leaf_from_json(value, step) for step, value in enumerate(values)]
