from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "attacks"))

from run_helpers import copied, honest


@pytest.fixture(scope="session")
def template() -> Path:
    """An honest run with a log of decisions; never change it."""
    return honest("certified16")


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    """A copy of the honest run."""
    return copied(template, tmp_path / "run")
