"""Recording fine-tuning with Hugging Face's ``transformers.Trainer``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transformers import Trainer

from trainer.loop import Recording, record
from vtrain.errors import CheckpointError
from vtrain.integrations.huggingface import Counters, RunMixin
from vtrain.policy import Policy
from vtrain.store.layout import Layout
from vtrain.store.writer import acknowledged_step, last_checkpoint

__all__ = ["RecordingMixin", "RecordingTrainer"]


class _recorded(record):
    """Checkpoints at the end of their steps, as Trainer repeats what it does between steps when it resumes."""

    _waits = False

    def __init__(self, path: Path, *, counters: Counters, **settings: Any) -> None:
        super().__init__(path, **settings)
        self._counters = counters

    def _meta(self) -> dict[str, Any]:
        return {"trainer": self._counters.text()}

    def _put_meta(self, meta: dict[str, Any]) -> None:
        self._counters.check(_trainer_state(self._path, meta))


class RecordingMixin(RunMixin):
    """Records ``train()`` of the Trainer class after it in the bases: ``class R(RecordingMixin, Seq2SeqTrainer)``.

    Args:
        run: run directory; must not exist, unless resuming.
        policy: precision and thresholds; float32 certified by default.
        seed: of all random numbers drawn inside steps, below 2^128; the order of the data is by ``args.data_seed``.
        checkpoint_every: optimizer steps between the run's checkpoints (not those of ``save_strategy``).
        key: the trainer's private key or its file; made once per user where it is not given.
        resume: go on with the run from its last checkpoint, bit for bit as if it had not been interrupted. The epoch is
            read again from its start; log, evaluation and save of the checkpoint's step are done again.

    Other arguments are Trainer's. Make a model of random weights in ``with vtrain.seeded(0):``.

    Raises:
        UsageError: settings under which the loop can't be audited.
    """

    def __init__(
        self,
        *args: Any,
        run: str | os.PathLike[str],
        policy: Policy | None = None,
        seed: int | str = 0,
        checkpoint_every: int = 10,
        key: Ed25519PrivateKey | str | os.PathLike[str] | None = None,
        resume: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._path, self._resume = Path(run), resume
        self._settings: dict[str, Any] = {
            "policy": policy, "seed": seed, "checkpoint_every": checkpoint_every, "key": key, "resume": resume,
        }  # fmt: skip

    def _enter_run(self, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any], counters: Counters) -> Recording:
        model: Any = self.model
        return self._run_stack.enter_context(
            _recorded(self._path, model=model, optimizer=optimizer, extra=extra, counters=counters, **self._settings)
        )

    def _state_to_resume(self) -> str | None:
        layout = Layout(self._path)
        step = acknowledged_step(layout) if self._resume else -1
        if step < 1:
            return None
        return _trainer_state(self._path, last_checkpoint(layout, step)[1])


def _trainer_state(path: Path, meta: dict[str, Any]) -> str:
    if not isinstance(meta.get("trainer"), str):
        raise CheckpointError(f"{path}: its last checkpoint is not one of transformers.Trainer")
    return meta["trainer"]


class RecordingTrainer(RecordingMixin, Trainer):
    """``transformers.Trainer`` that records; arguments are those of ``RecordingMixin`` and of ``Trainer``."""
