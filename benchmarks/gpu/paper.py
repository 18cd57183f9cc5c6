"""The paper's runs: ResNet-50 and GPT-2 of 124 million parameters, trained on a device and audited on the CPU.

An audit of 20 steps of GPT-2 takes minutes on a few cores, so each segment between two checkpoints is audited by a
process of its own, all at once: each that is verified is a result, and all together say that the whole run is the
same. Beside them: plain float64 training on both, two steps; and the same run without a log, of which the CPU audits
the first half if time is left.

``python -m benchmarks.gpu.paper JOB STEPS`` is one side of the plain training.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Clock, row, together
from experiments.paper_scale import experiment
from vtrain import children
from vtrain.profiles import DEVICE

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 20, 5
TINY = {  # what stands in GPT-2's job file, and what instead
    "vocab = 50257": "vocab = 256", "layers = 12": "layers = 1", "width = 768": "width = 32", "heads = 12": "heads = 2",
}  # fmt: skip
KEPT = ("result", "firstBadStep", "what", "settled", "entries", "corrections", "violations")


def job_text(name: str, threshold: str, tiny: bool) -> str:
    """The job file, with a checkpoint for each segment."""
    text = experiment.job_text(name, 4 if tiny else STEPS, threshold)
    text = text.replace("checkpoint_every = 10", f"checkpoint_every = {2 if tiny else EVERY}")
    for large, small in TINY.items() if tiny else ():
        text = text.replace(large, small)
    return text


def segments(tiny: bool) -> list[tuple[int, int]]:
    """First and last step of each: the first has the initialisation too."""
    steps, every = (4, 2) if tiny else (STEPS, EVERY)
    return [(start + bool(start), start + every) for start in range(0, steps, every)]


class Runs:
    """What the commands need: where, how small, and how long.

    Args:
        folder: for the runs.
        device: that trains.
        tiny: the smallest models.
        clock: the part's.
    """

    def __init__(self, folder: Path, device: str, tiny: bool, clock: Clock) -> None:
        self.folder, self.device, self.tiny, self.clock = folder, device, tiny, clock

    def train(self, name: str, threshold: str, seconds: float) -> bool:
        """Train on the device; whether the run is there. A row with its log's size."""
        job, run = self.folder / f"{name}-{threshold}.toml", self.folder / f"{name}-{threshold}"
        job.write_text(job_text(name, threshold, self.tiny))
        arguments = ("-m", "vtrain", "train", str(job), "--out", str(run), "--device", self.device)
        seconds_taken, done = self._timed(seconds, arguments, 2)
        size = sum(f.stat().st_size for f in (run / "log.zarr").rglob("*") if f.is_file())
        said = "" if done.code == 0 else _why(done)
        row(model=name, threshold=threshold, trained=self.device, seconds=seconds_taken, log_bytes=size, error=said)
        return done.code == 0

    def audit(self, name: str, threshold: str, steps: tuple[int, int], threads: int) -> dict[str, Any]:
        """Audit a segment on the CPU. A row with what was found."""
        run = self.folder / f"{name}-{threshold}"
        arguments = ("-m", "vtrain", "audit", str(run), "--json", "--steps", "{}:{}".format(*steps))
        seconds, done = self._timed(self.clock.left(), arguments, threads)
        found = json.loads(done.out) if done.code in (0, 1) else {"result": "none", "what": _why(done)}
        kept = {key: found.get(key) for key in KEPT}
        row(model=name, threshold=threshold, audited="{}-{}".format(*steps), seconds=seconds, **kept)
        return kept

    def plain(self, name: str) -> None:
        """Whether plain float64 training is the same on both after each of two steps. A row."""
        job = self.folder / f"{name}-plain.toml"
        job.write_text(job_text(name, "off", self.tiny))
        arguments, seconds = ("-m", "benchmarks.gpu.paper", str(job), "2"), 0.5 * self.clock.left()
        sides = together(functools.partial(self._timed, seconds, arguments, 4, where) for where in (self.device, "cpu"))
        digests = [done.out.split() for _, done in sides]
        if any(done.code != 0 for _, done in sides):
            row(model=name, plain="float64", error="; ".join(_why(done) for _, done in sides if done.code != 0))
            return
        first = next((i for i, (a, b) in enumerate(zip(*digests, strict=True), 1) if a != b), None)
        row(model=name, plain="float64", steps=2, differs_after_step=first)

    def _timed(
        self, seconds: float, arguments: tuple[str, ...], threads: int, device: str = "cpu"
    ) -> tuple[float, children.Ended]:
        before = self.clock.left(0)
        variables = {"OMP_NUM_THREADS": str(threads), DEVICE: device}
        done = children.bounded(seconds, *arguments, variables=variables, folder=ROOT)
        return round(before - self.clock.left(0), 1), done


def _why(done: children.Ended) -> str:
    return "not done in time" if done.code is None else done.err.strip()[-300:] or f"exit code {done.code}"


def runs(device: str, tiny: bool, clock: Clock) -> None:
    """Train, audit, and say of each model whether its state is the same at every checkpoint."""
    with tempfile.TemporaryDirectory(prefix="vtrain-gpu-") as folder:
        here = Runs(Path(folder), device, tiny, clock)
        names, cores = experiment.JOBS[-1:] if tiny else experiment.JOBS, os.cpu_count() or 1
        trained = together(
            [functools.partial(here.train, name, "certified", 0.6 * clock.left()) for name in names]
            + [functools.partial(here.plain, name) for name in names]
        )
        ready = [name for name, done in zip(names, trained, strict=False) if done]
        # what one of two may have; those of the smaller model end sooner, and leave their cores to the others
        threads = max(1, cores // (len(segments(tiny)) * max(1, len(ready))))
        works = [functools.partial(_whole, here, name, threads) for name in ready]
        works += [functools.partial(here.train, name, "off", clock.left()) for name in names]
        off = [name for name, done in zip(names, together(works)[len(ready) :], strict=True) if done]
        half = segments(tiny)[: len(segments(tiny)) // 2]
        threads = max(1, cores // max(1, len(half) * len(off)))
        together(functools.partial(here.audit, name, "off", part, threads) for name in off for part in half)


def _whole(here: Runs, name: str, threads: int) -> None:
    """Audit all segments of a run at once."""
    found = together(functools.partial(here.audit, name, "certified", part, threads) for part in segments(here.tiny))
    verified = [f["result"] == "verified" for f in found]
    row(model=name, threshold="certified", final_state="identical" if all(verified) else "not shown to be",
        segments=f"{sum(verified)} of {len(found)}", entries=_sum(found, "entries"), settled=_sum(found, "settled"),
        corrections=_sum(found, "corrections"))  # fmt: skip


def _sum(found: list[dict[str, Any]], key: str) -> int:
    return sum(f[key] or 0 for f in found)


if __name__ == "__main__":
    experiment.plain(Path(sys.argv[1]).read_text(), int(sys.argv[2]))
