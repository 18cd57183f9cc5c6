from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import copied, honest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the honest run."""
    return copied(honest(), tmp_path / "run")
