"""Imports and includes point one way, light parts stay light, and the documents that code cites exist."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("vtrain", "trainer", "auditor")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def begins(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


# package -> what it must not import
FORBIDDEN = {
    "vtrain": ("trainer", "auditor"),
    "trainer": ("auditor",),
    "auditor": ("trainer",),
    "vtrain.rounding": ("vtrain.kernels", "vtrain.engine", "vtrain.store", "vtrain.commit", "vtrain.data"),
    "vtrain.kernels": ("vtrain.ops", "vtrain.engine", "vtrain.store", "vtrain.commit", "vtrain.data"),
    "vtrain.ops": ("vtrain.engine", "vtrain.store", "vtrain.commit", "vtrain.data"),
    "vtrain.commit": ("vtrain.engine", "vtrain.store", "vtrain.data", "torch", "zarr"),
    "vtrain.store": ("vtrain.engine", "torch"),
    "vtrain.random": ("vtrain.engine", "torch"),
    "vtrain.data": ("vtrain.engine", "vtrain.store", "torch"),
    "vtrain.errors": ("vtrain.engine", "vtrain.rounding", "vtrain.store", "torch"),
    "vtrain.job": ("vtrain.engine", "vtrain.store", "torch"),
}


@pytest.mark.parametrize("package", list(FORBIDDEN))
def test_imports_point_one_way(package: str) -> None:
    files = [path for path in SOURCES if begins(module_name(path), package)]
    assert files
    wrong = [(module_name(p), name) for p in files for name in imports(p) if begins(name, *FORBIDDEN[package])]
    assert wrong == []


# ---- no two modules need each other ----------------------------------------------------------------------------------
MODULES = {module_name(path): path for path in SOURCES}


def needs(path: Path) -> set[str]:
    """Modules of ours that a file imports; a package only where what is taken from it is no module."""
    found = {name for name in imports(path) if name in MODULES} - {module_name(path)}
    packages = {
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and all(f"{node.module}.{alias.name}" in MODULES for alias in node.names)
    }
    return found - packages


NEEDS = {name: needs(path) for name, path in MODULES.items()}


def test_no_two_modules_need_each_other() -> None:
    """Wherever the import stands: in a function, or for types alone."""
    graphlib.TopologicalSorter(NEEDS).prepare()  # CycleError names them


# ---- the auditor's rooms ---------------------------------------------------------------------------------------------
# room -> those that it may go into; every command may go anywhere, and nobody goes to a command.
ROOMS = {
    "evidence": {"evidence"},
    "verdict": {"evidence", "verdict"},
    "report": {"evidence", "verdict", "report"},
    "audit": {"evidence", "verdict", "audit"},
    "dispute": {"evidence", "verdict", "audit", "dispute"},
}


def room(name: str) -> str:
    return name.split(".")[1] if name.startswith("auditor.") else ""


def test_the_auditor_s_rooms() -> None:
    assert {path.name for path in (ROOT / "auditor").iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)
    inner = [name for name in NEEDS if room(name) in ROOMS and not name.endswith(".cli")]
    wrong = [(name, i) for name in inner for i in NEEDS[name] if room(i) in ROOMS.keys() - ROOMS[room(name)]]
    assert wrong == []


# the same for the engine's, of which its core and the handlers know none
ENGINE = {"state": {"state"}, "loops": {"state", "loops"}, "jobs": {"state", "loops", "jobs"}}


def test_the_engine_s_rooms() -> None:
    def part(name: str) -> str:
        return name.split(".")[2] if name.startswith("vtrain.engine.") else ""

    inner = [name for name in NEEDS if begins(name, "vtrain.engine")]
    wrong = [(n, i) for n in inner for i in NEEDS[n] if part(i) in ENGINE.keys() - ENGINE.get(part(n), set())]
    assert inner and wrong == []


def test_nobody_goes_to_a_command() -> None:
    """``vtrain.cli`` names them, and is what ``python -m vtrain`` runs."""
    found = [(name, i) for name, needed in NEEDS.items() for i in needed if i.endswith(".cli")]
    assert found == [("vtrain.__main__", "vtrain.cli")]


# What a step, a transcript or a signature is, every room may know; what is trained, one file does.
OF_TRAINING = {"vtrain.job.Job", "vtrain.job.LoopJob", "vtrain.commit.statement.RUN_PREDICATE"}


@pytest.mark.parametrize("package", ["auditor.verdict", "auditor.report"])
def test_training_stands_behind_one_seam(package: str) -> None:
    files = [path for path in SOURCES if begins(module_name(path), package)]
    assert files and [(module_name(p), i) for p in files for i in imports(p) if i in OF_TRAINING] == []


# ---- sizes -----------------------------------------------------------------------------------------------------------
MOST_LINES = 400


def test_files_stay_short() -> None:
    long = {module_name(path): lines for path in SOURCES if (lines := len(path.read_bytes().splitlines())) > MOST_LINES}
    assert long == {}


# Names as texts, imported when they are asked for: the commands, and vtrain.record and vtrain.replay.
BY_NAME = {"vtrain": "vtrain/__init__.py", "commands": "vtrain/cli.py"}


def test_only_two_lists_name_the_roles() -> None:
    named = re.compile(r"""["'](trainer|auditor)\.(?!key|pub)[a-z_.]+["']""")
    vtrain = [path for path in SOURCES if begins(module_name(path), "vtrain")]
    found = {path.relative_to(ROOT).as_posix() for path in vtrain if named.search(path.read_text(encoding="utf-8"))}
    assert found == {*BY_NAME.values()}


LIGHT: dict[str, tuple[str, ...]] = {
    "vtrain": ("torch", "zarr", "cupy", "pydantic", "trainer", "auditor"),
    "vtrain.roles": ("torch", "zarr", "pydantic", "trainer", "auditor"),
    "vtrain.cli": ("torch", "zarr", "pydantic"),
    "vtrain.commit.merkle": ("torch", "zarr"),
    "vtrain.commit.heads": ("torch", "zarr"),
    "vtrain.commit.statement": ("torch", "zarr"),
    "auditor": ("torch", "zarr"),
    "auditor.evidence.verify": ("torch",),
    "auditor.verdict.draw": ("torch", "zarr"),
    "auditor.audit.progress": ("torch",),
    "auditor.verdict.check": ("torch",),
    "trainer": ("torch", "zarr", "transformers"),
}


@pytest.mark.parametrize("module", list(LIGHT))
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {LIGHT[module]!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", ["numerics", "protocol"])
def test_cited_sections_exist(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^## (\d+)\.", text, re.MULTILINE))
    files = [*SOURCES, *(ROOT / "vtrain" / "kernels").rglob("*.[ch]pp")]
    cited = {n for path in files for n in re.findall(rf"{name} §(\d+)", path.read_text(encoding="utf-8"))}
    assert cited
    assert cited <= headings


def test_links_in_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    assert len(documents) > 5
    for document in documents:
        prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)  # code has lambdas
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
            assert (document.parent / target).exists(), f"{document}: {target}"


# ---- devices ---------------------------------------------------------------------------------------------------------
# The module that launches there, and the compiler's; the latter's extra is called so in messages elsewhere.
OF_CUDA = {"vtrain.kernels.cuda", "vtrain.kernels.nvrtc"}


def cuda_by_name(path: Path) -> Iterator[str]:
    """Names, attributes and texts of a file's code that are CUDA's; its docstrings and messages may speak of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        names = [getattr(node, field, None) for field in ("attr", "id", "name", "module")]
        if isinstance(node, ast.Constant) and id(node) not in texts and " " not in str(node.value):  # no message
            names.append(node.value)
        for name in names:
            if isinstance(name, str) and "cuda" in name.replace("CUDA_VISIBLE_DEVICES", "").lower():
                yield f"{module_name(path)}: {name}"


def test_no_device_is_asked_for_by_name() -> None:
    """What differs between devices is behind ``vtrain.kernels.device``, which lists CUDA's backend."""
    assert MODULES.keys() >= OF_CUDA
    found = [use for path in SOURCES if module_name(path) not in OF_CUDA for use in cuda_by_name(path)]
    listed = "vtrain.kernels.device: "
    assert sorted(found) == sorted(f"{listed}{name}" for name in ("vtrain.kernels.cuda", "Cuda", "cuda", "Cuda"))


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in names if names.count(name) > 1] == []
