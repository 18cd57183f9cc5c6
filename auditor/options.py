"""Options that several of the auditor's commands have, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtrain.errors import UsageError
from vtrain.store.address import Url

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

file_path = click.Path(path_type=Path)
trainer_key_option = click.option("--trainer-key", type=file_path, help="The trainer's public key, if you know it.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def public_key(path: Path | None) -> Ed25519PublicKey | None:
    """A public key from its file; None for none."""
    from vtrain.commit import keys

    return None if path is None else keys.load_public(path)


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """First and last step of ``A:B``, or of one step.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (first.isdecimal() and (last.isdecimal() if colon else True)):
        raise UsageError(f"--steps {text!r}; want A:B, or one step")
    return int(first), int(last if colon else first)


def check_outside(run: Path | Url, written: Path | Url | None) -> None:
    """Check that what a command writes is not in the run.

    Raises:
        UsageError: it is.
    """
    from vtrain.store.objects import inside

    if written is not None and inside(written, run):
        raise UsageError(f"{written}: is inside the run, which an audit never modifies")
