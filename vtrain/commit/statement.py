"""in-toto Statements v1 in DSSE envelopes with Ed25519 (protocol §6).

A statement is a plain dict, its bytes RFC 8785 JSON. The envelope is the one of github.com/secure-systems-lab/dsse; a
``keyid`` is always written and always wanted.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NoReturn

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vtrain.commit import keys
from vtrain.errors import MalformedRunError, SignatureError, UsageError, VersionError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
# What a trainer states of a run.
RUN_PREDICATE = "https://vtrain.dev/attestation/run/v2"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 16 << 20
MAX_SIGNATURES = 16

_SHA256 = re.compile(r"[0-9a-f]{64}")


def make_statement(
    subject_name: str, sha256_hex: str, predicate_type: str, predicate: dict[str, Any]
) -> dict[str, Any]:
    """A statement about one file.

    Args:
        subject_name: the file's name, for people.
        sha256_hex: SHA-256 of its bytes, 64 lower-case hex digits; this is what the statement is about.
        predicate_type: URI that says what ``predicate`` means, with its version.
        predicate: JSON values; no NaN and no integers from 2^53 on (write those as strings).

    Raises:
        UsageError: a value has no place in a statement.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject_name, "digest": {"sha256": sha256_hex}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    _own_payload(statement)
    return statement


def sign_statement(statement: dict[str, Any], private_key: Ed25519PrivateKey) -> bytes:
    """The statement in a signed envelope: canonical JSON, the same bytes each time.

    Raises:
        UsageError: it is no statement or would make a larger envelope than :func:`open_statement` reads.
    """
    payload = _own_payload(statement)
    signature = {
        "keyid": keys.key_id(private_key.public_key()),
        "sig": _base64(keys.sign(private_key, pae(PAYLOAD_TYPE, payload))),
    }
    envelope = rfc8785.dumps({"payload": _base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [signature]})
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise UsageError(f"an envelope of {len(envelope)} bytes, wanted at most {MAX_ENVELOPE_BYTES}")
    return envelope


def open_statement(envelope: bytes, public_key: Ed25519PublicKey, predicate_type: str) -> dict[str, Any]:
    """Check an envelope from an untrusted source and return its statement.

    1. At most ``MAX_ENVELOPE_BYTES``; JSON without duplicate keys; exactly the envelope's fields; our payload type.
    2. Exactly one signature has the key's id, and it verifies. Other keys' signatures are not checked.
    3. Only then the payload is read: canonical JSON, exactly a statement's fields, one subject with one SHA-256,
       the predicate type wanted.

    What is not checked: what the predicate says, and that the subject is the file at hand.

    Raises:
        MalformedRunError: rule 1 or 3 (VersionError for a statement of another version).
        SignatureError: rule 2.
    """
    payload, signatures = _parse_envelope(envelope)
    wanted = keys.key_id(public_key)
    mine = [s["sig"] for s in signatures if s["keyid"] == wanted]
    if len(mine) != 1:
        raise SignatureError(f"envelope: {len(mine)} of {len(signatures)} signatures by key {wanted}, wanted one")
    keys.verify(public_key, _unbase64("signature", mine[0]), pae(PAYLOAD_TYPE, payload))

    statement = strict_json(payload, "statement")
    if _canonical(statement) != payload:
        raise MalformedRunError("statement: the payload is not canonical JSON (RFC 8785)")
    _check_statement(statement, predicate_type)
    return dict(statement)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    encoded = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(encoded), encoded, len(payload), payload)


def strict_json(data: bytes, what: str) -> Any:
    """Parse UTF-8 JSON from an untrusted source of bounded size, without duplicate keys, NaN or infinities.

    Args:
        data: the bytes.
        what: what it is, for the message.

    Raises:
        MalformedRunError: it is not that.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise MalformedRunError(f"{what}: not JSON as wanted: {e}") from e


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has a key twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _parse_envelope(envelope: bytes) -> tuple[bytes, list[dict[str, str]]]:
    """Payload bytes and signatures, their base64 undecoded."""
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise MalformedRunError(f"envelope: {len(envelope)} bytes, wanted at most {MAX_ENVELOPE_BYTES}")
    fields = strict_json(envelope, "envelope")
    _check_fields("envelope", fields, {"payload", "payloadType", "signatures"})
    if fields["payloadType"] != PAYLOAD_TYPE:
        raise MalformedRunError(f"envelope: payload type {str(fields['payloadType'])[:200]!r}, wanted {PAYLOAD_TYPE!r}")
    signatures = fields["signatures"]
    if not isinstance(signatures, list) or len(signatures) > MAX_SIGNATURES:
        raise MalformedRunError(f"envelope: signatures are a list of at most {MAX_SIGNATURES}")
    for signature in signatures:
        _check_fields("signature", signature, {"keyid", "sig"})
        if not all(isinstance(value, str) for value in signature.values()):
            raise MalformedRunError("signature: keyid and sig are strings")
    return _unbase64("payload", fields["payload"]), signatures


def _check_statement(statement: Any, predicate_type: str) -> None:
    _check_fields("statement", statement, {"_type", "subject", "predicateType", "predicate"})
    if statement["_type"] != STATEMENT_TYPE:
        raise VersionError(f"statement: type {str(statement['_type'])[:200]!r}, wanted {STATEMENT_TYPE!r}")
    check_predicate_type(statement["predicateType"], predicate_type)
    if not isinstance(statement["predicate"], dict):
        raise MalformedRunError("statement: the predicate is an object")
    subjects = statement["subject"]
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise MalformedRunError("statement: wanted a list of one subject")
    _check_fields("subject", subjects[0], {"name", "digest"})
    _check_fields("subject's digest", subjects[0]["digest"], {"sha256"})
    name, sha256 = subjects[0]["name"], subjects[0]["digest"]["sha256"]
    if not isinstance(name, str) or not name:
        raise MalformedRunError(f"subject: the name is a string, not empty, found {str(name)[:200]!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise MalformedRunError(f"subject: {str(sha256)[:200]!r} is no SHA-256 of 64 lower-case hex digits")


def check_predicate_type(found: object, wanted: str) -> None:
    """Check what a statement says its predicate is.

    Raises:
        VersionError: that of another version: it differs after the last slash alone.
        MalformedRunError: anything else.
    """
    if isinstance(found, str) and found and found == wanted:
        return
    kind = VersionError if str(found).rpartition("/")[0] == wanted.rpartition("/")[0] else MalformedRunError
    raise kind(f"statement: predicate type {str(found)[:200]!r}, wanted {wanted!r}")


def _check_fields(what: str, value: Any, wanted: set[str]) -> None:
    if not isinstance(value, dict):
        raise MalformedRunError(f"{what}: wanted an object, found {type(value).__name__}")
    if value.keys() != wanted:
        raise MalformedRunError(f"{what}: fields {sorted(map(str, value))!r:.300}, wanted {sorted(wanted)!r}")


def _own_payload(statement: dict[str, Any]) -> bytes:
    """The bytes of a statement of ours, which keeps the rules for other parties' statements."""
    try:
        payload = _canonical(statement)
        _check_statement(statement, statement.get("predicateType", ""))
    except MalformedRunError as e:
        raise UsageError(str(e)) from e
    return payload


def _canonical(value: Any) -> bytes:
    try:
        return rfc8785.dumps(value)
    except (ValueError, RecursionError) as e:  # ValueError: a lone surrogate in a key is no CanonicalizationError
        raise MalformedRunError(f"statement: no canonical JSON: {e}") from e


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(what: str, text: str) -> bytes:
    try:
        return keys.decode_base64(text)
    except ValueError as e:
        raise MalformedRunError(f"{what}: {e}") from e
