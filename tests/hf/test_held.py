"""What classes of others keep in a Trainer between steps, as TRL's ``GRPOTrainer`` does, is in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_hf_trainer import Interrupt, leaves, make, one_thread
from transformers import Trainer

from auditor.hf import ReplayingMixin, ReplayingTrainer
from trainer.hf import RecordingMixin, RecordingTrainer
from vtrain.errors import StateError
from vtrain.integrations import held
from vtrain.integrations.held import Held

QUIET = {
    "eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no", "load_best_model_at_end": False,
    "gradient_accumulation_steps": 1, "max_steps": 4,
}  # fmt: skip
assert one_thread


class Reusing(Trainer):
    """Draws weights of samples in every third step, and uses them in it and in the two that follow."""

    every = 3

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._passes, self._drawn = 0, None

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._passes % self.every == 0:
            self._drawn = [{"weights": torch.rand(2)}]  # type: ignore[assignment]
        self._passes += 1
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * self._drawn[0]["weights"].sum()  # type: ignore[index]


class Recording(RecordingMixin, Reusing):
    pass


class Replaying(ReplayingMixin, Reusing):
    pass


def train(path: Path, kind: type, **changes: Any) -> Any:
    base = RecordingTrainer if issubclass(kind, RecordingMixin) else ReplayingTrainer

    class Made(kind):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**({**kwargs, "checkpoint_every": 1} if base is RecordingTrainer else kwargs))

    trainer = make(Made, path, roles=base, **QUIET, **changes)
    trainer.train()
    return trainer


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_resumed_between_two_uses_is_verified(tmp_path: Path, step: int) -> None:
    train(tmp_path / "whole", Recording)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Recording, callbacks=[Interrupt(step, "on_step_begin")])
    train(tmp_path / "run", Recording, resume=True)
    assert leaves(tmp_path / "run") == leaves(tmp_path / "whole")
    verdict = train(tmp_path / "run", Replaying).verdict
    assert verdict.verified, verdict.detail


def test_what_can_not_be_kept_is_said_and_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held.nest, "keepable", lambda value: False)
    monkeypatch.setattr(Reusing, "every", 2)
    with pytest.warns(UserWarning, match="step 4 depends on a tensor"):
        train(tmp_path / "run", Recording)
    with pytest.raises(StateError, match="can't be resumed"):
        train(tmp_path / "run", Recording, resume=True)


def test_what_is_held(tmp_path: Path) -> None:
    trainer = make(RecordingTrainer, tmp_path / "run", **QUIET)
    trainer.constant, trainer.rounds, trainer.rate, trainer.text = torch.ones(2), 1, 0.5, "a"
    kept = Held(trainer, frozenset({"ours"}))
    assert kept.state_dict() == {}
    trainer.rounds, trainer.rate, trainer.text, trainer.ours, trainer.is_in_train = 2, 0.25, "b", 1, True
    trainer.constant = trainer.constant.clone()
    state = kept.state_dict()
    assert set(state) == {"constant", "rounds"} and state["rounds"] == 2
    kept.load_state_dict({"rounds": 7})
    assert trainer.rounds == 7
