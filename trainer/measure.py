"""``vtrain calibrate``: how far executions of a job's first steps come apart across instruction sets and threads.

One process records the steps with statistical thresholds and keeps samples of every result before rounding. Others,
under other arithmetic, replay its decisions, so that every operation has the same inputs, and compare (numerics §3).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from trainer.calibration import Calibration, largest_ratio
from trainer.listener import Recorder
from vtrain import children
from vtrain.engine import state
from vtrain.engine.decisions import FAULTS, Decisions
from vtrain.engine.jobs.task import Task, complete
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.engine.loops.loop import Loop, StepEnd
from vtrain.errors import BackendError, LogError, VtrainError
from vtrain.job import Job, load
from vtrain.kernels import scalars
from vtrain.policy import Policy
from vtrain.profiles import PROFILES
from vtrain.rounding.scale import Scale
from vtrain.rounding.threshold import calibration_key
from vtrain.store.steplog import COLUMNS, StepLog

# Results compared at each site: all of a small one, an even sample of a large one.
_SAMPLE = 1 << 16


def executions() -> list[tuple[str, int]]:
    """(profile, threads) of the processes that are compared with this machine's own."""
    cores = os.cpu_count() or 1
    return [(name, threads) for name in PROFILES for threads in sorted({1, cores})]


def _picked(y: torch.Tensor) -> torch.Tensor:
    flat = y.reshape(-1)
    return flat[:: max(1, -(-flat.numel() // _SAMPLE))].double()


class Reference:
    """Records steps and keeps a sample of each result."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self._recorder = Recorder(policy)
        self._folder = folder
        self._samples: dict[str, np.ndarray] = {}

    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        """Start keeping samples."""
        self._samples = {}

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Record; keep a sample."""
        self._samples[f"site_{site.seq}"] = _picked(y).numpy().copy()
        return self._recorder.settle(site, y, scale, vary)

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """Nothing to compare: canonical results have one value."""

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """Record."""
        return self._recorder.scalar(step, position, value)

    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        """Write the step's log and samples."""
        log = self._recorder.take()
        columns = {name: getattr(log, name) for name in COLUMNS}
        np.savez(self._folder / f"{done.step}.npz", **self._samples, **columns)  # type: ignore[arg-type]


class Comparison:
    """Replays a reference's steps and takes the largest differences."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.calibration = Calibration()

    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        """Open the reference's step."""
        self._file = np.load(self._folder / f"{step}.npz")
        log = StepLog(**{name: self._file[name] for name in COLUMNS})
        self._decisions, self._scalars = Decisions(log), log.scalars.view("<f8").tolist()

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Compare with the reference's sample, then take its decisions."""
        s = scale()
        reference = torch.from_numpy(self._file[f"site_{site.seq}"])
        self._observe(s, y, reference)
        if vary is not None:
            y = y.clone()
            self._observe(s, vary(), reference)
        out, found, _ = self._decisions.settle(site, y, lambda: s)
        if found is not None and found.fault:
            raise LogError(f"{site}: {FAULTS[found.fault]}")
        return out

    def _observe(self, scale: Scale, y: torch.Tensor, reference: torch.Tensor) -> None:
        ratio = largest_ratio(_picked(y) - reference, _picked(scale.dense(y)))
        self.calibration.merge(calibration_key(scale.kind, scale.length, scale.compute), ratio)

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """Nothing to compare: canonical results have one value."""

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """The reference's scalar."""
        return float(self._scalars[position])

    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        """Close the reference's step."""
        self._file.close()


@scalars.held()
def _run(job: Job, directory: Path, role: Reference | Comparison, steps: int) -> None:
    task = Task(job, directory)
    loop = Loop(role, job.policy, job.train.seed)
    loop.initialise(task.model, task.optimizer)
    for step in range(1, steps + 1):
        task.run_step(loop, step)


def worker(arguments: list[str]) -> None:
    """``record|compare JOB FOLDER STEPS THREADS``: one execution; prints its differences as JSON."""
    mode, path, folder, steps, threads = arguments
    torch.set_num_threads(int(threads))
    job = load(Path(path))
    policy = job.policy.model_copy(update={"threshold": "statistical", "calibration": {}})
    job = complete(job.model_copy(update={"policy": policy}), Path(path).parent)
    reference = mode == "record"
    role = Reference(policy, Path(folder)) if reference else Comparison(Path(folder))
    _run(job, Path(path).parent, role, int(steps))
    print(json.dumps({k: v.hex() for k, v in role.calibration.seen().items()} if isinstance(role, Comparison) else {}))


def measure(path: Path, steps: int, on_execution: Callable[[str], None]) -> dict[str, float]:
    """Largest differences by kind of operation across ``executions()``.

    Args:
        path: the job file.
        steps: how many of its first steps.
        on_execution: hears of each execution as it starts.

    Raises:
        BackendError: an execution failed; says what it printed.
    """
    load(path)  # an error of the job's is told as one
    total = Calibration()
    with tempfile.TemporaryDirectory(prefix="vtrain-calibrate-") as folder:
        cores = os.cpu_count() or 1
        for mode, (name, threads) in [("record", ("native", cores)), *(("compare", e) for e in executions())]:
            on_execution(f"{mode} under {name}, {threads} threads")
            for key, value in _execute(mode, path, folder, steps, name, threads).items():
                total.merge(key, float.fromhex(value))
    return total.seen()


def _execute(mode: str, path: Path, folder: str, steps: int, name: str, threads: int) -> dict[str, str]:
    arguments = (mode, str(path.resolve()), folder, str(steps), str(threads))
    done = children.run("-m", "trainer.measure", *arguments, profile=name, capture_output=True)
    if done.returncode:
        raise BackendError(f"calibration under {name}, {threads} threads failed:\n{done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    try:
        worker(sys.argv[1:])
    except VtrainError as error:
        sys.exit(f"{type(error).__name__}: {error}")
