"""A job made runnable: its program, data, optimizer and schedule, and the one step that trainer and auditor run."""

from __future__ import annotations

import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import torch

from vtrain.data import batch_indices, dataset_digest, load
from vtrain.engine.active import active_engine
from vtrain.engine.jobs.device import chosen_device, to_device
from vtrain.engine.jobs.program import Code, Program, build, load_code, program_errors
from vtrain.engine.jobs.samples import collated, is_map, moved, own_digest
from vtrain.engine.loops.loop import Loop
from vtrain.engine.optable import table_digest
from vtrain.engine.seeded import seeded
from vtrain.errors import JobError, ProgramError, UnsupportedError, VersionError
from vtrain.job import Job, OptimizerSpec, ScheduleSpec
from vtrain.kernels import scalars

Batch = Any
OWN = "program"  # the data set that the program brings


def schedule_factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    """Factor on the learning rate in ``step`` of ``steps``, counted from 1."""
    if step <= spec.warmup:
        return step / spec.warmup
    if spec.name == "constant":
        return 1.0
    share = (step - 1 - spec.warmup) / max(1, steps - spec.warmup)
    if spec.name == "linear":
        return 1.0 + (spec.final - 1.0) * share
    return spec.final + (1.0 - spec.final) * 0.5 * (1.0 + math.cos(math.pi * share))


def make_optimizer(spec: OptimizerSpec, model: torch.nn.Module) -> torch.optim.Optimizer:
    """torch.optim's optimizer as the job wants it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if spec.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.nesterov,
            foreach=spec.foreach,
        )  # fmt: skip
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    betas = (spec.betas[0], spec.betas[1])
    return kind(parameters, lr=spec.lr, betas=betas, eps=spec.eps, weight_decay=spec.weight_decay, foreach=spec.foreach)


class Task:
    """What a job does.

    Args:
        job: the job; digests that it names are compared.
        directory: what a program's path is relative to.
        code: the program, where it was imported already.

    Attributes:
        code: the program, imported.
        program: model, loss and data; once built.

    Raises:
        ProgramError: the program is missing or not the one that the job was made for.
        JobError: the data set is unknown or not the one that the job was made for.
        UsageError, UnsupportedError: the device that was chosen is none, or is not here.
    """

    program: Program

    @scalars.held()
    def __init__(self, job: Job, directory: Path, code: Code | None = None) -> None:
        chosen_device()  # said before anything is written
        self.job = job
        self.code = code or load_code(job.program, directory, discover=not job.program.sha256)
        self._data = None if job.data.name == OWN else load(job.data.name, **job.data.config)
        self._unread = True

    def anew(self) -> Task:
        """The same task, its program loaded once more: nothing is left of what it did. The data set is shared."""
        fresh = copy.copy(self)
        fresh.code = self.code.anew()
        return fresh

    @property
    def data(self) -> Any:
        """The data set: a map from index to sample."""
        return self.program.data if self._data is None else self._data

    def model(self) -> torch.nn.Module:
        """Build the program; its model. In step 0, or before a state is restored."""
        # Data of the program's own may be drawn: then the draws are step 0's, whoever builds it.
        own = self._data is None and active_engine() is None
        with seeded(self.job.train.seed, self.job.policy) if own else contextlib.nullcontext():
            self.program = build(self.job.program, self.code.entry)
        self.code.check()
        self._check_size()
        to_device(self.program.model)
        return self.program.model

    def _check_size(self) -> None:
        what = f"program {self.job.program.entry!r}: the job's data set is its own, and"
        if self._data is None and self.program.data is None:
            raise ProgramError(f"{what} it gives none; want vtrain.Program(model, loss, data)")
        if not is_map(self.data):
            raise ProgramError(
                f"{what} its data is a {type(self.data).__name__}; want a list or another map from 0..len-1 to "
                "samples, with __len__ and __getitem__"
            )
        with program_errors(self.job.program):
            size = len(self.data)
        if size < self.job.train.batch_size:
            raise JobError(f"train.batch_size: {self.job.train.batch_size} samples a step, and the data set has {size}")

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The job's optimizer for the model.

        Raises:
            ProgramError: the model has nothing to train.
        """
        if not any(p.requires_grad for p in model.parameters()):
            raise ProgramError(f"program {self.job.program.entry!r}: its model has no parameters to train")
        return make_optimizer(self.job.optimizer, model)

    def batch(self, step: int) -> tuple[Batch, list[int]]:
        """The batch of a step, and the numbers of its samples; a list of micro-batches where the job accumulates.

        Raises:
            BatchError: its samples can't be put together.
            ProgramError: the program's own data set or ``collate`` failed.
            UnsupportedError: the program's own data set is not the one that the job names by digest.
        """
        self.check_own()
        train = self.job.train
        with program_errors(self.job.program):
            indices = batch_indices(train.seed, step, train.batch_size, len(self.data)).tolist()
            samples = [self.data[i] for i in indices]
            size = train.batch_size // train.accumulate
            cuts = [slice(i, i + size) for i in range(0, train.batch_size, size)]
            parts = [collated(samples[cut], indices[cut], self.program.collate) for cut in cuts]
        return (parts if train.accumulate > 1 else parts[0]), indices

    def own_digest(self) -> str:
        """Digest of the built program's own data set; see ``vtrain.engine.jobs.samples.own_digest``."""
        with program_errors(self.job.program):
            return own_digest(self.data, self.program.collate, whatever_size=bool(self.job.data.digest))

    def check_own(self) -> None:
        """Compare the built program's own data with the job's digest, before the first batch is taken from it.

        Raises:
            UnsupportedError: it is another.
        """
        wanted = self.job.data.digest
        if self._data is None and self._unread and wanted and (found := self.own_digest()) != wanted:
            raise UnsupportedError(
                f"the program's data set is {found or 'without a digest'} here, and {wanted} in the job: its samples "
                "must be the same at every look (draw augmentation in the loss) and on every processor (torch's own "
                "float draws, linspace, exp and interpolation are not: use vtrain.seeded, integers or files), and the "
                "files that they come from too"
            )
        self._unread = False

    @scalars.held()
    def run_step(self, loop: Loop, step: int) -> None:
        """One optimizer step: the same call for every role."""
        train, model, optimizer = self.job.train, loop.model, loop.optimizer
        assert optimizer is not None
        device = next(model.parameters()).device
        batch, indices = self.batch(step)
        rate = self.job.optimizer.lr * schedule_factor(self.job.schedule, step, train.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with loop.step(batch, indices=indices):
            loop.metric(loss=self._optimize(model, optimizer, batch, device))
            self.code.check()

    def plain_step(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The same step outside of any run, as PyTorch does it: what recording is compared with."""
        self._optimize(model, optimizer, self.batch(step)[0], next(model.parameters()).device)

    def _optimize(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, device: torch.device
    ) -> torch.Tensor:
        """Gradients of a batch, and a step of the optimizer; the loss."""
        train, total = self.job.train, None
        for part in _split(batch, train.accumulate):
            with self._autocast(device), program_errors(self.job.program):
                loss = self.program.loss(model, moved(part, device))
            self._check_loss(loss)
            if train.accumulate > 1:
                loss = loss / train.accumulate
            with program_errors(self.job.program):
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        if train.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
        with program_errors(self.job.program):  # it may refuse what the program's gradients are, such as sparse
            optimizer.step()
        optimizer.zero_grad()
        assert total is not None
        return total

    def _check_loss(self, loss: Any) -> None:
        what = f"program {self.job.program.entry!r}: its loss"
        if not isinstance(loss, torch.Tensor):
            raise ProgramError(f"{what} is a {type(loss).__name__}; want a tensor")
        if loss.numel() != 1:
            raise ProgramError(f"{what} has shape {list(loss.shape)}; want a scalar")
        if not loss.requires_grad:
            raise ProgramError(f"{what} requires no gradient; want one that depends on the model's parameters")

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if not self.job.train.autocast:
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


def _split(batch: Batch, parts: int) -> list[Batch]:
    return list(batch) if parts > 1 else [batch]


@scalars.held()
def complete(job: Job, directory: Path) -> Job:
    """The job with the digests that it leaves open filled in: what is trained, and what its identity covers.

    Raises:
        ProgramError: no such program, or not the one that the job names by digest.
        JobError: the data set is not the one that the job names by digest.
    """
    code = load_code(job.program, directory, discover=True)
    data = job.data.model_copy(update={"digest": _data_digest(job, directory, code)})
    if job.data.digest and job.data.digest != data.digest:
        raise JobError(f"data.digest: the data set is {data.digest}; the job was made for {job.data.digest}")
    optable = table_digest()
    if job.optable and job.optable != optable:
        raise VersionError(f"optable: this release has {optable}; the job was made for {job.optable}")
    return job.model_copy(update={"program": code.spec, "data": data, "optable": optable})


def _data_digest(job: Job, directory: Path, code: Code) -> str:
    """The digest of a job's data set; empty for one of the program's own that is too large to be read before."""
    if job.data.name != OWN:
        return dataset_digest(load(job.data.name, **job.data.config))
    if job.data.config:
        raise JobError("data.config: is for built-in data sets; what the program's own takes is program.config")
    task = Task(job, directory, code)
    task.model()
    return task.own_digest()


@scalars.held()
def check_data(task: Task) -> None:
    """Compare the whole data set with the job's digest: an auditor's own copy may be another.

    A program's own data set is there once it is built, which is done here, outside the steps that are compared.

    Raises:
        UnsupportedError: it is; nothing can be said about the training here.
    """
    wanted = task.job.data.digest
    if wanted and task.job.data.name == OWN:
        looked = task.anew()  # what the program keeps of being built is not to be there when the replay begins
        looked.model()
        looked.check_own()
        task._unread = False
    elif wanted:
        found = dataset_digest(task.data)
        if found != wanted:
            raise UnsupportedError(
                f"data set {task.job.data.name!r} is {found} on this machine; the job wants {wanted}"
            )
