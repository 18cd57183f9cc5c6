from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The small runs are those of the attacks.
sys.path.insert(0, str(Path(__file__).parent.parent / "attacks"))

from run_helpers import copied, honest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the honest run."""
    return copied(honest(), tmp_path / "run")
