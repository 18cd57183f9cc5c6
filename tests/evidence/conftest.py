from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "attacks"))

from run_helpers import copied, honest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the honest run."""
    return copied(honest(), tmp_path / "run")
