"""Proofs that a step is in a run, which others check without the run (protocol §5). Imports neither torch nor zarr.

A proof is canonical JSON: ``format``, the step's ``leaf`` as the transcript has it, the inclusion ``path`` (hex) and
the signed ``head`` that it leads to. Whoever has the trainer's key needs nothing else: the head covers job and run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.evidence import Evidence
from vtrain.commit import heads, merkle
from vtrain.commit.leaf import Leaf, leaf_from_json
from vtrain.errors import MalformedRunError, ProofError, TranscriptError, UsageError, VersionError
from vtrain.store import canonical
from vtrain.store.address import Url
from vtrain.store.transcript import MAX_LINE_BYTES

FORMAT = "vtrain-step-proof-v2"
# A leaf, a note, and at most 64 hashes.
MAX_PROOF_BYTES = MAX_LINE_BYTES + 2 * heads.MAX_NOTE_BYTES + (1 << 14)
_FIELDS = {"format", "leaf", "path", "head"}
_MOST_HASHES = 64


@dataclass(frozen=True)
class Proved:
    """What a proof shows.

    Attributes:
        leaf: what the trainer committed to for the step.
        head: the head under which it did.
    """

    leaf: Leaf
    head: heads.Head


def prove(evidence: Evidence, step: int) -> bytes:
    """The proof of a step, under the run's last head.

    Raises:
        UsageError: the run has no such step.
    """
    if not 0 <= step <= evidence.last_step:
        raise UsageError(f"step {step}: the run has 0 to {evidence.last_step}")
    path = evidence.tree.inclusion_proof(step)
    leaf = evidence.leaves[step].to_json()
    return canonical.dumps(
        {"format": FORMAT, "leaf": leaf, "path": [h.hex() for h in path], "head": evidence.notes[-1]}
    )


def check(data: bytes, key: Ed25519PublicKey) -> Proved:
    """Check a proof from an untrusted source.

    1. Bounded, canonical JSON of exactly the fields, of this version.
    2. The head is signed by the key.
    3. The leaf is one, and the path leads from it to the head's root at its step's place.

    What is not checked: which job and run it is (``Proved.head``), and that the step was computed as it says.

    Raises:
        MalformedRunError: rule 1 (VersionError for another version).
        SignatureError, TranscriptError: rule 2, or a malformed head or leaf.
        ProofError: rule 3.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise MalformedRunError(f"proof: {len(data)} bytes; expected at most {MAX_PROOF_BYTES}")
    value = canonical.loads(data.removesuffix(b"\n"), where="proof")
    if value.get("format") != FORMAT:
        raise VersionError(f"proof: format {str(value.get('format'))[:64]!r}; this release reads {FORMAT}")
    if value.keys() != _FIELDS:
        raise MalformedRunError(f"proof: fields {sorted(value)[:10]}; expected {sorted(_FIELDS)}")
    head = heads.open_head(value["head"], key, heads.KEY_NAME)
    leaf = _leaf(value["leaf"])
    hashed = merkle.leaf_hash(canonical.dumps(leaf.to_json()))
    merkle.verify_inclusion(leaf.step, head.size, hashed, _path(value["path"]), head.root)
    return Proved(leaf, head)


def _leaf(value: Any) -> Leaf:
    step = value.get("step") if isinstance(value, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        raise TranscriptError("proof: its leaf names no step")
    return leaf_from_json(value, step)


def _path(value: Any) -> list[bytes]:
    if not isinstance(value, list) or len(value) > _MOST_HASHES:
        raise ProofError(f"proof: the path is a list of at most {_MOST_HASHES} hashes")
    try:
        path = [bytes.fromhex(text) for text in value]
    except (ValueError, TypeError) as error:
        raise ProofError(f"proof: the path is of hashes in hex: {error}") from error
    if [h.hex() for h in path] != value:
        raise ProofError("proof: a hash is not in its one spelling, lower-case hex")
    return path


def read_note(path: Path | Url) -> str:
    """A signed note's text, out of a file of any origin.

    Raises:
        UsageError: it can't be read.
        TranscriptError: too large, or not UTF-8.
    """
    data = read_bounded(path, 4 * heads.MAX_NOTE_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TranscriptError(f"{path}: not UTF-8: {error}") from error


def read_bounded(path: Path | Url, max_bytes: int) -> bytes:
    """A file or an object that the user names.

    Raises:
        UsageError: it can't be read.
        MalformedRunError: it is larger than ``max_bytes``.
        StorageError: the store fails.
    """
    if isinstance(path, Url):
        from vtrain.store.objects import open_store

        found = open_store(path).read("", max_bytes)
        if found is None:
            raise UsageError(f"{path}: there is no such object")
        return found
    try:
        with path.open("rb") as handle:
            data = handle.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > max_bytes:
        raise MalformedRunError(f"{path}: larger than {max_bytes} bytes")
    return data
