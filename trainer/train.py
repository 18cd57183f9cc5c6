"""Training a job: begin, go on, finish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trainer.rehearsal import Rehearsals
from trainer.stepwriter import StepWriter
from vtrain.engine.jobs.task import Task, complete
from vtrain.engine.loops.loop import Loop, StepEnd
from vtrain.errors import UsageError
from vtrain.job import MAX_BYTES, Job, job_digest, parse_canonical
from vtrain.kernels import scalars
from vtrain.kernels.failures import told
from vtrain.store import canonical
from vtrain.store.layout import Layout, require_run, safe_open
from vtrain.store.writer import RunWriter, create

OnStep = Callable[[StepEnd], None]
Publish = Callable[[], None]


def _nowhere() -> None:
    """The run's directory is all there is."""


@scalars.held()
@told()
def train(
    job: Job, directory: Path, out: Path, key: Ed25519PrivateKey, on_step: OnStep, publish: Publish = _nowhere,
    rehearse: bool = False, say: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Train a job into a new run.

    Args:
        job: as written; open digests are filled in.
        directory: what the program's path is relative to.
        out: the run directory; must not exist.
        key: signs the heads.
        on_step: hears of every step.
        publish: called when a checkpoint, or in the end the statement, is durable.
        rehearse: try each checkpoint (``Rehearsals``), and not only the first.
        say: hears in the end what would have been cheaper.

    Raises:
        StateError: training depends on what a checkpoint does not hold; what was written before stays.
        VtrainError: see ``Task``, ``create`` and ``Loop``; nothing is left behind unless the initialisation was done.
    """
    data = complete(job, directory).canonical()
    task = Task(_reread(data), directory)
    writer = create(out, data, job_digest(data), key)
    writer.on_acknowledged = publish
    try:
        _run(task, writer, on_step, rehearse, say)
    except Exception:
        writer.remove_if_empty()
        raise


@scalars.held()
@told()
def resume(
    out: Path, directory: Path, key: Ed25519PrivateKey, on_step: OnStep, publish: Publish = _nowhere,
    on_plan: Callable[[int], None] = lambda steps: None,
) -> None:  # fmt: skip
    """Go on with a run from its last complete checkpoint; the result is bit for bit that of an uninterrupted one.

    Args:
        out, directory, key, on_step, publish: as :func:`train`.
        on_plan: hears how many steps the job has.

    Raises:
        UsageError: there is no run, or it is somebody's own loop.
    """
    require_run(out)
    layout = Layout(out)
    if not layout.job.is_file():
        raise UsageError(f"{out}: no run to resume")
    with safe_open(out, "job.json", max_bytes=MAX_BYTES) as handle:
        data = handle.read()
    job = _reread(data)
    if layout.attestation.exists():
        return  # finished
    on_plan(job.train.steps)
    task = Task(job, directory)
    writer = RunWriter(layout, data, job_digest(data), key)
    writer.on_acknowledged = publish
    _run(task, writer, on_step)


def _reread(data: bytes) -> Job:
    """The job as whoever reads the run will see it: JSON has one kind of number."""
    job = parse_canonical(data, canonical.loads(data, where="job.json", floats=True), "job.json")
    if not isinstance(job, Job):
        raise UsageError("the run was recorded around a loop; resume it there, with record(..., resume=True)")
    return job


def _run(
    task: Task, writer: RunWriter, on_step: OnStep, rehearse: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    job = task.job
    try:
        writer.identify(None)
        steps = StepWriter(job.policy, writer, job.train.checkpoint_every)
        loop = Loop(steps, job.policy, job.train.seed)
        steps.on_step = on_step
        begun = writer.checkpoint_step
        loop.initialise(task.model, task.optimizer, count=begun < 0)
        if begun >= 0:
            steps.go_on(loop)
        rehearsals = Rehearsals(task, writer.layout, loop, steps, rehearse)
        for step in range(loop.steps_done + 1, job.train.steps + 1):
            task.run_step(loop, step)
            rehearsals.after(step)
        steps.finish()
        if steps.size.note:
            say(steps.size.note)
    finally:
        writer.close()
