"""Hugging Face's ``transformers.Trainer`` with a run around its training loop: what trainer and auditor share.

One optimizer step of ``Trainer`` is one step of the run: it opens before the first micro-batch's forward pass and ends
after ``zero_grad``, so forward, backward, accumulation, clipping, optimizer and scheduler are inside. Callbacks alone
can't do that, as none is called with the micro-batches before the forward pass. Logging, evaluation and saving happen
between steps, natively, and don't touch the state.

The data loader, the collator and the data set draw from generators of their own, seeded by (data seed, epoch), and an
evaluation from others, seeded by (data seed, step). So what a step is trained on does not depend on what happened
between steps, and a resumed epoch, read again from its start and skipped up to the step, gives the same batches.

Classes of others, such as TRL's, keep counters and tensors in attributes of theirs; a checkpoint holds those too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from vtrain.errors import CheckpointError, UsageError
from vtrain.integrations.held import Held
from vtrain.random import StreamKey, words

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

DATA_STREAM = "huggingface-data"
"""The stream that seeds generators: of an epoch's data loader, step = epoch, site = 0; of an evaluation, site = 1."""

_OURS = frozenset({"_batches", "_catch_up", "_step_loss"})
"""What a mixin keeps in a Trainer itself, of the kinds that a checkpoint would hold."""


class Run(Protocol):
    """What ``record`` and ``replay`` give."""

    def step(self, batch: Any = None) -> AbstractContextManager[None]: ...

    def metric(self, **values: torch.Tensor | float | int) -> None: ...


class RunMixin(_Trainer):
    """Puts a run around the training loop of a ``transformers.Trainer`` that stands after it in the bases.

    Raises:
        UsageError: settings under which the loop can't be audited: several devices, compiled or custom kernels.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check_settings(self.args)
        self.callback_handler.callbacks.insert(0, _StepEnd(self))  # before callbacks that evaluate or save
        self._run: Run
        self._run_stack, self._step_stack = ExitStack(), ExitStack()
        self._batches: list[Any] = []
        self._step_loss: torch.Tensor | None = None
        self._catch_up = False

    # ---- what the two roles fill in ---------------------------------------------------------------------------------
    def _enter_run(self, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any], counters: Counters) -> Run:
        """Open the run on ``self._run_stack``; a checkpoint holds ``extra`` and ``counters`` too."""
        raise NotImplementedError

    def _state_to_resume(self) -> str | None:
        """Trainer's own state at the checkpoint to go on from, JSON; None to begin."""
        return None

    # ---- around the loop --------------------------------------------------------------------------------------------
    def _inner_training_loop(self, **kwargs: Any) -> TrainOutput:  # type: ignore[override]  # Trainer names all of them
        state = self._state_to_resume()
        if state is not None and kwargs["resume_from_checkpoint"] is not None:
            raise UsageError("resume_from_checkpoint: the run is resumed from its own checkpoint")
        with TemporaryDirectory(prefix="vtrain-resume-") as folder:
            if state is not None:
                # Trainer reads its counters from here; tensors and scheduler are restored from the run's checkpoint.
                (Path(folder) / "trainer_state.json").write_text(state, encoding="utf-8")
                kwargs["resume_from_checkpoint"], self._catch_up = folder, True
            with ExitStack() as self._run_stack, ExitStack() as self._step_stack:
                return super()._inner_training_loop(**kwargs)
        # Only a difference found by an auditor leads here: the run has taken the exception.
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(self.state.global_step, float("nan"), {})

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        optimizer: Any = self.optimizer
        while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):  # accelerate's wrapper
            optimizer = optimizer.optimizer
        for group in optimizer.param_groups:
            if group.get("fused"):  # Trainer's default on every device; the plain form is the one that is audited
                group["fused"] = False
        extra = {"scheduler": self.lr_scheduler, "trainer": Held(self, _OURS)}
        self._run = self._enter_run(optimizer, extra, Counters(self))
        return prepared

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]  # Trainer names all of them
        self._repeat_between_steps(kwargs["trial"], kwargs["ignore_keys_for_eval"], kwargs["start_time"])
        if self.control.should_training_stop:
            return
        loader, epoch = kwargs["train_dataloader"], kwargs["epoch"]
        parts: list[Any] = [loader, getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        # Trainer skips the batches of a resumed epoch by reading them, as this is an iterable data set.
        stream = _Stream(loader, self._generators(epoch, 0))
        kwargs["train_dataloader"] = DataLoader(stream, batch_size=None, collate_fn=_as_it_is)
        super()._run_epoch(**kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # A metric decides when to stop early: it is as nearly the same everywhere as native arithmetic allows.
        with self._generators(self.state.global_step, 1).active():
            return super()._evaluate(*args, **kwargs)

    def _generators(self, count: int, site: int) -> _Generators:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return _Generators(int(words(StreamKey(seed, DATA_STREAM), count, site, 1)[0]))

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        self._repeat_between_steps(trial, None, start_time)
        self._no_open_step()
        self._run_stack.close()  # before the best model's weights are loaded: the run ends with its last step
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _repeat_between_steps(self, trial: Any, ignore_keys: Any, start_time: float) -> None:
        """After resuming: log, evaluate and save for the checkpoint's step, which was written before those."""
        if not self._catch_up:
            return
        self._catch_up = False
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        model: Any = self.model
        arguments = (self._tr_loss, None, model, trial, self.state.epoch, ignore_keys, start_time)
        self._maybe_log_save_evaluate(*arguments)
        if float(self.state.epoch).is_integer():
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(*arguments)

    # ---- around a step ----------------------------------------------------------------------------------------------
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next optimizer step."""
        self._no_open_step()
        samples = super().get_batch_samples(*args, **kwargs)
        self._batches = samples[0]
        return samples

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one micro-batch; the first one of an optimizer step opens the run's step."""
        if self._batches:
            batches, self._batches = self._batches, []
            self._step_stack.enter_context(self._run.step(batches))
            self._step_loss = None
        loss = super().training_step(*args, **kwargs)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None:
            self._run.metric(grad_norm=norm)
        return norm

    def _end_step(self) -> None:
        if self._step_loss is None:
            return  # repeated for a resumed run, outside a step
        self._run.metric(loss=self._step_loss)
        self._step_loss = None
        self._step_stack.close()

    def _no_open_step(self) -> None:
        if self._step_loss is not None:
            raise UsageError("a callback stopped training between the micro-batches of an optimizer step")


class _StepEnd(TrainerCallback):
    """Closes the run's step once Trainer is done with gradients."""

    def __init__(self, trainer: RunMixin) -> None:
        self._trainer = trainer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._trainer._end_step()


class Counters:
    """Trainer's own state (counters, history, best metric) as a part of a checkpoint."""

    def __init__(self, trainer: RunMixin) -> None:
        self._trainer = trainer

    def text(self) -> str:
        """JSON."""
        state = dataclasses.asdict(self._trainer.state)
        exported: dict[str, Any] = {}
        for part in (*self._trainer.callback_handler.callbacks, self._trainer.control):
            if isinstance(part, ExportableState):
                exported.setdefault(type(part).__name__, []).append(part.state())
        state["stateful_callbacks"] = {name: s if len(s) > 1 else s[0] for name, s in exported.items()}
        return json.dumps(state)

    def check(self, stored: str) -> None:
        """Check that Trainer is where the checkpoint is.

        Raises:
            CheckpointError: it is not.
        """
        step = json.loads(stored)["global_step"]
        if step != self._trainer.state.global_step:
            raise CheckpointError(f"Trainer is at step {self._trainer.state.global_step}, the checkpoint at {step}")


def _check_settings(args: Any) -> None:
    refused = {
        "several processes": args.world_size > 1,
        "several GPUs in one process (set CUDA_VISIBLE_DEVICES)": args.n_gpu > 1,
        "torch_compile": args.torch_compile,
        "use_liger_kernel": args.use_liger_kernel,
        "auto_find_batch_size": args.auto_find_batch_size,
    }
    for what, given in refused.items():
        if given:
            raise UsageError(f"TrainingArguments: {what}: can't be audited")


# ---- data -----------------------------------------------------------------------------------------------------------
class _Stream(IterableDataset):
    """A data loader's batches, drawn with generators of its own.

    Args:
        loader: any data loader.
        own: what its order and whatever a collator draws come from.
    """

    def __init__(self, loader: Iterable[Any], own: _Generators) -> None:
        self._loader, self._own = loader, own

    def __iter__(self) -> Iterator[Any]:
        own = self._own
        with own.active():
            batches = iter(self._loader)
        while True:
            with own.active():
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch


class _Generators:
    """States of the global generators of Python, numpy and torch's CPU, swapped in where they are wanted."""

    def __init__(self, seed: int) -> None:
        with self._restored():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            self._states = _states()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self._restored():
            _set_states(self._states)
            yield
            self._states = _states()

    @staticmethod
    @contextlib.contextmanager
    def _restored() -> Iterator[None]:
        saved = _states()
        try:
            yield
        finally:
            _set_states(saved)


def _states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_states(states: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


_END = object()


def _as_it_is(batch: Any) -> Any:
    return batch
