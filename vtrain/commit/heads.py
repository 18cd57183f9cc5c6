"""Signed tree heads: C2SP checkpoints (c2sp.org/tlog-checkpoint) in signed notes (c2sp.org/signed-note); protocol §5.

The note's text is four lines - origin ``vtrain/<run's identity>``, tree size, base64 root, job digest in full - and is
signed with its final newline; a blank line and the signature lines follow. Other keys may add lines (witnesses), and
the signer itself can make many signatures of one text: so nothing may depend on a note's bytes beyond its text, and
whatever names or hashes a head takes the text alone (``head_digest``).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vtrain.commit import keys
from vtrain.commit.digest import format_digest, parse_digest
from vtrain.commit.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE, Tree
from vtrain.errors import (
    EquivocationError,
    MalformedRunError,
    SignatureError,
    TranscriptError,
    UsageError,
    VersionError,
)

JOB_FORMAT = "vtrain-job-v1-sha256"
RUN_FORMAT = "vtrain-run-v1-sha256"
KEY_NAME = "vtrain-trainer"  # the name of a trainer's key in the notes that it signs
# The signed-note specification wants room for 16 signatures, of up to about 5 kB each.
MAX_NOTE_BYTES = 1 << 17
MAX_SIGNATURES = 16

_ORIGIN = "vtrain/"
_ED25519_TYPE = b"\x01"
_HASH_ID_BYTES = 4
_KEY_NAME = re.compile(r"[!-*,-~]{1,255}")  # visible ASCII without "+"
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_ORIGIN_LINE = re.compile(_ORIGIN + "([0-9a-f]{64})")


@dataclass(frozen=True)
class Head:
    """What a trainer signs at a checkpoint.

    Attributes:
        size: leaves in the tree.
        root: RFC 6962 root over them, 32 bytes.
        job_digest: SHA-256 of the canonical job, 32 bytes.
        run: SHA-256 of ``run.json``, 32 bytes: which of the job's runs it is.

    Raises:
        TranscriptError: a value is out of range.
    """

    size: int
    root: bytes
    job_digest: bytes
    run: bytes

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 0 <= self.size <= MAX_SIZE:
            raise TranscriptError(f"head: a tree size is an integer of 0 to {MAX_SIZE}, found {self.size!r}")
        for name, value in (("root", self.root), ("job digest", self.job_digest), ("run", self.run)):
            if not isinstance(value, bytes) or len(value) != HASH_BYTES:
                raise TranscriptError(f"head: the {name} is {HASH_BYTES} bytes, found {value!r}"[:200])
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise TranscriptError(f"head: size 0 with root {self.root.hex()}, wanted that of the empty tree")

    @property
    def text(self) -> str:
        """The note text: the lines that are signed."""
        root = base64.b64encode(self.root).decode("ascii")
        job = format_digest(JOB_FORMAT, self.job_digest)
        return f"{_ORIGIN}{self.run.hex()}\n{self.size}\n{root}\n{job}\n"


def job_text(digest: bytes) -> str:
    """A job's digest as text, ``vtrain-job-v1-sha256:<hex>``."""
    return format_digest(JOB_FORMAT, digest)


def run_text(identity: bytes) -> str:
    """A run's identity as text, ``vtrain-run-v1-sha256:<hex>``."""
    return format_digest(RUN_FORMAT, identity)


def note_key_id(name: str, public_key: Ed25519PublicKey) -> bytes:
    """The 4 bytes SHA-256(name || 0x0A || 0x01 || public key)[:4] (C2SP signed-note, Ed25519)."""
    data = name.encode("ascii") + b"\n" + _ED25519_TYPE + keys.raw_public(public_key)
    return hashlib.sha256(data).digest()[:_HASH_ID_BYTES]


def sign_head(head: Head, private_key: Ed25519PrivateKey, name: str) -> str:
    """The head as a signed note.

    Args:
        head: what to sign.
        private_key: the trainer's key.
        name: the key's name, such as ``example.org/trainer``: visible ASCII, no space, no ``+``.

    Raises:
        UsageError: the name is none.
    """
    _check_name(name)
    signature = keys.sign(private_key, head.text.encode("ascii"))
    encoded = base64.b64encode(note_key_id(name, private_key.public_key()) + signature).decode("ascii")
    return f"{head.text}\n\N{EM DASH} {name} {encoded}\n"


def open_head(text: str, public_key: Ed25519PublicKey, name: str) -> Head:
    """Parse and check a signed note from an untrusted source.

    1. It is text of bounded size, without control characters, ending in signature lines of the right form.
    2. At least one signature has the key's name and id, and each that has verifies. Other keys' signatures are not
       checked (the specification wants them ignored).
    3. Only then the text is read: exactly the four lines that :attr:`Head.text` writes.

    What is not checked: that job and run are those expected; compare ``job_digest`` and ``run``.

    Raises:
        TranscriptError: rule 1 or 3 (VersionError for the head of an earlier release, which named no run).
        SignatureError: rule 2.
        UsageError: ``name`` is no key name.
    """
    _check_name(name)
    body, signatures = _split_note(text)
    wanted = note_key_id(name, public_key)
    mine = [s for n, i, s in signatures if n == name and i == wanted]
    if not mine:
        raise SignatureError(f"head: no signature by {name} with key id {wanted.hex()} among {len(signatures)}")
    for signature in mine:
        keys.verify(public_key, signature, body.encode("utf-8"))
    return _parse_body(body)


def check_consistent(heads: Sequence[Head], tree: Tree) -> None:
    """Check that all heads are of one run and of this tree.

    Raises:
        EquivocationError: two heads of one run and size differ, or a head's root is not the tree's root at its size.
        TranscriptError: heads of different runs, which convict nobody, or a head beyond the tree, which can't be
            checked.
    """
    by_size: dict[int, Head] = {}
    for head in heads:
        if head.run != heads[0].run:
            jobs = "of one job" if head.job_digest == heads[0].job_digest else "of two jobs"
            raise TranscriptError(
                f"a head of another run, {run_text(head.run)}; this one is {run_text(heads[0].run)}: two runs {jobs}, "
                "whose heads have nothing to do with each other"
            )
        if head.job_digest != heads[0].job_digest:
            raise TranscriptError(
                f"heads of one run and two jobs: {heads[0].job_digest.hex()}, {head.job_digest.hex()}"
            )
        # Two heads of one size convict without any tree, so they come first.
        other = by_size.setdefault(head.size, head)
        if other != head:
            raise EquivocationError(f"two heads of size {head.size}: roots {other.root.hex()} and {head.root.hex()}")
    for head in by_size.values():
        if head.size > len(tree):
            raise TranscriptError(
                f"a head of size {head.size}, but the transcript has only {len(tree)} leaves: whether it extends them, "
                "only a consistency proof can tell"
            )
        if (found := tree.root(head.size)) != head.root:
            raise EquivocationError(
                f"the head of size {head.size} has root {head.root.hex()}, but the leaves have {found.hex()}"
            )


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _KEY_NAME.fullmatch(name):
        raise UsageError(f"{str(name)[:300]!r} is no key name: 1 to 255 visible ASCII characters without '+'")


def head_digest(note: str) -> str:
    """SHA-256 of what a note's signatures are over, hex: how a head is named.

    Not of the note: anybody can add lines to that, and its signer sign again, without making it another head.

    Raises:
        TranscriptError: rule 1 of ``open_head``.
    """
    return hashlib.sha256(_split_note(note)[0].encode("utf-8")).hexdigest()


def peek_head(text: str) -> Head:
    """Parse a note without checking who signed it: for one that is known by its hash.

    Raises:
        TranscriptError: rules 1 and 3 of ``open_head``.
    """
    return _parse_body(_split_note(text)[0])


def _split_note(text: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """A note's text and its signatures as (key name, key id, signature)."""
    if not isinstance(text, str) or len(text) > MAX_NOTE_BYTES:
        raise TranscriptError(f"head: wanted text of at most {MAX_NOTE_BYTES} bytes")
    if any((c < " " and c != "\n") or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text):
        raise TranscriptError("head: a control character or a lone surrogate")
    body, blank, lines = text.rpartition("\n\n")
    if not blank or not lines.endswith("\n"):
        raise TranscriptError("head: wanted text, a blank line and signature lines, each ended by a newline")
    rows = lines[:-1].split("\n")
    if len(rows) > MAX_SIGNATURES:
        raise TranscriptError(f"head: {len(rows)} signatures, wanted at most {MAX_SIGNATURES}")
    return body + "\n", [_parse_signature(row) for row in rows]


def _parse_signature(row: str) -> tuple[str, bytes, bytes]:
    parts = row.split(" ")
    if len(parts) != 3 or parts[0] != "\N{EM DASH}" or "+" in parts[1] or parts[1].split() != [parts[1]]:
        raise TranscriptError(f"head: {row[:200]!r} is no signature line")
    try:
        data = keys.decode_base64(parts[2])
    except ValueError as e:
        raise TranscriptError(f"head: signature by {parts[1][:200]!r}: {e}") from e
    if len(data) <= _HASH_ID_BYTES:
        raise TranscriptError(f"head: signature by {parts[1][:200]!r}: {len(data)} bytes, wanted a key id and more")
    return parts[1], data[:_HASH_ID_BYTES], data[_HASH_ID_BYTES:]


def _parse_body(body: str) -> Head:
    lines = body[:-1].split("\n")
    if len(lines) != 4:
        raise TranscriptError(f"head: {len(lines)} lines of text, wanted 4")
    if not _SIZE.fullmatch(lines[1]):
        raise TranscriptError(f"head: {lines[1][:100]!r} is no tree size")
    try:
        root, job_digest = keys.decode_base64(lines[2]), parse_digest(JOB_FORMAT, lines[3])
    except (ValueError, MalformedRunError) as e:
        raise TranscriptError(f"head: {e}") from e
    origin = _ORIGIN_LINE.fullmatch(lines[0])
    if origin is None:
        raise TranscriptError(f"head: origin {lines[0][:200]!r}, wanted {_ORIGIN}<64 hex digits>")
    head = Head(int(lines[1]), root, job_digest, bytes.fromhex(origin[1]))
    if head.run == job_digest:
        raise VersionError(
            "head: its origin is its job's digest, as an earlier release wrote it; wanted a run's identity"
        )
    if head.text != body:
        raise TranscriptError(f"head: {body[:300]!r} is not the one spelling of its four lines")
    return head
