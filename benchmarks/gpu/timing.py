"""Medians on a device, and what else the speed rows have in common."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Row = dict[str, Any]
Work = Callable[[], object]
ROUNDS, SECONDS = 7, 3.0


def seconds(device: torch.device, work: Work) -> float:
    """Median of up to seven repetitions after two, or of those that began within three seconds: each waited for.

    One after the other and not in turn with others, so that each has the device's memory for itself.
    """
    wait = (lambda: None) if device.type == "cpu" else lambda: torch.get_device_module(device.type).synchronize(device)
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(found) < ROUNDS + 2 and (not found or time.perf_counter() < end):
        wait()
        start = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:] or found[-1:])


def tried(row: Row, work: Callable[[], Row]) -> Row:
    """The row with what ``work`` gives, or with the error that it raises, so that the others are measured anyway."""
    try:
        return row | work()
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
