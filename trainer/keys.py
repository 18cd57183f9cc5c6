"""The trainer's signing key: given, or one per user that is made at the first run."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vtrain.commit import keys
from vtrain.errors import KeyFileError


def default_key_path() -> Path:
    """``$XDG_CONFIG_HOME/vtrain/trainer.key``, by default below ``~/.config``."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "vtrain" / "trainer.key"


def trainer_key(given: Ed25519PrivateKey | str | os.PathLike[str] | None) -> Ed25519PrivateKey:
    """The key to sign with.

    Args:
        given: the key or its file; None for the user's own, which is made where it is missing.

    Raises:
        KeyFileError: the file is no key, or the user's own can't be made.
    """
    if isinstance(given, Ed25519PrivateKey):
        return given
    if given is not None:
        return keys.load_private(given)
    path = default_key_path()
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise KeyFileError(f"{path.parent}: {error.strerror}; give a key with --key or key=") from error
        made = keys.generate()
        try:
            keys.save_private(path, made)
        except KeyFileError:
            if not path.exists():  # else another process made it first
                raise
    return keys.load_private(path)
