"""The kernels' tests: helpers beside them, and the interpreter of device code, are imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE))
sys.path.append(str(HERE / "ptx"))
