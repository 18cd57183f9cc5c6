"""The program that an auditor runs without the client's job: none that the trainer can have written (protocol §7)."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from vtrain.errors import MalformedRunError, UsageError
from vtrain.job import ProgramSpec

_BUILT_IN = "vtrain.programs."


# A command without --job has no other way out.
FOLDER = "name a folder of yours that has these files with --program-dir"
FOLDER_OR_JOB = f"{FOLDER}, or give the client's job with --job"


def check_program(spec: ProgramSpec, directory: Path | None, run: Path, way_out: str = FOLDER_OR_JOB) -> None:
    """Check a program that only the run names, before any of it is imported.

    It must be a function of a module of ``vtrain.programs``, or a file that the auditor has below ``directory``, and
    not in the run. Any other installed module would do what its functions do with arguments of the trainer's choice.

    Args:
        spec: the program, hostile.
        directory: the auditor's folder of programs; None if there is none.
        run: the run directory.
        way_out: what the caller can do.

    Raises:
        MalformedRunError: the run does not say which bytes the program has.
        UsageError: the program is not one of these, or it imports files that are not: the auditor has to bring the
            client's job.
    """
    place, _, function = spec.entry.rpartition(":")
    if not spec.sha256 or not all(spec.files.values()):
        raise MalformedRunError("job.json: program.sha256 is empty; expected the digest of what was run")
    if place.endswith(".py"):
        folder = Path(place).parent
        files = (place, *(str(folder / path) for path in spec.files))
        allowed = directory is not None and all(_is_below(path, directory, run) for path in files)
    else:
        allowed = place.startswith(_BUILT_IN) and _defines(place, function)
    if not allowed:
        raise UsageError(
            f"program {spec.entry[:200]!r}: the trainer chose it, and it is neither vtrain's own nor files below a "
            f"folder of yours; {way_out}"
        )


def _is_below(place: str, directory: Path, run: Path) -> bool:
    folder, path, theirs = (Path(os.path.realpath(p)) for p in (directory, directory / place, run))
    return folder in path.parents and theirs not in path.parents


def _defines(place: str, function: str) -> bool:
    """Whether a built-in module defines the function, not only imports it."""
    try:
        module = importlib.import_module(place)
    except (ImportError, ValueError):
        return False
    return getattr(getattr(module, function, None), "__module__", None) == place
