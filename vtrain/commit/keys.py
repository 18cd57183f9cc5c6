"""Ed25519 keys and signatures (protocol §5, §6), and the strict base64 in which signatures travel.

Private keys are PKCS #8 PEM files without a password, public keys SubjectPublicKeyInfo PEM: what ``openssl genpkey
-algorithm ed25519`` and ``openssl pkey -pubout`` write.

Every public key that is parsed or verified with is a point of prime order in its one spelling
(``vtrain.commit.curve``). A private key can't have another: its public key is s B with s = 8 k between 2^254 and 2^255,
where no multiple of 8 L is, so s B is of order L whatever the 32 secret bytes are.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from vtrain.commit import curve
from vtrain.errors import KeyFileError, SignatureError

SIGNATURE_BYTES = 64
# An Ed25519 PEM has about 120 bytes; a file above this is something else.
MAX_KEY_FILE_BYTES = 1 << 16


def generate() -> Ed25519PrivateKey:
    """A new private key from the system's randomness."""
    return Ed25519PrivateKey.generate()


def save_private(path: str | os.PathLike[str], key: Ed25519PrivateKey) -> None:
    """Write a private key that only its owner can read (mode 0600). Never overwrites, never follows a link.

    Raises:
        KeyFileError: something is there already, or the file can't be written; no partial file is left.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as e:
        raise KeyFileError(f"{os.fspath(path)} exists and is not overwritten") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise KeyFileError(f"can't create the private key: {e}") from e
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(pem)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        os.unlink(path)
        raise KeyFileError(f"can't write the private key {os.fspath(path)}: {e}") from e


def load_private(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        KeyFileError: the file is missing, unreadable, too large, protected by a password or no Ed25519 private key.
    """
    name = os.fspath(path)
    pem = _read(path, f"make one with `vtrain keygen {name}`")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        if b"PUBLIC KEY-----" in pem:
            raise KeyFileError(f"{name} is a public key; want the private one that `vtrain keygen` made with it") from e
        raise KeyFileError(f"{name} is no private key in PEM without password: {e}") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{os.fspath(path)}: wanted an Ed25519 private key, found {type(key).__name__}")
    return key


def public_text(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public key, or that of a private key, as PEM."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def load_public(path_or_text: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Read a public key from a PEM file, or from the PEM text itself.

    Raises:
        KeyFileError: the file is missing, unreadable or too large, or it is no Ed25519 public key of prime order.
    """
    if isinstance(path_or_text, str) and path_or_text.startswith("-----BEGIN"):
        name, pem = "the given text", path_or_text.encode("utf-8", "replace")
    else:
        name = os.fspath(path_or_text)
        pem = _read(path_or_text, "`vtrain keygen PATH` writes a public key to PATH.pub; ask the key's owner for it")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as e:
        if b"PRIVATE KEY-----" in pem:
            raise KeyFileError(f"{name} is a private key; want the public one beside it, {name}.pub") from e
        raise KeyFileError(f"{name} is no public key in PEM: {e}") from e
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{name}: wanted an Ed25519 public key, found {type(key).__name__}")
    if fault := _fault(raw_public(key)):
        raise KeyFileError(f"{name}: an Ed25519 public key that is {fault}")
    return key


def parse_public(text: object) -> Ed25519PublicKey:
    """A public key from what somebody else wrote; opens no file, whatever it says.

    Raises:
        KeyFileError: it is not the PEM text of an Ed25519 public key of prime order.
    """
    if not isinstance(text, str) or not text.startswith("-----BEGIN"):
        raise KeyFileError("the given text is no public key in PEM")
    return load_public(text)


def raw_public(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key (RFC 8032 §5.1.5)."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(key: Ed25519PublicKey) -> str:
    """Hex SHA-256 of the DER SubjectPublicKeyInfo: ``openssl pkey -pubin -outform DER | sha256sum``."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def sign(key: Ed25519PrivateKey, message: bytes) -> bytes:
    """Ed25519 signature (RFC 8032), 64 bytes. Deterministic."""
    return key.sign(message)


def verify(key: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
    """Check a signature: RFC 8032's equation without the cofactor, in the one spelling of all that is in it.

    Raises:
        SignatureError: it is by another key or over other bytes, not canonical, or the key is not of prime order.
    """
    if fault := _fault(raw_public(key)):
        raise SignatureError(f"the signature over {len(message)} bytes proves nothing: key {key_id(key)} is {fault}")
    try:
        curve.check_signature(signature)
    except ValueError as e:
        raise SignatureError(f"the signature over {len(message)} bytes is not by key {key_id(key)}: {e}") from e
    try:
        key.verify(signature, message)
    except InvalidSignature as e:
        raise SignatureError(f"the signature over {len(message)} bytes is not by key {key_id(key)}") from e


@functools.lru_cache(maxsize=64)
def _fault(raw: bytes) -> str:
    """Why these bytes are no public key to trust in; empty for a good one. Kept, as it takes milliseconds."""
    try:
        curve.check_key(raw)
    except ValueError as e:
        return str(e)
    return ""


def decode_base64(text: str) -> bytes:
    """Standard base64 with padding (RFC 4648 §4), in the one spelling that encoding gives.

    Raises:
        ValueError: anything else: other characters, missing padding, stray bits.
    """
    if not isinstance(text, str):
        raise ValueError(f"base64 is text, found {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as e:  # binascii.Error among others
        raise ValueError(f"not base64: {e}") from e
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("not the canonical base64 of its bytes")
    return data


def _read(path: str | os.PathLike[str], way_out: str) -> bytes:
    try:
        with Path(path).open("rb") as f:
            data = f.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError as e:
        raise KeyFileError(f"can't read the key {os.fspath(path)!r}: no such file; {way_out}") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise KeyFileError(f"can't read the key {os.fspath(path)!r}: {e}") from e
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{os.fspath(path)} has more than {MAX_KEY_FILE_BYTES} bytes: no Ed25519 key")
    return data
