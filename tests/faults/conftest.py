from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "attacks"))

from run_helpers import copied, honest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the honest run."""
    return copied(honest(), tmp_path / "run")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in forked processes, which have none of torch's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
