"""``--device emulated``: the parts on the tests' device, for a rehearsal where there is no GPU.

Every Python that a part starts loads that device as it starts (``emulated/sitecustomize.py``), and finds a
``compute-sanitizer`` that counts what the device's watched memory saw. What is measured there is no GPU's speed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtrain import children

HERE = Path(__file__).parent
DEVICE = HERE.parents[1] / "tests" / "emulated"
KEPT = "VTRAIN_EMULATED"  # where the compiled device is kept


@contextmanager
def variables(device: str) -> Iterator[dict[str, str]]:
    """What the parts' environment has beside this process's; nothing for a device that torch itself knows."""
    if not device.startswith("emulated"):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="vtrain-emulated-") as folder:
        found = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE / "emulated"), os.environ.get("PYTHONPATH", "")])),
            "PATH": os.pathsep.join([str(DEVICE / "bin"), os.environ["PATH"]]),
            KEPT: os.environ.get(KEPT) or folder,
        }
        children.run("-c", "", variables=found, check=True)  # compiled once, and not within a part's time
        yield found
