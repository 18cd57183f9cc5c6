"""Kinds of runs: what evidence, verdict and report must know of what was run, and nothing else of them does.

A run is a sequence of steps with a signed transcript, logs and checkpoints, whatever the steps do. What a job of a kind
promises, which file comes out of it and what people call it is said here, once. Another kind (an evaluation, a
generation) is another ``register(RunKind(...))``. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vtrain.commit.statement import RUN_PREDICATE
from vtrain.job import Job, LoopJob


@dataclass(frozen=True)
class RunKind:
    """A kind of runs.

    Attributes:
        name: for people, such as ``training``.
        jobs: the classes of its jobs, as ``vtrain.job.parse_canonical`` makes them.
        predicate: the type of its attestation.
        promised: number of the last step that a job promises; None where the job leaves it open.
        product: the file of the last checkpoint that its attestation is about.
        product_name: what people call that file.
        equal: what a verified verdict says.
        first_metric: the metric that a report draws first; those whose names have it come next.
        doubts: what to tell people about a difference in something that honest machines can differ in too.
    """

    name: str
    jobs: tuple[type, ...]
    predicate: str
    promised: Callable[[Any], int | None]
    product: str
    product_name: str
    equal: str
    first_metric: str = ""
    doubts: Mapping[str, str] = field(default_factory=dict)


_kinds: dict[type, RunKind] = {}


def register(kind: RunKind) -> RunKind:
    """Make a kind known, for all of its jobs; the kind itself."""
    _kinds.update(dict.fromkeys(kind.jobs, kind))
    return kind


def kind_of(job: Any) -> RunKind:
    """The kind of the runs of a job."""
    return _kinds[type(job)]


TRAINING = register(
    RunKind(
        name="training",
        jobs=(Job, LoopJob),
        predicate=RUN_PREDICATE,
        promised=lambda job: job.train.steps if isinstance(job, Job) else None,
        product="model",
        product_name="model file",
        equal="the replayed steps are the trainer's, bit for bit",
        first_metric="loss",
        doubts={
            "data": "honest machines can differ in a batch that is computed outside the steps: torch's own draws of "
            "floats, linspace, exp and interpolation give other last bits on another processor; make it with integers "
            "(randint, randperm, indices into data from a file), `with vtrain.seeded(seed):`, or inside the step",
            "steps": "a loop that stops by the clock, or by hand, ends elsewhere for whoever repeats it; let it "
            "stop at a step's number, which both know",
            "scalars": "honest machines can differ in a number that is computed outside the steps by torch, such as a "
            "rate that follows the loss of held-out data: torch's sums and products give other last bits on another "
            "processor; compute it inside a step or `with run.evaluation(batch):`",
        },
    )
)
