"""The program of a job: found, compared with its digest, and only then imported (protocol §1)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vtrain.errors import ProgramError, VtrainError
from vtrain.job import ProgramSpec
from vtrain.kernels import scalars

Loss = Callable[[torch.nn.Module, Any], torch.Tensor]


def default_loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """``model(**batch).loss``, as the models of ``transformers`` have it."""
    return model(**batch).loss


@dataclass(frozen=True)
class Program:
    """What the function that a job names returns.

    Attributes:
        model: the model to train; made here, its initial weights are part of what an audit repeats.
        loss: ``loss(model, batch)``, a scalar; ``model(**batch).loss`` by default.
        data: a map from index to sample, for jobs whose data set is ``program``.
    """

    model: torch.nn.Module
    loss: Loss = default_loss
    data: Any = None


def source_file(entry: str, directory: Path) -> Path:
    """The file that holds a program, found without importing it.

    Args:
        entry: ``package.module:function`` or ``path/to/file.py:function``.
        directory: what a path is relative to.

    Raises:
        ProgramError: there is none.
    """
    place = entry.rpartition(":")[0]
    if place.endswith(".py"):
        path = directory / place
        if not path.is_file():
            raise ProgramError(f"program {entry!r}: no file {path}")
        return path
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError) as error:
        raise ProgramError(f"program {entry!r}: {error}") from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ProgramError(f"program {entry!r}: no module {place!r} with a source file")
    return Path(spec.origin)


def source_digest(entry: str, directory: Path) -> str:
    """SHA-256 of a program's source file, in hex.

    Raises:
        ProgramError: there is none, or it can't be read.
    """
    path = source_file(entry, directory)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ProgramError(f"program {entry!r}: {path}: {error.strerror}") from error


@scalars.held()
def load_entry(spec: ProgramSpec, directory: Path) -> Callable[..., Any]:
    """The function that a job names, its source file being the one that the job was made for.

    The functions of Python's numbers are ours meanwhile: the compiler computes ``0.9 ** 5`` itself, and a module what
    it holds.

    Raises:
        BackendError: they can't be put in place here.
        ProgramError: missing, of another digest, or not importable.
    """
    found = source_digest(spec.entry, directory)
    if spec.sha256 and found != spec.sha256:
        path = source_file(spec.entry, directory)
        raise ProgramError(f"program {spec.entry!r}: {path} has SHA-256 {found}; the job was made for {spec.sha256}")
    place, _, function = spec.entry.rpartition(":")
    try:
        module = (
            _from_file(source_file(spec.entry, directory)) if place.endswith(".py") else importlib.import_module(place)
        )
    except (Exception, SystemExit) as error:  # the program's own error, whatever it is
        raise ProgramError(f"program {spec.entry!r}: importing it failed: {type(error).__name__}: {error}") from error
    entry = getattr(module, function, None)
    if not callable(entry):
        raise ProgramError(f"program {spec.entry!r}: {place} has no function {function!r}")
    return entry


def _from_file(path: Path) -> Any:
    name = f"vtrain_program_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look it up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def program_errors(spec: ProgramSpec) -> Iterator[None]:
    """Turn what the job's own code raises into a ProgramError that names the program; ours pass.

    Raises:
        ProgramError: with the program's error as its cause.
    """
    try:
        yield
    except VtrainError:
        raise
    except (Exception, SystemExit) as error:
        raise ProgramError(f"program {spec.entry!r}: {type(error).__name__}: {error}") from error


def build(spec: ProgramSpec, entry: Callable[..., Any]) -> Program:
    """Call the program's function with the job's configuration.

    Raises:
        ProgramError: it takes other arguments, fails, or returns neither a module nor a Program.
    """
    with program_errors(spec):
        made = entry(**spec.config)
    program = Program(made) if isinstance(made, torch.nn.Module) else made
    if not isinstance(program, Program) or not isinstance(program.model, torch.nn.Module):
        raise ProgramError(
            f"program {spec.entry!r}: returned a {type(made).__name__}; want a module or a vtrain.Program"
        )
    return program
