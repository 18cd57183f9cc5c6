"""What tests of all rooms have: the small runs of ``attacks/run_helpers.py``, and a copy of the honest one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "attacks"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the honest run."""
    from run_helpers import copied, honest  # torch: not where no run is wanted

    return copied(honest(), tmp_path / "run")
