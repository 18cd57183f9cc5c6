"""Fuzzes one target in a process of its own, ``fuzz_worker.py RUN SCRATCH TARGET SECONDS``; prints JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fuzz_targets import Fuzz
from guard import confined, limit_memory, peak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import Step, plans

from vtrain.errors import VtrainError

DEADLINE = 10.0  # seconds an input, on a machine that does other things too


def main(run: Path, scratch: Path, target: str, seconds: float) -> None:
    fuzz = Fuzz(run, scratch)
    feed = getattr(fuzz, target)
    counts = {"inputs": 0, "accepted": 0, "slowest": 0.0}
    end = time.monotonic() + seconds

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(plans, st.floats(0, 1, exclude_max=True))
    def one(plan: list[Step], pick: float) -> None:
        if time.monotonic() > end:
            return
        began = time.monotonic()
        counts["inputs"] += 1
        try:
            with confined(scratch, DEADLINE):
                feed(plan, pick)
            counts["accepted"] += 1
        except VtrainError:
            pass
        counts["slowest"] = max(counts["slowest"], time.monotonic() - began)

    one()  # imports what it needs, before memory is counted
    base = peak()
    limit_memory()
    while time.monotonic() < end:
        one()
    print(json.dumps({"target": target, **counts, "grown": peak() - base}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
