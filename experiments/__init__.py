"""Experiments: jobs, the figures to expect of them with their sources, and a program that puts what comes out beside.

Each is a folder ``experiments/<name>/`` with its job files, ``expected.toml`` and ``experiment.py``, whose function
``main(arguments)`` runs it and prints what it found. Being there is all the registration that there is:
``python -m experiments`` lists them, ``python -m experiments NAME ...`` runs one.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Figure:
    """A figure that others published, or that a formula gives.

    Attributes:
        name: what is measured, with its unit.
        value: as published.
        source: where.
        differs: what is not the same here.
    """

    name: str
    value: str
    source: str
    differs: str


@dataclass(frozen=True)
class Experiment:
    """What ``expected.toml`` says of an experiment.

    Attributes:
        name: of its folder.
        title: one line.
        figures: what to expect.
    """

    name: str
    title: str
    figures: tuple[Figure, ...]

    @property
    def main(self) -> Callable[[Sequence[str]], None]:
        """Runs it and prints; imported when it is asked for."""
        found: Callable[[Sequence[str]], None] = importlib.import_module(f"experiments.{self.name}.experiment").main
        return found

    def job(self, name: str) -> Path:
        """One of its job files."""
        return FOLDER / self.name / f"{name}.toml"


def load(name: str) -> Experiment:
    """An experiment by its folder's name.

    Raises:
        FileNotFoundError: there is none.
    """
    values = tomllib.loads((FOLDER / name / "expected.toml").read_text(encoding="utf-8"))
    return Experiment(name, values["title"], tuple(Figure(**figure) for figure in values.get("figure", ())))


def names() -> list[str]:
    """All experiments."""
    return sorted(path.parent.name for path in FOLDER.glob("*/expected.toml"))
