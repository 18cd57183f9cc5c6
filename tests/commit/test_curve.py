"""Keys and signatures that OpenSSL takes and nobody may: small order, parts of small order, second spellings.

What is refused is derived here from the curve's equation: all points of small order, and all of their spellings.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from auditor.dispute.messages import Message
from auditor.dispute.rules import CHALLENGER, Conversation, Forfeit
from vtrain.commit import curve, heads, keys, statement
from vtrain.commit.curve import D, L, P
from vtrain.errors import KeyFileError, SignatureError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
BASE = curve.decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))  # RFC 8032 §5.1: y = 4/5, x even
NEUTRAL = curve.encode(curve.NEUTRAL)


def on_curve(x: int, y: int) -> bool:
    return (-x * x + y * y - 1 - D * x * x * y * y) % P == 0


def small_points() -> list[tuple[int, int]]:
    """All of order 1, 2, 4 and 8: multiples of one point that is left when the large order is divided out."""
    y = 2
    while True:
        try:
            point = curve.multiply(L, curve.decode(y.to_bytes(32, "little")))
        except ValueError:
            point = curve.NEUTRAL
        if not curve.is_neutral(curve.multiply(4, point)):
            break
        y += 1
    return [affine(curve.multiply(k, point)) for k in range(8)]


def affine(point: curve.Point) -> tuple[int, int]:
    inverse = pow(point[2], -1, P)
    return point[0] * inverse % P, point[1] * inverse % P


def spellings(x: int, y: int) -> list[bytes]:
    """All 32 bytes that a lax reader takes for a point: any y modulo p, either sign where x is 0."""
    signs = (0, 1) if x == 0 else (x & 1,)
    return [(value | sign << 255).to_bytes(32, "little") for value in (y, y + P) if value < 2**255 for sign in signs]


SMALL = small_points()
SPELLINGS = sorted({s for point in SMALL for s in spellings(*point)})
CANONICAL = sorted(spellings(*point)[0] for point in SMALL)


def text_of(raw: bytes) -> str:
    """A key's PEM, whatever its bytes."""
    der = bytes.fromhex("302a300506032b6570032100") + raw
    return f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n-----END PUBLIC KEY-----\n"


def refused_everywhere(raw: bytes, tmp_path: Path, match: str) -> None:
    """As a file, as a text of somebody's, and as an object given to whatever verifies."""
    (tmp_path / "key.pub").write_text(text_of(raw))
    for source in (tmp_path / "key.pub", str(tmp_path / "key.pub"), text_of(raw)):
        with pytest.raises(KeyFileError, match=match):
            keys.load_public(source)
    with pytest.raises(KeyFileError, match=match):
        keys.parse_public(text_of(raw))
    key = Ed25519PublicKey.from_public_bytes(raw)
    signature = NEUTRAL + bytes(32)
    lines = {
        "note": lambda: heads.open_head(signed_note(key, signature), key, heads.KEY_NAME),
        "statement": lambda: statement.open_statement(envelope(key, signature), key, "https://example.org/a/v1"),
        "bytes": lambda: keys.verify(key, signature, b"anything"),
    }
    for use in lines.values():
        with pytest.raises(SignatureError, match=match):
            use()


def signed_note(key: Ed25519PublicKey, signature: bytes) -> str:
    line = base64.b64encode(heads.note_key_id(heads.KEY_NAME, key) + signature).decode()
    return (
        f"{heads.Head(0, hashlib.sha256().digest(), bytes(32), bytes([1] * 32)).text}\n\u2014 {heads.KEY_NAME} {line}\n"
    )


def envelope(key: Ed25519PublicKey, signature: bytes) -> bytes:
    made = statement.make_statement("model", "0" * 64, "https://example.org/a/v1", {})
    data = statement.sign_statement(made, KEY).decode()
    fields = {keys.key_id(PUBLIC): keys.key_id(key)}
    old = base64.b64encode(keys.sign(KEY, statement.pae(statement.PAYLOAD_TYPE, statement._own_payload(made)))).decode()
    return data.replace(*next(iter(fields.items()))).replace(old, base64.b64encode(signature).decode()).encode()


# ---- the arithmetic ------------------------------------------------------------------------------------------------
def test_the_curve_is_ed25519() -> None:
    """Multiples of the base point are the public keys that OpenSSL makes."""
    assert on_curve(*affine(BASE)) and curve.is_neutral(curve.multiply(L, BASE)) and not curve.is_neutral(BASE)
    for number in range(20):
        secret = hashlib.sha256(bytes([number])).digest()
        head = bytearray(hashlib.sha512(secret).digest()[:32])
        head[0], head[31] = head[0] & 248, head[31] & 127 | 64
        public = keys.raw_public(Ed25519PrivateKey.from_private_bytes(secret).public_key())
        assert curve.encode(curve.multiply(int.from_bytes(head, "little"), BASE)) == public
        assert curve.encode(curve.decode(public)) == public
        curve.check_key(public)


def test_all_points_of_small_order() -> None:
    """Eight, of the orders that a cyclic group of eight has; and the fourteen spellings that lax readers take."""
    assert len(set(SMALL)) == 8 and all(on_curve(*point) for point in SMALL)
    assert [sum(curve.is_neutral(curve.multiply(n, (x, y, 1, x * y % P))) for x, y in SMALL) for n in (1, 2, 4, 8)] == [
        1, 2, 4, 8
    ]  # fmt: skip
    assert len(SPELLINGS) == 14 and len(CANONICAL) == 8


# ---- keys ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("raw", SPELLINGS, ids=bytes.hex)
def test_keys_of_small_order(raw: bytes, tmp_path: Path) -> None:
    refused_everywhere(raw, tmp_path, "small order" if raw in CANONICAL else "not canonical")


def test_what_openssl_takes() -> None:
    """Why it is not left to OpenSSL: one constant signs everything under these keys."""
    taken = set()
    for raw in SPELLINGS:
        for number in range(64):
            try:
                Ed25519PublicKey.from_public_bytes(raw).verify(NEUTRAL + bytes(32), b"%d" % number)
                taken.add(raw)
            except InvalidSignature:
                continue
    assert len(taken) >= 8


@pytest.mark.parametrize("part", range(1, 8))
def test_keys_with_a_part_of_small_order(part: int, tmp_path: Path) -> None:
    """Honest but for the part; its signatures are valid by chance, one in 2, 4 or 8, and with the cofactor always."""
    x, y = SMALL[part]
    mixed = curve.encode(curve.add(curve.decode(keys.raw_public(PUBLIC)), (x, y, 1, x * y % P)))
    refused_everywhere(mixed, tmp_path, "part of small order")


def first_off_the_curve() -> int:
    y = 2
    while True:
        try:
            curve.decode(y.to_bytes(32, "little"))
        except ValueError:
            return y
        y += 1


@pytest.mark.parametrize("sign", [0, 1])
def test_keys_off_the_curve(sign: int, tmp_path: Path) -> None:
    y = first_off_the_curve()
    assert pow((y * y - 1) * pow(D * y * y + 1, -1, P), (P - 1) // 2, P) == P - 1
    refused_everywhere((y | sign << 255).to_bytes(32, "little"), tmp_path, "no point of the curve")


@pytest.mark.parametrize("number", [P, P + 1, P + 2, 2**255 - 1])
def test_keys_that_are_not_reduced(number: int, tmp_path: Path) -> None:
    for sign in (0, 1):
        refused_everywhere((number | sign << 255).to_bytes(32, "little"), tmp_path, "not canonical")


def test_challenger_s_key_of_small_order() -> None:
    """A dispute's first line brings its key."""
    talk = Conversation("0" * 64, "0" * 64, PUBLIC)
    key = text_of(NEUTRAL)
    body = {**vars(Message("0" * 64, 0, "0" * 64, "open", {"job": "0" * 64, "head": "", "key": key}))}
    import rfc8785

    line = rfc8785.dumps({
        "body": {**body, "format": "vtrain-dispute-v2"}, "signature": base64.b64encode(NEUTRAL + bytes(32)).decode(),
    })  # fmt: skip
    with pytest.raises(Forfeit, match="small order") as lost:
        talk.take(bytes(line))
    assert lost.value.side == CHALLENGER


def test_private_keys_can_have_no_such_public_key(tmp_path: Path) -> None:
    """Whatever the 32 bytes: the clamped scalar is 8 k below 2^255, and no multiple of the order is."""
    assert 8 * L > 2**255 > 2**254 > L
    for number, secret in enumerate((bytes(32), b"\xff" * 32, bytes(range(32)))):
        key = Ed25519PrivateKey.from_private_bytes(secret)
        keys.save_private(tmp_path / f"{number}", key)
        loaded = keys.load_private(tmp_path / f"{number}").public_key()
        keys.verify(keys.parse_public(keys.public_text(loaded)), keys.sign(key, b"x"), b"x")


# ---- signatures ----------------------------------------------------------------------------------------------------
def scalar(key: Ed25519PrivateKey) -> int:
    head = bytearray(hashlib.sha512(key.private_bytes_raw()).digest()[:32])
    head[0], head[31] = head[0] & 248, head[31] & 127 | 64
    return int.from_bytes(head, "little")


def challenge(r: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + keys.raw_public(PUBLIC) + message).digest(), "little") % L


def signed(r: int, encoded: bytes | None = None, message: bytes = b"x") -> bytes:
    """A signature by KEY with this secret number, and perhaps another spelling of R."""
    point = encoded or curve.encode(curve.multiply(r, BASE))
    return point + ((r + challenge(point, message) * scalar(KEY)) % L).to_bytes(32, "little")


def accepted_by_openssl(signature: bytes, message: bytes = b"x") -> bool:
    try:
        PUBLIC.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def test_signatures_of_our_own_making() -> None:
    """What the next tests spoil: another secret number makes another valid signature of the same bytes."""
    for r in (1, 2, 12345):
        assert accepted_by_openssl(signed(r))
        keys.verify(PUBLIC, signed(r), b"x")


def test_r_of_small_order() -> None:
    """The one such R that fits a key of prime order is the neutral element, and OpenSSL takes it."""
    assert accepted_by_openssl(signed(0))
    with pytest.raises(SignatureError, match="its R is a point of small order"):
        keys.verify(PUBLIC, signed(0), b"x")


@pytest.mark.parametrize("raw", SPELLINGS, ids=bytes.hex)
def test_every_spelling_of_r_of_small_order(raw: bytes) -> None:
    with pytest.raises(SignatureError, match="its R is"):
        keys.verify(PUBLIC, signed(0, raw), b"x")


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_s_beyond_the_order(factor: int) -> None:
    """OpenSSL refuses it too; so would we without it."""
    good = keys.sign(KEY, b"x")
    s = int.from_bytes(good[32:], "little") + factor * L
    spoilt = good[:32] + s.to_bytes(32, "little")
    assert not accepted_by_openssl(spoilt)
    with pytest.raises(SignatureError, match="its S is not below"):
        keys.verify(PUBLIC, spoilt, b"x")


BAD: dict[str, Callable[[bytes], bytes]] = {
    "R off the curve": lambda s: first_off_the_curve().to_bytes(32, "little") + s[32:],
    "R not reduced": lambda s: (P + 3).to_bytes(32, "little") + s[32:],
    "nothing": lambda s: b"",
    "a byte more": lambda s: s + b"\0",
    "R alone": lambda s: s[:32],
}


@pytest.mark.parametrize("name", BAD)
def test_forms_of_signatures(name: str) -> None:
    with pytest.raises(SignatureError):
        keys.verify(PUBLIC, BAD[name](keys.sign(KEY, b"x")), b"x")
    with pytest.raises(ValueError, match=r"."):
        curve.check_signature(BAD[name](keys.sign(KEY, b"x")))


# ---- what is signed ------------------------------------------------------------------------------------------------
def test_signed_bytes_of_one_kind_are_none_of_another() -> None:
    """A head, a statement, a dispute's line and a trace's commitment begin differently."""
    from auditor.dispute import commitment, messages

    head = heads.Head(0, hashlib.sha256().digest(), bytes(32), bytes([1] * 32)).text.encode()
    begins: list[Any] = [head[:7], statement.pae("x", b"")[:7], messages._CONTEXT[:9], commitment._CONTEXT[:9]]
    assert begins == [b"vtrain/", b"DSSEv1 ", b"vtrain-di", b"vtrain-co"]
    assert all(not a.startswith(b[: len(a)]) for a in begins for b in begins if a is not b)
