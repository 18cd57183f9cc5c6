"""What each side signs about its trace of a step, before any of it is compared (protocol §8). Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vtrain.commit import keys
from vtrain.commit.trace import MAX_EVENTS
from vtrain.errors import ProofError, SignatureError

COMMITMENT_FORMAT = "vtrain-commitment-v2"
CHALLENGER, RESPONDER = "challenger", "responder"
_HEX = re.compile(r"[0-9a-f]{64}")
_CONTEXT = f"{COMMITMENT_FORMAT}\n".encode()
_HASHES = ("job", "head", "root", "session", "repairs")


@dataclass(frozen=True)
class Commitment:
    """A signed trace root. It names the dispute and the part in it, so that it is worth nothing in another one.

    Attributes:
        job: the job's digest, hex.
        head: digest of the run's last head, hex (``heads.head_digest``): which run it is about.
        session: of the dispute, 64 hex digits.
        side: ``challenger`` or ``responder``.
        step: number of the step.
        size: events in the trace.
        root: over their leaf hashes, hex.
        repairs: SHA-256 of the repairs made before, hex; 64 zeros without.
    """

    job: str
    head: str
    session: str
    side: str
    step: int
    size: int
    root: str
    repairs: str = "0" * 64

    def payload(self) -> bytes:
        """The bytes that are signed."""
        return _CONTEXT + rfc8785.dumps(vars(self))

    def sign(self, key: Ed25519PrivateKey) -> dict[str, Any]:
        """As a message carries it."""
        signature = base64.b64encode(keys.sign(key, self.payload())).decode()
        return {**vars(self), "signature": signature}


def open_commitment(value: object, key: Ed25519PublicKey) -> Commitment:
    """Check a signed commitment; hostile input.

    Raises:
        ProofError: not of that form.
        SignatureError: not signed by the key.
    """
    wanted = {"side", "step", "size", "signature", *_HASHES}
    if not isinstance(value, dict) or value.keys() != wanted:
        raise ProofError(f"commitment: fields {sorted(value) if isinstance(value, dict) else value!r}"[:300])
    hexes = all(isinstance(value[n], str) and _HEX.fullmatch(value[n]) for n in _HASHES)
    numbers = type(value["step"]) is int and type(value["size"]) is int
    if (
        value["side"] not in (CHALLENGER, RESPONDER)
        or not hexes
        or not numbers
        or not 0 <= value["step"] < 2**53
        or not 0 < value["size"] <= MAX_EVENTS
    ):
        raise ProofError("commitment: values out of range")
    try:
        signature = keys.decode_base64(value["signature"])
    except ValueError as error:
        raise SignatureError(f"commitment: {error}") from error
    found = Commitment(**{k: v for k, v in value.items() if k != "signature"})
    keys.verify(key, signature, found.payload())
    return found


COLUMNS = ("row", "gaps", "codes", "values")  # of a site's decisions (protocol §3)


def decode_columns(texts: Mapping[str, str]) -> dict[str, bytes]:
    """A site's decisions from base64; hostile input.

    Raises:
        ProofError: a column is missing or no base64.
    """
    try:
        return {name: keys.decode_base64(texts[name]) for name in COLUMNS}
    except (KeyError, ValueError) as error:
        raise ProofError(f"decisions: {error!r}"[:200]) from error


def columns_digest(columns: Mapping[str, bytes]) -> str:
    """SHA-256 of a site's columns, hex; each column by its length."""
    parts = (columns[name] for name in COLUMNS)
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).hexdigest()
