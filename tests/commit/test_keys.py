"""Keys against RFC 8032 and OpenSSL's formats, and bad key files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from vtrain.commit import keys
from vtrain.errors import KeyFileError, SignatureError

# RFC 8032 §7.1, test 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(SECRET)


def test_rfc_8032_vector() -> None:
    assert keys.raw_public(KEY.public_key()) == PUBLIC
    assert keys.sign(KEY, b"\x72") == SIGNATURE
    keys.verify(KEY.public_key(), SIGNATURE, b"\x72")


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (SIGNATURE, b"\x73"),
        (SIGNATURE, b""),
        (SIGNATURE[:-1], b"\x72"),
        (SIGNATURE + b"\0", b"\x72"),
        (b"", b"\x72"),
        (bytes([SIGNATURE[0] ^ 1]) + SIGNATURE[1:], b"\x72"),
    ],
)
def test_bad_signatures(signature: bytes, message: bytes) -> None:
    with pytest.raises(SignatureError):
        keys.verify(KEY.public_key(), signature, message)
    with pytest.raises(SignatureError):
        keys.verify(keys.generate().public_key(), SIGNATURE, b"\x72")


def test_save_and_load(tmp_path: Path) -> None:
    key, path = keys.generate(), tmp_path / "key.pem"
    old = os.umask(0)
    try:
        keys.save_private(path, key)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load_private(path).private_bytes_raw() == key.private_bytes_raw()
    assert keys.generate().private_bytes_raw() != key.private_bytes_raw()

    text = keys.public_text(key)
    assert text == keys.public_text(key.public_key()) and text.startswith("-----BEGIN PUBLIC KEY-----\n")
    (tmp_path / "key.pub").write_text(text)
    for source in (text, tmp_path / "key.pub", str(tmp_path / "key.pub")):
        assert keys.raw_public(keys.load_public(source)) == keys.raw_public(key.public_key())


def test_key_id_is_the_hash_of_the_der() -> None:
    der = bytes.fromhex("302a300506032b6570032100") + PUBLIC  # RFC 8410 §10.1
    assert keys.key_id(KEY.public_key()) == hashlib.sha256(der).hexdigest()


def test_save_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("precious")
    (tmp_path / "link.pem").symlink_to(tmp_path / "elsewhere")
    for target in (path, tmp_path / "link.pem"):
        with pytest.raises(KeyFileError, match="not overwritten"):
            keys.save_private(target, KEY)
    assert path.read_text() == "precious" and not (tmp_path / "elsewhere").exists()
    for target in (tmp_path / "no" / "key.pem", "nul\0"):
        with pytest.raises(KeyFileError, match="can't create"):
            keys.save_private(target, KEY)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space"):
        keys.save_private(tmp_path / "key.pem", KEY)
    assert list(tmp_path.iterdir()) == []


def test_bad_key_files(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8, plain = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    private = {
        "garbage": b"not a key",
        "empty": b"",
        "public": keys.public_text(KEY).encode(),
        "ecdsa": other.private_bytes(pem, pkcs8, plain),
        "locked": KEY.private_bytes(pem, pkcs8, BestAvailableEncryption(b"secret")),
        "large": KEY.private_bytes(pem, pkcs8, plain) + b"\n" * (1 << 16),
    }
    public = {
        "garbage": b"-----BEGIN garbage",
        "private": KEY.private_bytes(pem, pkcs8, plain),
        "ecdsa": other.public_key().public_bytes(pem, PublicFormat.SubjectPublicKeyInfo),
        "large": keys.public_text(KEY).encode() + b"\n" * (1 << 16),
    }
    for load, files in ((keys.load_private, private), (keys.load_public, public)):
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
            with pytest.raises(KeyFileError):
                load(tmp_path / name)
        for path in (tmp_path / "missing", tmp_path, "nul\0"):
            with pytest.raises(KeyFileError, match="can't read"):
                load(path)
    for text in ("-----BEGIN garbage", "-----BEGIN \ud800", public["ecdsa"].decode()):
        with pytest.raises(KeyFileError, match="given text"):
            keys.load_public(text)


@pytest.mark.parametrize("text", ["A", "AAA", "AA=", "AB==", "AA==\n", " AA==", "AA==AA==", "A-_=", "\u0410A==", None])
def test_strict_base64(text: str) -> None:
    assert keys.decode_base64("AA==") == b"\0" and keys.decode_base64("") == b""
    with pytest.raises(ValueError, match="base64"):
        keys.decode_base64(text)
