from __future__ import annotations

import subprocess
import sys

import pytest

NAMES = ("atomic", "canonical", "checkpoint", "identity", "layout", "logcheck", "logformat", "transcript")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        *((f"vtrain.store.{name}", ("torch", "cupy", "zarr")) for name in NAMES),
        ("vtrain.store.log", ("torch",)),  # zarr itself imports CuPy where it is installed
    ],
)
def test_imports(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == ""
