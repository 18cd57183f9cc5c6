"""Published vectors: the example tree of RFC 9162, and each rule of C2SP's signed-note and tlog-checkpoint once.

More vectors are in ``test_merkle`` (Certificate Transparency's), ``test_heads`` (Go's note), ``test_keys`` (RFC 8032)
and ``test_statement`` (DSSE).
"""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vtrain.commit import heads, keys, merkle
from vtrain.errors import SignatureError, TranscriptError

# ---- RFC 6962 §2.1.3, RFC 9162 §2.1.5: a tree of the leaves d0..d6 with named nodes --------------------------------
DATA = [f"d{i}".encode() for i in range(7)]
A, B, C, D, E, F, J = (hashlib.sha256(b"\0" + d).digest() for d in DATA)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


G, H, I = _node(A, B), _node(C, D), _node(E, F)  # noqa: E741 - the RFC's names
K, L = _node(G, H), _node(I, J)
HASH = _node(K, L)
TREE = merkle.Tree(merkle.leaf_hash(d) for d in DATA)


def test_example_root() -> None:
    assert TREE.root() == HASH
    assert merkle.Tree().root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(("index", "path"), [(0, [B, H, L]), (3, [C, G, L]), (4, [F, J, K]), (6, [I, K])])
def test_example_inclusion(index: int, path: list[bytes]) -> None:
    assert TREE.inclusion_proof(index) == path
    merkle.verify_inclusion(index, 7, merkle.leaf_hash(DATA[index]), path, HASH)


@pytest.mark.parametrize(("size", "proof"), [(3, [C, D, G, L]), (4, [L]), (6, [I, J, K])])
def test_example_consistency(size: int, proof: list[bytes]) -> None:
    assert TREE.consistency_proof(size, 7) == proof
    old = {3: _node(G, C), 4: K, 6: _node(K, I)}[size]
    assert TREE.root(size) == old
    merkle.verify_consistency(size, 7, old, HASH, proof)


# The paths of Certificate Transparency's reference tests that test_merkle leaves out.
CT_INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_PATHS = {
    (0, 1): [],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


@pytest.mark.parametrize("place", CT_PATHS)
def test_ct_paths(place: tuple[int, int]) -> None:
    tree = merkle.Tree(merkle.leaf_hash(bytes.fromhex(x)) for x in CT_INPUTS)
    assert [h.hex() for h in tree.inclusion_proof(*place)] == CT_PATHS[place]


# ---- c2sp.org/signed-note ------------------------------------------------------------------------------------------
# The specification's own example: verifier key and note.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n\u2014 example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
NAME = "example.org/trainer"
HEAD = heads.Head(7, HASH, bytes(32), HASH)
MINE = heads.sign_head(HEAD, KEY, NAME)
BODY, _, LINE = MINE.rpartition("\n\n")


def line(name: str, data: bytes) -> str:
    """A signature line around key id and signature."""
    return f"\u2014 {name} {base64.b64encode(data).decode()}\n"


def opens(*lines: str) -> heads.Head:
    return heads.open_head(f"{BODY}\n\n{''.join(lines)}", PUBLIC, NAME)


def test_worked_example() -> None:
    """The signature holds byte for byte: all that is wrong with the note is that its text is no head."""
    name, key_id, encoded = VKEY.split("+")
    raw = base64.b64decode(encoded)
    public = Ed25519PublicKey.from_public_bytes(raw[1:])
    assert raw[0] == 1 and heads.note_key_id(name, public).hex() == key_id
    with pytest.raises(TranscriptError, match="1 lines of text, wanted 4"):
        heads.open_head(NOTE, public, name)
    for other in (NOTE.replace("This", "this"), NOTE.replace("message.\n", "message.\n\n", 1)):
        with pytest.raises(SignatureError, match="not by key"):
            heads.open_head(other, public, name)


def test_our_example_verifies() -> None:
    """What the tests below break, unbroken."""
    assert opens(LINE) == HEAD


def test_text_is_signed_with_its_final_newline_alone() -> None:
    data = base64.b64decode(LINE.split(" ")[2])
    keys.verify(PUBLIC, data[4:], f"{BODY}\n".encode())
    for text in (BODY, f"{BODY}\n\n"):
        with pytest.raises(SignatureError):
            opens(line(NAME, data[:4] + KEY.sign(text.encode())))


def test_last_empty_line_divides() -> None:
    """A text with empty lines is signed whole; it is no head."""
    text = f"{BODY}\n\n{BODY}\n"
    signed = line(NAME, heads.note_key_id(NAME, PUBLIC) + KEY.sign(text.encode()))
    with pytest.raises(TranscriptError, match="9 lines of text"):
        heads.open_head(f"{text}\n{signed}", PUBLIC, NAME)


@pytest.mark.parametrize("code", [c for c in range(32) if c != 10])
def test_control_characters(code: int) -> None:
    for note in (MINE.replace("7", f"7{chr(code)}", 1), MINE.replace(NAME, f"x{chr(code)}"), MINE + chr(code)):
        with pytest.raises(TranscriptError, match="control character"):
            heads.open_head(note, PUBLIC, NAME)


@pytest.mark.parametrize("space", "\u0020\u0085\u00a0\u1680\u2000\u2028\u2029\u202f\u205f\u3000+")
def test_key_names_without_spaces_or_plus(space: str) -> None:
    data = base64.b64decode(LINE.split(" ")[2])
    with pytest.raises(TranscriptError, match="no signature line"):
        opens(LINE, line(f"a{space}b", data))


def test_key_name_is_not_empty() -> None:
    with pytest.raises(TranscriptError, match="no signature line"):
        opens(LINE, line("", bytes(68)))


@pytest.mark.parametrize("length", range(5))
def test_a_signature_is_a_key_id_and_more(length: int) -> None:
    with pytest.raises(TranscriptError, match="wanted a key id and more"):
        opens(LINE, line("other", bytes(length)))


def test_key_id_is_big_endian_and_first() -> None:
    data = base64.b64decode(LINE.split(" ")[2])
    digest = hashlib.sha256(NAME.encode() + b"\n\x01" + PUBLIC.public_bytes_raw()).digest()
    assert data[:4] == digest[:4]
    with pytest.raises(SignatureError, match="no signature"):
        opens(line(NAME, data[3::-1] + data[4:]))


@pytest.mark.parametrize("text", ["????", "AAAAAAA", "AAAAAAA=\u00e9", "AAAA AAA=", "AAAAAAB=", "-_-_-_-_"])
def test_base64_of_rfc_4648_section_4(text: str) -> None:
    with pytest.raises(TranscriptError):
        opens(LINE, f"\u2014 other {text}\n")


@pytest.mark.parametrize("dash", ["-", "--", "\u2013", "\u2015", "\u2212", ""])
def test_signature_lines_begin_with_an_em_dash(dash: str) -> None:
    with pytest.raises(TranscriptError, match="no signature line"):
        opens(LINE.replace("\u2014", dash))


def test_unknown_keys_are_ignored_even_if_they_share_name_or_id() -> None:
    data = base64.b64decode(LINE.split(" ")[2])
    same_name, same_id = line(NAME, b"\0\0\0\0" + data[4:]), line("other", data[:4] + bytes(64))
    assert opens(same_name, LINE, same_id) == HEAD
    with pytest.raises(SignatureError, match=r"no signature by example\.org/trainer .* among 2"):
        opens(same_name, same_id)


def test_a_known_key_s_signature_must_verify() -> None:
    data = base64.b64decode(LINE.split(" ")[2])
    bad = line(NAME, data[:4] + bytes(64))
    for lines in ((bad,), (bad, LINE), (LINE, bad)):
        with pytest.raises(SignatureError, match="not by key"):
            opens(*lines)


def test_sixteen_signatures_as_large_as_post_quantum_ones() -> None:
    large = [line(f"witness.example/{i}", bytes([i]) * 5000) for i in range(15)]
    assert opens(*large, LINE) == HEAD
    with pytest.raises(TranscriptError, match="17 signatures, wanted at most 16"):
        opens(*large, LINE, line("one.more", bytes(68)))
    with pytest.raises(TranscriptError, match="at most 131072"):
        opens(LINE, line("huge.example", bytes(100_000)))


@pytest.mark.parametrize(
    "note",
    [f"{BODY}\n", f"{BODY}\n\n", f"{BODY}\n{LINE}", MINE.rstrip("\n"), f"{MINE}\n", f"{MINE}trailing", f"{MINE}x\n",
     MINE.replace("\n", "\r\n"), f"\ufeff{MINE}"],
)  # fmt: skip
def test_form_of_a_note(note: str) -> None:
    """No signature, no blank line, no last newline, something after it, something before it."""
    with pytest.raises((TranscriptError, SignatureError)):
        heads.open_head(note, PUBLIC, NAME)
