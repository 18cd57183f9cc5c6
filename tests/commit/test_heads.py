"""Signed heads: a published signed note, a note written by hand, and spoilt ones."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from vtrain.commit import heads, keys, merkle
from vtrain.commit.heads import Head
from vtrain.errors import (
    EquivocationError,
    MalformedRunError,
    SignatureError,
    TranscriptError,
    UsageError,
    VersionError,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
NAME = "example.org/trainer"
JOB, RUN = (hashlib.sha256(what).digest() for what in (b"job", b"run"))
TREE = merkle.Tree(merkle.leaf_hash(bytes([i])) for i in range(20))
HEAD = Head(7, TREE.root(7), JOB, RUN)
NOTE = heads.sign_head(HEAD, KEY, NAME)
BODY = HEAD.text


def note_by_hand(body: str, key: Ed25519PrivateKey = KEY, name: str = NAME) -> str:
    """A signed note written from the specification, whatever its text."""
    raw = key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(name.encode() + b"\n\x01" + raw).digest()[:4]
    return f"{body}\n\u2014 {name} {base64.b64encode(key_id + key.sign(body.encode())).decode()}\n"


def test_published_note() -> None:
    """The example key and signature of Go's golang.org/x/mod/sumdb/note."""
    encoded_key = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    public = Ed25519PublicKey.from_public_bytes(encoded_key[1:])
    assert heads.note_key_id("PeterNeumann", public).hex() == "c74f20a3"
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
        "\n"
        "\u2014 PeterNeumann "
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    # The signature holds, so only the text is wrong: it is no head.
    with pytest.raises(TranscriptError, match="2 lines of text"):
        heads.open_head(text, public, "PeterNeumann")
    with pytest.raises(SignatureError):
        heads.open_head(text.replace("answer", "Answer"), public, "PeterNeumann")


def test_a_head_is_a_checkpoint() -> None:
    origin, size, root, job, blank, signature, end = NOTE.split("\n")
    assert origin == f"vtrain/{RUN.hex()}"
    assert size == "7" and base64.b64decode(root) == TREE.root(7)
    assert job == f"vtrain-job-v1-sha256:{JOB.hex()}"
    assert blank == end == "" and signature.startswith(f"\u2014 {NAME} ")
    assert note_by_hand(BODY) == NOTE
    assert heads.open_head(NOTE, PUBLIC, NAME) == HEAD


def test_empty_tree() -> None:
    head = Head(0, merkle.EMPTY_ROOT, JOB, RUN)
    assert heads.open_head(heads.sign_head(head, KEY, NAME), PUBLIC, NAME) == head


def test_other_signatures_are_ignored() -> None:
    witness = note_by_hand(BODY, Ed25519PrivateKey.from_private_bytes(bytes(32)), "witness.example/\u00fc").split(
        "\n\n"
    )[1]
    strange = f"\u2014 {NAME} {base64.b64encode(b'keyid').decode()}\n"
    mine = NOTE.split("\n\n")[1]
    for lines in (witness + mine, mine + witness, strange + mine, mine + witness * 15):
        assert heads.open_head(f"{BODY}\n{lines}", PUBLIC, NAME) == HEAD
    with pytest.raises(TranscriptError, match="17 signatures"):
        heads.open_head(f"{BODY}\n{mine}{witness * 16}", PUBLIC, NAME)
    with pytest.raises(SignatureError, match="no signature"):
        heads.open_head(f"{BODY}\n{witness}", PUBLIC, NAME)


def test_one_bad_signature_of_ours_spoils_the_note() -> None:
    good, other = NOTE.split("\n\n")[1], note_by_hand(BODY.replace("7", "8")).split("\n\n")[1]
    for lines in (good + other, other + good):
        with pytest.raises(SignatureError, match="not by key"):
            heads.open_head(f"{BODY}\n{lines}", PUBLIC, NAME)


def test_wrong_key_and_name() -> None:
    with pytest.raises(SignatureError):
        heads.open_head(NOTE, keys.generate().public_key(), NAME)
    with pytest.raises(SignatureError):
        heads.open_head(NOTE, PUBLIC, "example.org/other")


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "\u00fc", "x" * 256, None, "a\u2003b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="key name"):
        heads.sign_head(HEAD, KEY, name)
    with pytest.raises(UsageError, match="key name"):
        heads.open_head(NOTE, PUBLIC, name)


ROOT64 = base64.b64encode(HEAD.root).decode()
LINES = BODY.split("\n")[:4]


@pytest.mark.parametrize(
    "lines",
    [
        LINES[:3],
        [*LINES, "more"],
        [*LINES[:3], "", LINES[3]],
        ["vtrain/" + "0" * 63, *LINES[1:]],
        ["vtrain/" + RUN.hex().upper(), *LINES[1:]],
        ["Vtrain/" + RUN.hex(), *LINES[1:]],
        [LINES[0].upper(), *LINES[1:]],
        [LINES[0], "07", *LINES[2:]],
        [LINES[0], "-7", *LINES[2:]],
        [LINES[0], "+7", *LINES[2:]],
        [LINES[0], "7 ", *LINES[2:]],
        [LINES[0], "\u0667", *LINES[2:]],
        [LINES[0], "0", *LINES[2:]],
        [LINES[0], "", *LINES[2:]],
        [LINES[0], str(2**63), *LINES[2:]],
        [LINES[0], "1" * 20, *LINES[2:]],
        [LINES[0], "1" * 5000, *LINES[2:]],
        [*LINES[:2], ROOT64.rstrip("="), LINES[3]],
        [*LINES[:2], base64.b64encode(bytes(31)).decode(), LINES[3]],
        [*LINES[:2], base64.b64encode(bytes(33)).decode(), LINES[3]],
        [*LINES[:2], "?", LINES[3]],
        [*LINES[:3], JOB.hex()],
        [*LINES[:3], LINES[3].upper()],
        [*LINES[:3], "vtrain-job-v2-sha256:" + JOB.hex()],
        [*LINES[:3], LINES[3] + " "],
    ],
)
def test_well_signed_nonsense(lines: list[str]) -> None:
    with pytest.raises(TranscriptError, match="head"):
        heads.open_head(note_by_hand("\n".join(lines) + "\n"), PUBLIC, NAME)


SIG = NOTE.split("\n\n")[1][:-1]


@pytest.mark.parametrize(
    "note",
    [
        "",
        BODY,
        BODY + "\n",
        NOTE[:-1],
        NOTE + "\n",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("7", "7\0", 1),
        NOTE.replace("7", "7\x7f", 1),
        NOTE.replace("7", "7\ud800", 1),
        NOTE.replace("\u2014", "-"),
        f"{BODY}\n{SIG} \n",
        f"{BODY}\n{SIG} x\n",
        f"{BODY}\n{SIG.replace(' ', '  ', 1)}\n",
        f"{BODY}\n{SIG.replace('/', '+', 1)}\n",
        f"{BODY}\n{SIG.replace('/', chr(0x2003), 1)}\n",
        f"{BODY}\n{SIG.replace('=', '')[:-1]}\n",
        f"{BODY}\n\u2014 {NAME} ????\n",
        f"{BODY}\n\u2014 {NAME} AAAAAA==\n",
        f"{BODY}\n\u2014  AAAAAAAA\n",
        BODY + "x" * (1 << 17) + "\n\n" + SIG + "\n",
        NOTE.encode(),
        None,
    ],
)
def test_malformed_notes(note: Any) -> None:
    with pytest.raises(TranscriptError, match="head"):
        heads.open_head(note, PUBLIC, NAME)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(NOTE) - 1), st.characters(codec="utf-8"))
def test_any_changed_character_is_noticed(at: int, new: str) -> None:
    changed = NOTE[:at] + new + NOTE[at + 1 :]
    if changed != NOTE:
        with pytest.raises((SignatureError, TranscriptError)):
            heads.open_head(changed, PUBLIC, NAME)


@pytest.mark.parametrize(
    ("size", "root", "job", "run"),
    [
        (-1, bytes(32), JOB, RUN),
        (2**63, bytes(32), JOB, RUN),
        (True, bytes(32), JOB, RUN),
        (1.0, bytes(32), JOB, RUN),
        (1, bytes(31), JOB, RUN),
        (1, "0" * 32, JOB, RUN),
        (1, bytes(32), JOB.hex(), RUN),
        (1, bytes(32), b"", RUN),
        (1, bytes(32), JOB, RUN.hex()),
        (1, bytes(32), JOB, RUN[1:]),
        (0, bytes(32), JOB, RUN),
    ],
)
def test_bad_heads(size: Any, root: Any, job: Any, run: Any) -> None:
    with pytest.raises(TranscriptError):
        Head(size, root, job, run)


def test_consistent_heads() -> None:
    heads.check_consistent([], TREE)
    heads.check_consistent([Head(n, TREE.root(n), JOB, RUN) for n in (0, 5, 5, 20, 1)], TREE)


def test_equivocation() -> None:
    good, forged = Head(5, TREE.root(5), JOB, RUN), Head(5, TREE.root(6), JOB, RUN)
    with pytest.raises(EquivocationError, match="two heads of size 5"):
        heads.check_consistent([good, forged], TREE)
    with pytest.raises(EquivocationError, match="but the leaves have"):
        heads.check_consistent([Head(3, TREE.root(3), JOB, RUN), forged], TREE)
    beyond = [Head(30, bytes(32), JOB, RUN), Head(30, bytes([1] * 32), JOB, RUN)]
    with pytest.raises(EquivocationError, match="two heads of size 30"):
        heads.check_consistent(beyond, TREE)


def test_heads_that_can_t_be_checked() -> None:
    with pytest.raises(TranscriptError, match="only 20 leaves"):
        heads.check_consistent([Head(21, bytes(32), JOB, RUN)], TREE)
    other = Head(6, TREE.root(6), hashlib.sha256(b"other job").digest(), RUN)
    with pytest.raises(TranscriptError, match="two jobs"):
        heads.check_consistent([HEAD, other], TREE)
    assert issubclass(TranscriptError, MalformedRunError)


def test_heads_of_two_runs_convict_nobody() -> None:
    """Of one size and job, with other leaves: equivocation in one run, and nothing of the kind in two."""
    other = Head(7, TREE.root(6), JOB, RUN)
    with pytest.raises(EquivocationError, match="two heads of size 7"):
        heads.check_consistent([HEAD, other], TREE)
    elsewhere = Head(7, TREE.root(6), JOB, hashlib.sha256(b"another run").digest())
    with pytest.raises(TranscriptError, match=r"another run.* two runs of one job") as error:
        heads.check_consistent([HEAD, elsewhere], TREE)
    assert elsewhere.run.hex() in str(error.value) and RUN.hex() in str(error.value)


def test_a_head_of_an_earlier_release() -> None:
    """Its origin was its job."""
    old = "\n".join([f"vtrain/{JOB.hex()}", *LINES[1:]]) + "\n"
    with pytest.raises(VersionError, match="earlier release"):
        heads.open_head(note_by_hand(old), PUBLIC, NAME)


def test_a_head_is_named_by_what_is_signed() -> None:
    """Lines that others add, and signatures that the signer makes anew, make no other head."""
    witness = note_by_hand(BODY, Ed25519PrivateKey.from_private_bytes(bytes(32)), "witness.example").split("\n\n")[1]
    assert heads.head_digest(NOTE + witness) == heads.head_digest(NOTE) == hashlib.sha256(BODY.encode()).hexdigest()
    assert heads.head_digest(note_by_hand(BODY.replace("\n7\n", "\n8\n"))) != heads.head_digest(NOTE)
