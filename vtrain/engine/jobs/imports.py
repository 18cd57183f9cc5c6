"""What a program imports: its folder's modules from the bytes that were hashed, all others as Python does.

The modules have private names, ``vtrain_program_N.helpers`` for the folder's ``helpers.py``, and only they see each
other by the plain ones: each has ``__builtins__`` of its own, whose ``__import__`` looks into the folder first. So two
programs can have their own ``helpers``, a ``random.py`` of the folder disturbs nobody else, nothing that is installed,
on PYTHONPATH or imported already shadows a module of the folder, and imports inside functions work at any time.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from vtrain.engine.jobs.sources import HOME, OURS, Module, Sources
from vtrain.errors import ProgramError, VtrainError

_numbers = itertools.count(1)
_live: dict[str, Imports] = {}


class Imports:
    """The importing of one program.

    Args:
        sources: its folder's.

    Attributes:
        outside: top-level names that it imported from elsewhere.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.prefix = f"vtrain_program_{next(_numbers)}"
        self.builtins = {**vars(builtins), "__import__": self._import}
        self.outside: set[str] = set()
        self.refusal: VtrainError | None = None
        self._running: set[int] = set()
        self._importlib = _Importlib(self)
        root = sys.modules[self.prefix] = ModuleType(self.prefix)
        root.__path__ = [str(sources.root)]
        _live[self.prefix] = self
        _begin()

    def load(self, name: str) -> ModuleType:
        """Import a module of the folder by its dotted name there."""
        return importlib.import_module(f"{self.prefix}.{name}")

    def check(self) -> None:
        """Raise the first refusal, which the program's own ``except`` may have swallowed.

        Raises:
            ProgramError: something of the folder was to be executed that is not what was hashed.
        """
        if self.refusal is not None:
            raise self.refusal

    def refuse(self, error: VtrainError) -> VtrainError:
        """Remember an error that no ``except`` can undo."""
        self.refusal = self.refusal or error
        return error

    def owns(self, name: str) -> bool:
        """Whether a dotted name begins with a module of the folder."""
        try:
            return self.sources.owns(name.partition(".")[0])
        except VtrainError as error:
            raise self.refuse(error) from None

    def spec(self, name: str) -> ModuleSpec:
        """How a module of the folder is loaded.

        Raises:
            ModuleNotFoundError: there is none.
            ProgramError: the job does not list it, or it has no source.
        """
        try:
            module = self.sources.find(name)
            if module is None:
                # a statement `from package import name` expects the whole name here
                raise ModuleNotFoundError(f"No module named {name!r}", name=f"{self.prefix}.{name}")
            loader = _Loader(self, module)
        except VtrainError as error:
            raise self.refuse(error) from None
        place = self.sources.root / (module.path or name.replace(".", "/"))
        spec = ModuleSpec(loader.name, loader, origin=str(place) if module.path else None, is_package=module.package)
        spec.has_location = bool(module.path)
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(str(place.parent if module.path else place))
        return spec

    @contextmanager
    def running(self, code: CodeType) -> Iterator[None]:
        """While the body runs, this code is a module's that was compiled from hashed bytes."""
        self._running.add(id(code))
        try:
            yield
        finally:
            self._running.discard(id(code))

    def watch(self, path: str, code: CodeType | None) -> None:
        """Hear of code in the folder that is about to be executed, by whatever way.

        Raises:
            ProgramError: by another way than the program's import of a hashed source.
        """
        mine = code is not None and id(code) in self._running
        if not mine and not _named_otherwise(path, self.sources.home) and self._at_work():
            raise self.refuse(
                ProgramError(
                    f"program {self.sources.entry!r}: executes {path} of its own folder, but not by an import "
                    "statement; import it by one, as a module of the folder, so that it is hashed"
                )
            )

    def _at_work(self) -> bool:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_builtins is self.builtins:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> Any:
        """``__import__`` of the program's modules."""
        if level == 0 and self.owns(name):
            if fromlist:
                return builtins.__import__(f"{self.prefix}.{name}", globals, locals, fromlist, 0)
            self.load(name)
            return sys.modules[f"{self.prefix}.{name.partition('.')[0]}"]
        found = builtins.__import__(name, globals, locals, fromlist, level)
        if level == 0:
            self.outside.add(name.partition(".")[0])
        return self._importlib if found is importlib else found

    def import_module(self, name: str, package: str | None = None) -> ModuleType:
        """``importlib.import_module`` of the program's modules."""
        if name.startswith(".") and package is not None and self.owns(package):
            package = f"{self.prefix}.{package}"
        elif not name.startswith(".") and self.owns(name):
            name = f"{self.prefix}.{name}"
        elif not name.startswith("."):
            self.outside.add(name.partition(".")[0])
        return importlib.import_module(name, package)


class _Importlib(ModuleType):
    """``importlib`` as a program sees it."""

    def __init__(self, imports: Imports) -> None:
        super().__init__("importlib")
        self.import_module = imports.import_module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib, name)


class _Loader(SourceFileLoader):
    """Compiles a module from its hashed bytes; no cache is read or written."""

    def __init__(self, imports: Imports, module: Module) -> None:
        super().__init__(f"{imports.prefix}.{module.name}", str(imports.sources.root / module.path))
        self._imports, self._module = imports, module
        self._source = imports.sources.source(module)

    def get_code(self, fullname: str) -> CodeType:
        """The module's code; ``assert`` is part of it, whatever Python's options."""
        return compile(self._source, self.path, "exec", dont_inherit=True, optimize=0)

    def get_source(self, fullname: str) -> str:
        """The module's source, as it was hashed."""
        return importlib.util.decode_source(self._source)

    def is_package(self, fullname: str) -> bool:
        """Whether it is a package."""
        return self._module.package

    def exec_module(self, module: ModuleType) -> None:
        """Execute it, with the program's way to import."""
        code = self.get_code(module.__name__)
        module.__dict__["__builtins__"] = self._imports.builtins
        with self._imports.running(code):
            exec(code, module.__dict__)


class _Finder:
    """Finds the modules of all programs, by their private names."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        prefix, _, name = fullname.partition(".")
        return _live[prefix].spec(name) if prefix in _live and name else None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's audit hook: hears of each code object, extension module and library before it is executed."""
    if event == "exec":
        code = arguments[0]
        path = code.co_filename
    elif event in ("import", "ctypes.dlopen"):
        code, path = None, arguments[1 if event == "import" else 0]
    else:
        return
    if isinstance(path, str) and not path.startswith("<"):
        path = os.path.realpath(path)
        for imports in list(_live.values()):
            if _below(path, str(imports.sources.home)):
                imports.watch(path, code)


_named: set[str] = set()  # where Python, vtrain and the entries of the search path are


def _begin() -> None:
    if not _named:
        places = [sys.prefix, sys.base_prefix, *(str(HOME / name) for name in OURS), *filter(None, sys.path)]
        _named.update(os.path.realpath(place) for place in places)
        sys.meta_path.insert(0, _Finder)
        sys.addaudithook(_hook)


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _named_otherwise(path: str, root: Path) -> bool:
    """Whether a file is of Python, vtrain or an entry of the search path that lies below a program's folder."""
    return any(_below(place, str(root)) and _below(path, place) for place in _named)
