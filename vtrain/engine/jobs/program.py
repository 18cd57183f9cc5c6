"""The program of a job: found, compared with its digest, and only then imported (protocol §1)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import rfc8785
import torch

from vtrain.engine.callsite import said
from vtrain.engine.jobs.imports import Imports
from vtrain.engine.jobs.sources import OURS, Sources
from vtrain.errors import ProgramError, VtrainError
from vtrain.job import ProgramSpec
from vtrain.kernels import scalars
from vtrain.kernels.failures import is_device_s

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
        data: a map from index to sample, for jobs whose data set is ``program``, the same at every look. What a sample
            is, ``vtrain.engine.jobs.samples`` says.
        collate: makes a batch of a list of samples; torch's ``default_collate`` if it is None.
    """

    model: torch.nn.Module
    loss: Loss = default_loss
    data: Any = None
    collate: Callable[[list[Any]], Any] | None = None


@dataclass(frozen=True)
class _Place:
    """Where a program's code is, found without importing it.

    Attributes:
        root: its own folder; None if it is of an installed distribution, whose modules are imported as ever.
        file: its source file.
        only: the package of the folder that is the program's; empty if all of it is.
        distribution: name and version, such as ``timm 1.0.20``; empty for vtrain's own and for a folder.
    """

    root: Path | None
    file: Path
    only: str = ""
    distribution: str = ""


def _place(entry: str, directory: Path) -> _Place:
    """Where a program is; see ``load_code`` for the arguments and errors."""
    place = entry.rpartition(":")[0]
    if place.endswith(".py"):
        path = directory / place
        if not path.is_file():
            raise ProgramError(
                f"program {entry!r}: no file {path}; a program's path is relative to the job file's folder when it is "
                "trained, and to --program-dir of `vtrain resume`, `vtrain audit` and `vtrain dispute`"
            )
        if "." in path.stem:
            raise ProgramError(f"program {entry!r}: {path.name} can't be a module's name; want no further dots in it")
        return _Place(path.parent, path)
    top = place.partition(".")[0]
    try:
        spec = importlib.util.find_spec(place if top in OURS else top)
    except (ImportError, ValueError) as error:
        raise ProgramError(f"program {entry!r}: {error}") from error
    if top in OURS and spec is not None and spec.origin:
        return _Place(None, Path(spec.origin))
    for folder, package in _folders(spec):
        base = folder / place.replace(".", "/")
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                if found := _distribution(folder, top):
                    return _Place(None, path, distribution=found)
                return _Place(folder, path, only=top if package else "")
    raise ProgramError(f"program {entry!r}: no module {place!r} with a source file")


def _folders(spec: ModuleSpec | None) -> list[tuple[Path, bool]]:
    """The folders that a top-level module or package lies in, and whether it is a package."""
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [(Path(location).parent, True) for location in spec.submodule_search_locations]
    return [(Path(spec.origin).parent, False)] if spec.has_location and spec.origin else []


def _distribution(folder: Path, top: str) -> str:
    """Name and version of the distribution that a folder's module is of; empty if it was not installed."""
    if folder.resolve() == Path(sysconfig.get_path("stdlib")).resolve():
        return f"Python {platform.python_version()}"
    if not {"site-packages", "dist-packages"} & {*folder.parts}:
        return ""
    names = importlib.metadata.packages_distributions().get(top, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted({*names})) or f"{top} (unknown)"


@dataclass(frozen=True)
class Code:
    """A job's program, imported.

    Attributes:
        entry: the function that the job names.
        spec: what the job says of it, with digests, files and distribution filled in.
        imports: of its folder; None if it is vtrain's own or a distribution's.
        versions: of what it imported from elsewhere than its folder and the standard library, by top-level name.
    """

    entry: Callable[..., Any]
    spec: ProgramSpec
    imports: Imports | None
    versions: dict[str, str]

    def check(self) -> None:
        """Raise what the program's imports were refused for, whatever became of it.

        Raises:
            ProgramError: something of its folder was to be executed that is not what was hashed.
        """
        if self.imports is not None:
            self.imports.check()

    def anew(self) -> Code:
        """The same program executed once more, from the bytes that were read; an installed one stays what it is."""
        if self.imports is None:
            return self
        imports = Imports(self.imports.sources)
        return Code(_own_function(self.spec, imports), self.spec, imports, self.versions)

    def to_json(self) -> dict[str, Any]:
        """What a verdict says of it: JSON values."""
        files = rfc8785.dumps(dict(self.spec.files))
        return {
            "entry": self.spec.entry,
            "sha256": self.spec.sha256,
            "distribution": self.spec.distribution,
            "files": len(self.spec.files),
            "filesDigest": hashlib.sha256(files).hexdigest(),
            "imports": self.versions,
        }


@scalars.held()
def load_code(spec: ProgramSpec, directory: Path, discover: bool = False) -> Code:
    """Import the program that a job names: what it was made for, and nothing else of its folder.

    All files that the job lists are read, hashed and compared before any is executed, and what is executed was compiled
    from the very bytes that were hashed. The functions of Python's numbers are ours meanwhile: the compiler computes
    ``0.9 ** 5`` itself, and a module what it holds.

    Args:
        spec: as in the job.
        directory: what a path is relative to.
        discover: whether digests that are open are filled in, and files that the program imports added. Otherwise what
            the job does not list is refused, now and whenever the program imports it.

    Raises:
        BackendError: they can't be put in place here.
        ProgramError: missing, of another digest, or not importable.
    """
    place = _place(spec.entry, directory)
    if place.root is None:
        return _installed(spec, place, discover)
    main = place.file.relative_to(place.root).as_posix()
    if main in spec.files:
        raise ProgramError(f"program {spec.entry!r}: program.files lists {main}, whose digest is program.sha256")
    _compare(spec, "distribution", "", discover)
    weights = {path: _weights(spec, place.root, path, discover) for path in spec.weights}
    listed = {main: spec.sha256, **spec.files}
    sources = Sources(spec.entry, place.root, main, listed, closed=not discover, only=place.only)
    if discover:
        sources.close()
    imports = Imports(sources)
    entry = _own_function(spec, imports)
    digests = sources.digests()
    found = {"sha256": digests.pop(main), "files": digests, "weights": weights, "distribution": ""}
    return Code(entry, spec.model_copy(update=found), imports, _versions(imports.outside))


def _installed(spec: ProgramSpec, place: _Place, discover: bool) -> Code:
    """A program of vtrain's own or a distribution's: its file is compared, the rest is as installed."""
    name = spec.entry.rpartition(":")[0]
    if spec.files or spec.weights:
        raise ProgramError(f"program {spec.entry!r}: is installed; want no program.files and no program.weights")
    try:
        digest = hashlib.sha256(place.file.read_bytes()).hexdigest()
    except OSError as error:
        raise ProgramError(f"program {spec.entry!r}: {place.file}: {error.strerror}") from error
    if digest != spec.sha256 and (spec.sha256 or not discover):
        wanted = spec.sha256 or "none"
        raise ProgramError(f"program {spec.entry!r}: {place.file} has SHA-256 {digest}; the job was made for {wanted}")
    _compare(spec, "distribution", place.distribution, discover)
    entry = _function(spec, lambda: importlib.import_module(name))
    found = {"sha256": digest, "distribution": place.distribution}
    return Code(entry, spec.model_copy(update=found), None, _versions({name.partition(".")[0]}))


def _weights(spec: ProgramSpec, root: Path, path: str, discover: bool) -> str:
    """SHA-256, hex, of a file that the program reads its weights from; what they become, the state of step 0 says."""
    wanted = spec.weights[path]
    try:
        with open(root / path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ProgramError(f"program {spec.entry!r}: {root / path}, of program.weights: {error.strerror}") from error
    if found != wanted and (wanted or not discover):
        raise ProgramError(
            f"program {spec.entry!r}: {root / path} has SHA-256 {found}; the job was made for {wanted or 'none'}"
        )
    return found


def _compare(spec: ProgramSpec, key: str, found: str, discover: bool) -> None:
    wanted = getattr(spec, key)
    if found != wanted and (wanted or not discover):
        raise ProgramError(
            f"program {spec.entry!r}: is of {found or 'no distribution'}; the job was made for {wanted or 'none'}"
        )


def _own_function(spec: ProgramSpec, imports: Imports) -> Callable[..., Any]:
    """Execute the program from its folder's sources; the function that the job names."""
    name = imports.sources.main.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    entry = _function(spec, lambda: imports.load(name))
    imports.check()
    return entry


def _function(spec: ProgramSpec, load: Callable[[], ModuleType]) -> Callable[..., Any]:
    """Import the program's module, and take the function that the job names."""
    place, _, function = spec.entry.rpartition(":")
    try:
        module = load()
    except VtrainError:
        raise
    except (Exception, SystemExit) as error:  # the program's own error, whatever it is
        raise ProgramError(f"program {spec.entry!r}: importing it failed: {said(error)}") from error
    entry = getattr(module, function, None)
    if not callable(entry):
        raise ProgramError(f"program {spec.entry!r}: {place} has no function {function!r}")
    return entry


def _versions(names: set[str]) -> dict[str, str]:
    found = {}
    for name in sorted(names - {*sys.stdlib_module_names, *OURS}):
        try:
            found[name] = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):  # of another name, or not installed
            found[name] = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    return found


@contextlib.contextmanager
def program_errors(spec: ProgramSpec) -> Iterator[None]:
    """Turn what the job's own code raises into a ProgramError that names the program; ours and a device's pass.

    Raises:
        ProgramError: with the program's error as its cause.
    """
    try:
        yield
    except VtrainError:
        raise
    except (Exception, SystemExit) as error:
        if is_device_s(error):
            raise
        raise ProgramError(f"program {spec.entry!r}: {said(error)}") from error


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
    for name, value in (("loss", program.loss), ("collate", program.collate)):
        if not callable(value) and (name, value) != ("collate", None):
            raise ProgramError(f"program {spec.entry!r}: its {name} is a {type(value).__name__}; want a function")
    return program
