"""Imports point one way, light parts stay light, and the documents that code cites exist."""

from __future__ import annotations

import ast
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
    "vtrain.kernels": ("vtrain.engine", "vtrain.store", "vtrain.commit", "vtrain.data"),
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


# Names as texts, imported when they are asked for: the commands, and vtrain.record and vtrain.replay.
BY_NAME = {"vtrain": "vtrain/__init__.py", "commands": "vtrain/cli.py"}


def test_only_two_lists_name_the_roles() -> None:
    named = re.compile(r"""["'](trainer|auditor)\.(?!key|pub)[a-z_.]+["']""")
    vtrain = [path for path in SOURCES if begins(module_name(path), "vtrain")]
    found = {path.relative_to(ROOT).as_posix() for path in vtrain if named.search(path.read_text(encoding="utf-8"))}
    assert found == {*BY_NAME.values()}


LIGHT = {
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
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document}: {target}"
