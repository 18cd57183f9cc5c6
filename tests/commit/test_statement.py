"""Statements and envelopes: interoperability, and each rule of the reader broken once."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from vtrain.commit import keys, statement
from vtrain.errors import MalformedRunError, SignatureError, UsageError, VersionError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
SHA = "ab" * 32
TYPE = "https://example.org/verdict/v1"
PREDICATE = {"steps": [1, 2, 30], "result": "verified", "share": 0.25, "name": "\u00fc\u2028", "none": None}
STATEMENT = statement.make_statement("model.safetensors", SHA, TYPE, PREDICATE)
ENVELOPE = statement.sign_statement(STATEMENT, KEY)


def envelope_by_hand(payload: bytes, payload_type: str = statement.PAYLOAD_TYPE, /, **changes: Any) -> bytes:
    """A well signed envelope around any payload; ``changes`` replace its fields, None removes one."""
    signed = f"DSSEv1 {len(payload_type)} {payload_type} {len(payload)} ".encode() + payload
    fields: dict[str, Any] = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": keys.key_id(PUBLIC), "sig": base64.b64encode(KEY.sign(signed)).decode()}],
    }
    return json.dumps({k: v for k, v in (fields | changes).items() if v is not None}).encode()


PAYLOAD = base64.b64decode(json.loads(ENVELOPE)["payload"])
SIGNATURE = json.loads(ENVELOPE)["signatures"][0]


def test_round_trip() -> None:
    assert statement.open_statement(ENVELOPE, PUBLIC, TYPE) == STATEMENT
    assert statement.sign_statement(STATEMENT, KEY) == ENVELOPE
    assert json.loads(PAYLOAD) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model.safetensors", "digest": {"sha256": SHA}}],
        "predicateType": TYPE,
        "predicate": PREDICATE,
    }
    assert b"[1,2,30]" in PAYLOAD, "integers stay integers"


def test_pae_is_the_specification_s() -> None:
    """The example of the DSSE protocol document."""
    wanted = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert statement.pae("http://example.com/HelloWorld", b"hello world") == wanted
    assert statement.pae("\u00fc", b"") == b"DSSEv1 2 \xc3\xbc 0 "


def test_securesystemslib_verifies_ours() -> None:
    envelope = Envelope.from_dict(json.loads(ENVELOPE))
    key = SSlibKey.from_crypto(PUBLIC, keyid=keys.key_id(PUBLIC))
    assert envelope.verify([key], 1) == {key.keyid: key}
    envelope.payload += b" "
    with pytest.raises(Exception, match="do not match threshold"):
        envelope.verify([key], 1)


def test_we_verify_securesystemslib_s() -> None:
    signer = CryptoSigner(KEY, SSlibKey.from_crypto(PUBLIC, keyid=keys.key_id(PUBLIC)))
    envelope = Envelope(PAYLOAD, statement.PAYLOAD_TYPE, {})
    envelope.sign(signer)
    assert statement.open_statement(json.dumps(envelope.to_dict()).encode(), PUBLIC, TYPE) == STATEMENT


def test_further_signatures_are_ignored() -> None:
    other = {"keyid": "someone", "sig": "not ours to read"}
    for signatures in ([SIGNATURE, other], [other, SIGNATURE]):
        assert statement.open_statement(envelope_by_hand(PAYLOAD, signatures=signatures), PUBLIC, TYPE) == STATEMENT


@pytest.mark.parametrize(
    "signatures",
    [
        [],
        [SIGNATURE, SIGNATURE],
        [{**SIGNATURE, "keyid": ""}],
        [{**SIGNATURE, "keyid": SIGNATURE["keyid"].upper()}],
        [{**SIGNATURE, "sig": ""}],
        [{**SIGNATURE, "sig": base64.b64encode(bytes(64)).decode()}],
        [{**SIGNATURE, "sig": base64.b64encode(KEY.sign(PAYLOAD)).decode()}],
    ],
)
def test_bad_signatures(signatures: list[dict[str, str]]) -> None:
    with pytest.raises(SignatureError):
        statement.open_statement(envelope_by_hand(PAYLOAD, signatures=signatures), PUBLIC, TYPE)


def test_wrong_key_and_changed_payload() -> None:
    with pytest.raises(SignatureError):
        statement.open_statement(ENVELOPE, keys.generate().public_key(), TYPE)
    changed = base64.b64encode(PAYLOAD.replace(b"verified", b"Verified")).decode()
    with pytest.raises(SignatureError):
        statement.open_statement(envelope_by_hand(PAYLOAD, payload=changed), PUBLIC, TYPE)


GOOD = envelope_by_hand(PAYLOAD)


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        GOOD + b"x",
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        GOOD.replace(b"payloadType", b"payload\xff"),
        GOOD.replace(b'{"payload"', b'{"payload":"","payload"', 1),
        GOOD.replace(b'{"keyid"', b'{"keyid":"","keyid"', 1),
        b"[" * 100_000,
        b'{"payload":' + b"1" * 5000 + b"}",
        envelope_by_hand(PAYLOAD, payload=None),
        envelope_by_hand(PAYLOAD, payload=7),
        envelope_by_hand(PAYLOAD, payload=base64.b64encode(PAYLOAD).decode() + "\n"),
        envelope_by_hand(PAYLOAD, payload=base64.urlsafe_b64encode(b"\xff" * 3).decode()),
        envelope_by_hand(PAYLOAD, payloadType=None),
        envelope_by_hand(PAYLOAD, "application/json"),
        envelope_by_hand(PAYLOAD, payloadType=["x"]),
        envelope_by_hand(PAYLOAD, extra=1),
        envelope_by_hand(PAYLOAD, signatures=None),
        envelope_by_hand(PAYLOAD, signatures={}),
        envelope_by_hand(PAYLOAD, signatures=["x"]),
        envelope_by_hand(PAYLOAD, signatures=[{"sig": SIGNATURE["sig"]}]),
        envelope_by_hand(PAYLOAD, signatures=[{**SIGNATURE, "cert": "x"}]),
        envelope_by_hand(PAYLOAD, signatures=[{**SIGNATURE, "keyid": None}]),
        envelope_by_hand(PAYLOAD, signatures=[{**SIGNATURE, "sig": SIGNATURE["sig"][:-1]}]),
        envelope_by_hand(PAYLOAD, signatures=[SIGNATURE] * 17),
    ],
)
def test_malformed_envelopes(envelope: bytes) -> None:
    assert statement.open_statement(GOOD, PUBLIC, TYPE) == STATEMENT
    with pytest.raises(MalformedRunError) as caught:
        statement.open_statement(envelope, PUBLIC, TYPE)
    assert not isinstance(caught.value, SignatureError)


def plain(**changes: Any) -> bytes:
    """A statement's canonical bytes, changed; for ASCII without floats."""
    fields = {**STATEMENT, "predicate": {"n": 1}} | changes
    kept = {k: v for k, v in fields.items() if v is not None}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


SUBJECT = STATEMENT["subject"][0]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        plain() + b"\n",
        plain().replace(b'{"n":1}', b'{"n": 1}'),
        plain().replace(b'{"n":1}', b'{"n":1.0}'),
        plain().replace(b'{"n":1}', b'{"n":1,"n":1}'),
        plain().replace(b'{"n":1}', b'{"n":NaN}'),
        plain().replace(b'{"n":1}', b'{"n":1e400}'),
        plain().replace(b'{"n":1}', b'{"n":9007199254740992}'),
        plain().replace(b'{"n":1}', b'{"\\ud800":1}'),
        plain().replace(b'{"n":1}', b'{"n":"\\ud800"}'),
        plain(predicate=[]),
        plain(predicate=None),
        plain(extra=1),
        plain(predicateType=TYPE + "1"),
        plain(predicateType=None),
        plain(predicateType=1),
        plain(subject=[]),
        plain(subject=[SUBJECT, SUBJECT]),
        plain(subject=SUBJECT),
        plain(subject=[{**SUBJECT, "uri": "x"}]),
        plain(subject=[{**SUBJECT, "name": ""}]),
        plain(subject=[{**SUBJECT, "name": 1}]),
        plain(subject=[{**SUBJECT, "digest": {}}]),
        plain(subject=[{**SUBJECT, "digest": {"sha256": SHA, "md5": "0"}}]),
        plain(subject=[{**SUBJECT, "digest": {"sha256": SHA.upper()}}]),
        plain(subject=[{**SUBJECT, "digest": {"sha256": SHA + "\n"}}]),
        plain(subject=[{**SUBJECT, "digest": {"sha256": 1}}]),
    ],
)
def test_well_signed_nonsense(payload: bytes) -> None:
    assert statement.open_statement(envelope_by_hand(plain()), PUBLIC, TYPE)["predicate"] == {"n": 1}
    with pytest.raises(MalformedRunError) as caught:
        statement.open_statement(envelope_by_hand(payload), PUBLIC, TYPE)
    assert not isinstance(caught.value, SignatureError)


@pytest.mark.parametrize("data", [b"NaN", b"[Infinity]", b"-Infinity", b'{"a":{"b":1,"b":1}}', b'"\xff"', b"", b"1 2"])
def test_strict_json(data: bytes) -> None:
    assert statement.strict_json(b' {"a": [1, 2.5, null]}', "x") == {"a": [1, 2.5, None]}
    with pytest.raises(MalformedRunError, match="job: not JSON"):
        statement.strict_json(data, "job")


def test_other_statement_versions() -> None:
    with pytest.raises(VersionError, match=r"v0\.1"):
        statement.open_statement(envelope_by_hand(plain(_type="https://in-toto.io/Statement/v0.1")), PUBLIC, TYPE)


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statement, "MAX_ENVELOPE_BYTES", len(ENVELOPE))
    assert statement.open_statement(ENVELOPE, PUBLIC, TYPE) == STATEMENT
    with pytest.raises(MalformedRunError, match="at most"):
        statement.open_statement(ENVELOPE + b" ", PUBLIC, TYPE)
    monkeypatch.setattr(statement, "MAX_ENVELOPE_BYTES", len(ENVELOPE) - 1)
    with pytest.raises(UsageError, match="at most"):
        statement.sign_statement(STATEMENT, KEY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("", SHA, TYPE, {}),
        (1, SHA, TYPE, {}),
        ("m", SHA[:-1], TYPE, {}),
        ("m", b"x", TYPE, {}),
        ("m", SHA, "", {}),
        ("m", SHA, TYPE, []),
        ("m", SHA, TYPE, {"x": float("nan")}),
        ("m", SHA, TYPE, {"x": 2**53}),
        ("m", SHA, TYPE, {"x": {1, 2}}),
        ("m", SHA, TYPE, {1: 2}),
        ("m", SHA, TYPE, {"\ud800": 2}),
    ],
)
def test_statements_we_don_t_make(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        statement.make_statement(*arguments)


def test_statements_we_don_t_sign() -> None:
    for bad in ({}, {**STATEMENT, "extra": 1}, {**STATEMENT, "_type": "x"}):
        with pytest.raises(UsageError):
            statement.sign_statement(bad, KEY)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_any_changed_byte_is_noticed(at: int, new: int) -> None:
    changed = GOOD[:at] + bytes([new]) + GOOD[at + 1 :]
    if json_or_none(changed) != json.loads(GOOD):
        with pytest.raises(MalformedRunError):
            statement.open_statement(changed, PUBLIC, TYPE)


def json_or_none(data: bytes) -> Any:
    """White space may change; what it says may not."""
    try:
        return json.loads(data)
    except ValueError:
        return None
