"""Replaying fine-tuning with Hugging Face's ``transformers.Trainer``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from transformers import Trainer

from auditor.audit.loop import Replaying, replay
from auditor.verdict import Verdict
from vtrain.integrations.huggingface import Counters, RunMixin

__all__ = ["ReplayingMixin", "ReplayingTrainer"]


class _replay(replay):
    _skips = False  # a Trainer's loop does not


class ReplayingMixin(RunMixin):
    """Replays a run in ``train()`` of the Trainer class after it in the bases, which is given what the trainer's was.

    The first difference ends ``train()``, without an exception, and ``verdict`` says what it is.

    Args:
        run: run directory; never modified.
        trainer_key: the trainer's public key or its file; without it the verdict says that the key was not known.
        initial: ``"own"``: the model's initial weights must be the run's, bit for bit. ``"run"``: take the run's.

    Attributes:
        verdict: what was found; None before ``train()``.

    Raises:
        UsageError: settings under which the loop can't be audited.
    """

    def __init__(
        self,
        *args: Any,
        run: str | os.PathLike[str],
        trainer_key: Ed25519PublicKey | str | os.PathLike[str] | None = None,
        initial: str = "own",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._path = run
        self._settings: dict[str, Any] = {"trainer_key": trainer_key, "initial": initial}
        self.verdict: Verdict | None = None

    def _enter_run(self, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any], counters: Counters) -> Replaying:
        model: Any = self.model
        run = self._run_stack.enter_context(_replay(self._path, model=model, optimizer=optimizer, **self._settings))
        self.verdict = run.verdict
        return run


class ReplayingTrainer(ReplayingMixin, Trainer):
    """``transformers.Trainer`` that replays; arguments are those of ``ReplayingMixin`` and of ``Trainer``."""
