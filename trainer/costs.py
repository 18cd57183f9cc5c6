"""What each policy costs for a job on this machine: seconds and bytes of log a step, against plain PyTorch."""

from __future__ import annotations

import statistics
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.listener import Recorder
from trainer.logsize import log_bytes
from vtrain.engine import carriers, state
from vtrain.engine.jobs.task import Task, complete
from vtrain.engine.loops.loop import Loop, StepEnd
from vtrain.engine.seeded import seeded
from vtrain.errors import JobError, VtrainError
from vtrain.job import Job, parse
from vtrain.kernels import launch, scalars
from vtrain.store.atomic import write_bytes

# What is compared: how products are done, and of logged ones how wide doubt is.
CANDIDATES: tuple[dict[str, str], ...] = (
    {"matmul": "logged"}, {"matmul": "logged", "threshold": "adaptive"}, {"matmul": "chain"}, {"matmul": "chain64"},
    {"matmul": "integer"},
)  # fmt: skip
_NEAR = 1.05  # times that differ by less are one, and the smaller log decides


@dataclass(frozen=True)
class Cost:
    """What a policy costs.

    Attributes:
        policy: the keys of the policy that were set; empty for plain PyTorch.
        seconds: a step, median.
        bytes: of log a step before compression, once thresholds are calibrated.
        operations: dispatched in a step.
        launches: of our kernels in a step, by device.
        why: why it can't be used; empty where it can.
    """

    policy: dict[str, str]
    seconds: float = 0.0
    bytes: float = 0.0
    operations: int = 0
    launches: Mapping[str, int] = field(default_factory=dict)
    why: str = ""

    @property
    def name(self) -> str:
        """As in a job file."""
        return ", ".join(f'{key} = "{value}"' for key, value in self.policy.items()) or "plain PyTorch"


class _Meter(Recorder):
    """Records, and keeps how much."""

    sizes: list[int]

    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        self.take()

    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        if self.calibration is not None and done.step >= self._steps:
            self.calibrated(self.calibration.seen())
        self.sizes.append(log_bytes(self.take()))

    def watch(self, calibration_steps: int) -> None:
        self.sizes, self._steps = [], calibration_steps


def measure_costs(job: Job, directory: Path, steps: int, say: Callable[[str], None]) -> list[Cost]:
    """Costs of plain training, then of each candidate that keeps the job's other keys.

    Args:
        job: as written.
        directory: what the program's path is relative to.
        steps: measured ones; as many as thresholds need are done before, and one after, for what is counted.
        say: hears what is being measured.

    Raises:
        VtrainError: the job can't be trained under any policy.
    """
    say("plain PyTorch")
    found = [_plain(job, directory, steps)]
    for keys in CANDIDATES:
        cost = Cost(keys)
        say(cost.name)
        try:
            found.append(_recorded(job, directory, steps, keys))
        except VtrainError as error:
            found.append(Cost(keys, why=str(error).splitlines()[0]))
    if all(cost.why for cost in found[1:]):
        raise JobError(f"no policy trains this job: {found[1].why}")
    return found


@scalars.held()
def _recorded(job: Job, directory: Path, steps: int, keys: dict[str, str]) -> Cost:
    policy = type(job.policy)(**{**job.policy.model_dump(), **keys})
    job = complete(job.model_copy(update={"policy": policy}), directory)
    task, meter = Task(job, directory), _Meter(policy)
    meter.watch(policy.calibration_steps)
    loop = Loop(meter, policy, job.train.seed)
    loop.initialise(task.model, task.optimizer)
    warm, seconds = policy.calibration_steps, []
    for step in range(1, warm + steps + 1):
        begun = time.perf_counter()
        task.run_step(loop, step)
        seconds.append(time.perf_counter() - begun)
    size, before = statistics.mean(meter.sizes[warm + 1 :]), loop.session.operations
    with launch.counted() as launches:
        task.run_step(loop, warm + steps + 1)
    operations = loop.session.operations - before
    return Cost(keys, statistics.median(seconds[warm:]), size, operations, dict(launches))


def _plain(job: Job, directory: Path, steps: int) -> Cost:
    """The job's steps as PyTorch does them, without the engine; its initial weights and batches are the job's."""
    task = Task(job.model_copy(update={"data": job.data.model_copy(update={"digest": ""})}), directory)
    with seeded(job.train.seed):
        model = task.model()
    optimizer, seconds = task.optimizer(model), []
    for step in range(1, steps + 2):
        begun = time.perf_counter()
        task.plain_step(model, optimizer, step)
        seconds.append(time.perf_counter() - begun)
    return Cost({}, statistics.median(seconds[1:]))


def choice(costs: list[Cost]) -> Cost:
    """The quickest policy; of those that are as quick, the one with the smallest log."""
    usable = [cost for cost in costs if cost.policy and not cost.why]
    quickest = min(cost.seconds for cost in usable)
    return min((c for c in usable if c.seconds <= _NEAR * quickest), key=lambda c: (c.bytes, c.seconds))


def write_choice(path: Path, policy: dict[str, str]) -> None:
    """Write a policy's keys into a job file, and change nothing else of it.

    Args:
        path: the job file.
        policy: keys and values of ``[policy]``.

    Raises:
        JobError: its policy is not written as a table of its own with a key a line.
    """
    text = path.read_text(encoding="utf-8")
    changed = _with_keys(text, policy)
    wanted: dict[str, Any] = tomllib.loads(text)
    wanted["policy"] = {**wanted.get("policy", {}), **policy}
    try:
        right = tomllib.loads(changed) == wanted
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        lines = "; ".join(f'{key} = "{value}"' for key, value in policy.items())
        raise JobError(f"{path}: its policy is not a [policy] table with a key a line; write there yourself: {lines}")
    parse(tomllib.loads(changed), str(path))
    write_bytes(path, changed.encode())


def _with_keys(text: str, policy: dict[str, str]) -> str:
    """The text of a job file with lines in its ``[policy]`` table replaced or added; a guess, to be checked."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.split("#")[0].strip() == "[policy]"), None)
    if header is None:
        return text.rstrip("\n") + "\n[policy]\n" + "".join(f'{k} = "{v}"\n' for k, v in policy.items())
    end = next((i for i in range(header + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    table = [line for line in lines[header + 1 : end] if line.split("=")[0].strip() not in policy]
    made = [f'{key} = "{value}"' for key, value in policy.items()]
    return "\n".join([*lines[: header + 1], *made, *table, *lines[end:]]) + "\n"


def table(costs: list[Cost]) -> list[list[str]]:
    """Rows for people: policy, seconds a step, times plain, log a step, operations, kernels launched."""
    plain, rows = costs[0].seconds, []
    for cost in costs:
        if cost.why:
            rows.append([cost.name, "-", "-", cost.why[:60], "-", "-"])
            continue
        size = f"{cost.bytes / 1000:,.1f} kB" if cost.policy else "-"
        rows.append([cost.name, f"{cost.seconds:.3f}", f"{cost.seconds / plain:.2f}", size, *_counts(cost)])
    return rows


def _counts(cost: Cost) -> tuple[str, str]:
    launches = ", ".join(f"{where} {n:,}" for where, n in sorted(cost.launches.items()))
    return f"{cost.operations:,}" if cost.operations else "-", launches or "-"


def integer_note(costs: list[Cost]) -> str:
    """How integer products are done here, where they were measured; else empty."""
    measured = any(cost.policy.get("matmul") == "integer" and not cost.why for cost in costs)
    return f'matmul = "integer" multiplies {carriers.note(torch.device("cpu"))}' if measured else ""


def threads() -> str:
    """Where the figures hold."""
    return f"{torch.get_num_threads()} threads of this machine"
