"""The source files of a job's program, below its own folder: each is read once, and hashed (protocol §1).

What is hashed is what runs: a module is compiled from the very bytes that were hashed (``imports`` in this package), so
that no bytecode cache, extension module or file that changed meanwhile can take its place.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, NamespaceLoader
from importlib.util import find_spec
from pathlib import Path

from vtrain.errors import ProgramError
from vtrain.roles import HOME

MOST_BYTES = 16 << 20  # of one source file
OURS = ("vtrain", "trainer", "auditor")


@dataclass(frozen=True)
class Module:
    """A module or package of the program's own folder.

    Attributes:
        name: dotted, from the folder on.
        path: of its source from the folder on, with ``/``; empty for a package without ``__init__.py``.
        package: whether it has modules of its own.
    """

    name: str
    path: str
    package: bool


class Sources:
    """Source files below a program's folder.

    Args:
        entry: how errors call the program.
        root: the folder.
        main: path of the program's own file from there.
        listed: SHA-256 by path, of ``main`` too; empty where the digest is still open.
        closed: whether any other file is refused.
        only: the one package of the folder that is the program's; empty if all are.

    Attributes:
        home: the folder, or that package's: what is in it is the program's own.

    Raises:
        ProgramError: a listed file is missing, too large, or of another digest.
    """

    def __init__(
        self, entry: str, root: Path, main: str, listed: Mapping[str, str], closed: bool, only: str = ""
    ) -> None:
        self.entry, self.root, self.main, self.closed, self.only = entry, root.resolve(), main, closed, only
        self.home = self.root / only
        self._read: dict[str, bytes] = {}
        self._owned: dict[str, bool] = {}
        for path, wanted in listed.items():
            found = hashlib.sha256(self._bytes(path)).hexdigest()
            if found != wanted and (wanted or closed):
                raise ProgramError(
                    f"program {entry!r}: {root / path} has SHA-256 {found}; the job was made for {wanted or 'none'}"
                )

    def digests(self) -> dict[str, str]:
        """SHA-256 in hex of each file read, by path."""
        return {path: hashlib.sha256(data).hexdigest() for path, data in sorted(self._read.items())}

    def source(self, module: Module) -> bytes:
        """What a module is compiled from; empty for a package without a file."""
        return self._bytes(module.path) if module.path else b""

    def owns(self, top: str) -> bool:
        """Whether a top-level name is a module of the folder, which then comes before any other of this name.

        Raises:
            ProgramError: as ``find``.
        """
        if top not in self._owned:
            self._owned[top] = self._is_own(top)
        return self._owned[top]

    def _is_own(self, top: str) -> bool:
        if (self.only and top != self.only) or (top in OURS and (self.root / top).resolve() == HOME / top):
            return False
        found = self.find(top)
        if found is None:
            return False
        # As in Python, a directory without __init__.py is a package only where no other module has its name.
        return bool(found.path) or self.closed or not _elsewhere(top)

    def find(self, name: str) -> Module | None:
        """The folder's module of this dotted name, whose first part it owns.

        Raises:
            ProgramError: the folder has it, but the job doesn't list it, or only compiled.
        """
        base = name.replace(".", "/")
        listed = self._among(base, self._read)
        if listed is not None and (listed.path or self.closed):
            return listed
        for path in (f"{base}/__init__.py", f"{base}.py"):
            if (self.root / path).is_file():
                if self.closed:
                    raise ProgramError(
                        f"program {self.entry!r}: imports {self.root / path}, which the job does not list; import it "
                        "by a plain statement or list it in program.files before training, or remove it from the folder"
                    )
                return Module(name, path, path.endswith("/__init__.py"))
        for suffix in (*EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES):
            for compiled in (f"{base}{suffix}", f"{base}/__init__{suffix}"):
                if (self.root / compiled).is_file():
                    raise ProgramError(
                        f"program {self.entry!r}: imports {self.root / compiled}, which has no source to be hashed; "
                        "want source files in the program's folder, or an installed distribution"
                    )
        inside = () if self.closed else ("*.py", "*/*.py")
        return Module(name, "", True) if any(any((self.root / base).glob(form)) for form in inside) else None

    def close(self) -> None:
        """Read all that statements of the files read so far can import, executed or not, and what those can."""
        seen: set[str] = set()
        while new := sorted(self._read.keys() - seen):
            for path in new:
                seen.add(path)
                for name in self._imported(path):
                    if self.owns(name.partition(".")[0]) and (module := self.find(name)) is not None:
                        self.source(module)

    def _among(self, base: str, paths: Mapping[str, bytes]) -> Module | None:
        name = base.replace("/", ".")
        for path in (f"{base}/__init__.py", f"{base}.py"):
            if path in paths:
                return Module(name, path, path.endswith("/__init__.py"))
        inside = any(path.startswith(f"{base}/") for path in paths)
        return Module(name, "", True) if inside else None

    def _bytes(self, path: str) -> bytes:
        if path not in self._read:
            place = self.root / path
            if not place.is_file():
                raise ProgramError(f"program {self.entry!r}: no file {place}, which the job lists")
            try:
                with open(place, "rb") as file:
                    data = file.read(MOST_BYTES + 1)
            except OSError as error:
                raise ProgramError(f"program {self.entry!r}: {place}: {error.strerror}") from error
            if len(data) > MOST_BYTES:
                raise ProgramError(f"program {self.entry!r}: {place} has more than {MOST_BYTES} bytes")
            self._read[path] = data
        return self._read[path]

    def _imported(self, path: str) -> Iterator[str]:
        """Dotted names that a file's statements may import, from the folder on; also of packages around them."""
        try:
            tree = ast.parse(self._read[path])
        except (SyntaxError, ValueError, RecursionError):
            return  # importing it says what is wrong
        package = path.split("/")[:-1]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from _with_parents(alias.name)
            elif isinstance(node, ast.ImportFrom):
                around = package[: len(package) + 1 - node.level] if node.level else []
                module = ".".join([*around, *([node.module] if node.module else [])])
                yield from _with_parents(module)
                yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*")


def _elsewhere(top: str) -> bool:
    """Whether Python finds a module of this name that is no mere directory."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return True  # a module without a spec
    return spec is not None and spec.loader is not None and not isinstance(spec.loader, NamespaceLoader)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".") if name else []
    yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))
