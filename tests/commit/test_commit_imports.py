"""The package is for small verifiers: it brings neither torch nor zarr nor the rest of vtrain."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from vtrain.commit import curve, digest, heads, keys, merkle, statement
heavy = {"torch", "zarr", "cupy", "transformers", "safetensors", "pydantic"}
print(sorted(n for n in sys.modules if n.split(".")[0] in heavy))
print(sorted(n for n in sys.modules if n.startswith("vtrain.") and n.split(".")[1] not in ("commit", "errors")))
"""


def test_imports() -> None:
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n[]\n"
