"""Messages of a dispute: bounded, typed, signed, and chained (protocol §8). Imports no torch.

One message is one line: RFC 8785 JSON ``{"body": ..., "signature": base64}``. The body names the session, its own
number, the SHA-256 of the line before it, its kind and its content. The challenger's messages have even numbers, the
responder's odd ones; so a transcript, the lines in order, shows who said what after what.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vtrain.commit import keys
from vtrain.commit.statement import strict_json
from vtrain.errors import MalformedRunError, SignatureError, UsageError

DISPUTE_FORMAT = "vtrain-dispute-v2"
MAX_MESSAGE_BYTES = 64 << 20
START = hashlib.sha256(DISPUTE_FORMAT.encode()).hexdigest()  # what the first message follows
_CONTEXT = f"{DISPUTE_FORMAT}\n".encode()
_HEX = re.compile(r"[0-9a-f]{64}")
_KIND = re.compile(r"[a-z]{1,20}")


@dataclass(frozen=True)
class Message:
    """What one party says.

    Attributes:
        session: chosen at random by the challenger, 64 hex digits.
        number: 0, 1, 2, ...
        previous: SHA-256 of the line before, hex.
        kind: a request's name; ``answer`` or ``refused`` for the responder's.
        content: by kind.
    """

    session: str
    number: int
    previous: str
    kind: str
    content: dict[str, Any]


def line_digest(line: bytes) -> str:
    """What the next message has as ``previous``."""
    return hashlib.sha256(line).hexdigest()


def seal(message: Message, key: Ed25519PrivateKey) -> bytes:
    """The message as a signed line, without a newline.

    Raises:
        UsageError: larger than a message may be.
    """
    body = {**vars(message), "format": DISPUTE_FORMAT}
    signature = keys.sign(key, _CONTEXT + rfc8785.dumps(body))
    line = rfc8785.dumps({"body": body, "signature": base64.b64encode(signature).decode()})
    if len(line) > MAX_MESSAGE_BYTES:
        raise UsageError(f"a message of {len(line)} bytes; at most {MAX_MESSAGE_BYTES}")
    return bytes(line)


def unseal(line: bytes, key: Ed25519PublicKey) -> Message:
    """Check and parse a line; hostile input.

    Raises:
        MalformedRunError: too large, not canonical, or not a message's fields.
        SignatureError: not signed by the key.
    """
    value = _parsed(line)
    try:
        signature = keys.decode_base64(value["signature"])
    except ValueError as error:
        raise SignatureError(f"message: {error}") from error
    keys.verify(key, signature, _CONTEXT + rfc8785.dumps(value["body"]))
    return _message(value["body"])


def peek(line: bytes) -> Message:
    """Parse a line without checking its signature: to learn the key that a first message brings.

    Raises:
        MalformedRunError: as ``unseal``.
    """
    return _message(_parsed(line)["body"])


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_MESSAGE_BYTES:
        raise MalformedRunError(f"message: {len(line)} bytes; want at most {MAX_MESSAGE_BYTES}")
    value = strict_json(line, "message")
    try:
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise MalformedRunError(f"message: {error}") from error
    if canonical != line or not isinstance(value, dict) or value.keys() != {"body", "signature"}:
        raise MalformedRunError("message: not the canonical JSON of a body and a signature")
    return value


def _message(body: Any) -> Message:
    wanted = {"format", "session", "number", "previous", "kind", "content"}
    if not isinstance(body, dict) or body.keys() != wanted or body["format"] != DISPUTE_FORMAT:
        raise MalformedRunError(f"message: fields {sorted(body) if isinstance(body, dict) else body!r}"[:200])
    hexes = all(isinstance(body[n], str) and _HEX.fullmatch(body[n]) for n in ("session", "previous"))
    if not hexes or type(body["number"]) is not int or not 0 <= body["number"] < 2**53:
        raise MalformedRunError("message: session, number or previous out of range")
    if not isinstance(body["kind"], str) or not _KIND.fullmatch(body["kind"]) or not isinstance(body["content"], dict):
        raise MalformedRunError("message: kind or content of the wrong form")
    return Message(**{k: v for k, v in body.items() if k != "format"})
