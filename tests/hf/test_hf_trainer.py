"""``transformers.Trainer`` under a run: accumulation, clipping, schedule, evaluation and saving between, resuming.

``python test_hf_trainer.py RUN`` replays a run in that process's arithmetic and prints the verdict as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments, default_data_collator

import vtrain
from auditor.hf import ReplayingTrainer
from trainer.hf import RecordingTrainer
from vtrain.commit.digest import file_digest
from vtrain.data import load
from vtrain.errors import IncompleteRunError, StateError, UnsupportedOperation, UsageError
from vtrain.profiles import profile_environment
from vtrain.store import transcript
from vtrain.store.layout import Layout, step_name

transformers.logging.set_verbosity_error()
SAMPLES, BLOCK, VOCAB = 22, 10, 64
STEPS_AN_EPOCH, STEPS = 6, 12  # 11 micro-batches of 2 an epoch: the sixth step has one only


class Samples:
    """Random tokens; remembers which were asked for, and can have one changed."""

    def __init__(self, changed: int = -1) -> None:
        self._data = load("random-tokens", n=SAMPLES, block=BLOCK, vocab=VOCAB)
        self._changed = changed
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(index)
        sample = self._data[index]
        if index == self._changed:
            sample["input_ids"][3] ^= 1
        return sample


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Masks labels at random, from all three global generators, as collators do."""
    batch = default_data_collator(samples)
    first = np.random.randint(BLOCK) < 2
    mask = (torch.rand(batch["labels"].shape) < 0.2).index_fill(1, torch.tensor([0]), bool(first))
    return {**batch, "labels": batch["labels"].masked_fill(mask, -100)}


def make(kind: type, path: Path, **changes: Any) -> Any:
    """A recording or replaying trainer; ``changes`` to the arguments, samples or callbacks."""
    with vtrain.seeded(3):
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=VOCAB, n_positions=BLOCK,
                                           bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))  # fmt: skip
    own: dict[str, Any] = {"samples": Samples(), "callbacks": None, "resume": False, "roles": kind}
    own |= {key: changes.pop(key) for key in own.keys() & changes.keys()}
    arguments: dict[str, Any] = {
        "output_dir": str(path) + "-output", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_train_epochs": 2, "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "warmup_steps": 3,
        "max_grad_norm": 0.5, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2,
        "load_best_model_at_end": True, "greater_is_better": True, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip
    roles: dict[type, dict[str, Any]] = {
        RecordingTrainer: {"checkpoint_every": 5, "seed": 11, "resume": own["resume"]}, ReplayingTrainer: {},
    }  # fmt: skip
    trainer = kind(
        run=path, model=model, args=TrainingArguments(**{**arguments, **changes}), train_dataset=own["samples"],
        eval_dataset=torch.utils.data.Subset(Samples(), range(4)), data_collator=collate, callbacks=own["callbacks"],
        **roles[own["roles"]],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def leaves(path: Path) -> list[dict[str, Any]]:
    return [value for _, value in transcript.read(Layout(path).transcript).lines if value["type"] == "leaf"]


def evaluations(trainer: Any) -> dict[int, float]:
    return {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}


def weights(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in model.named_parameters()}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are fastest with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("hf") / "run"
    trainer = make(RecordingTrainer, path)
    trainer.train()
    return path, trainer


def test_one_run_step_is_one_optimizer_step(recorded: tuple[Path, Any]) -> None:
    path, trainer = recorded
    found = leaves(path)
    assert trainer.state.global_step == len(found) - 1 == STEPS
    for leaf in found[1:]:
        micro = 1 if leaf["step"] % STEPS_AN_EPOCH == 0 else 2
        assert sorted(leaf["batch"]) == sorted(f"{i}.{k}" for i in range(micro) for k in ("input_ids", "labels"))
        assert set(leaf["metrics"]) == {"loss", "grad_norm"}
    assert len({json.dumps(leaf["batch"], sort_keys=True) for leaf in found}) == STEPS + 1
    assert sorted(evaluations(trainer)) == [2, 4, 6, 8, 10, 12]
    assert Path(trainer.args.output_dir, "checkpoint-8", "model.safetensors").exists()


def test_the_run_ends_with_the_last_step_not_with_the_best_model(recorded: tuple[Path, Any]) -> None:
    path, trainer = recorded
    assert trainer.state.best_global_step < STEPS  # the worst loss, by greater_is_better
    stored = load_file(path / "checkpoints" / step_name(STEPS) / "model.safetensors")
    last = load_file(Path(trainer.state.best_model_checkpoint).with_name(f"checkpoint-{STEPS}") / "model.safetensors")
    assert weights(trainer.model) != {name: t.numpy().tobytes() for name, t in stored.items()}
    assert {n: t.numpy().tobytes() for n, t in last.items()}.items() <= {
        n: t.numpy().tobytes() for n, t in stored.items()
    }.items()


def test_a_replay_in_another_arithmetic_verifies(recorded: tuple[Path, Any]) -> None:
    path, _ = recorded
    done = subprocess.run([sys.executable, __file__, str(path)], env=profile_environment("baseline"),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert verdict["result"] == "verified", verdict["detail"]
    assert verdict["replayed"] == [[0, STEPS]] and verdict["violations"] == 0
    assert verdict["subject"]["sha256"] == file_digest(path / "checkpoints" / step_name(STEPS) / "model.safetensors")


def test_what_happens_between_steps_leaves_no_trace(recorded: tuple[Path, Any], tmp_path: Path) -> None:
    quiet = {"eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no", "load_best_model_at_end": False}
    make(RecordingTrainer, tmp_path / "run", **quiet).train()
    assert leaves(tmp_path / "run") == leaves(recorded[0])


class Interrupt(TrainerCallback):
    """Ctrl-C at a point in a step."""

    def __init__(self, step: int, event: str) -> None:
        def strike(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                raise KeyboardInterrupt

        setattr(self, event, strike)


@pytest.mark.parametrize(
    ("step", "event"),
    [(2, "on_substep_end"), (7, "on_pre_optimizer_step"), (11, "on_step_begin")],
)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    recorded: tuple[Path, Any], tmp_path: Path, step: int, event: str
) -> None:
    path, whole = recorded
    with pytest.raises(KeyboardInterrupt):
        make(RecordingTrainer, tmp_path / "run", callbacks=[Interrupt(step, event)]).train()
    assert len(leaves(tmp_path / "run")) - 1 < step
    trainer = make(RecordingTrainer, tmp_path / "run", resume=True)
    trainer.train()
    assert leaves(tmp_path / "run") == leaves(path)
    name = Path("checkpoints", step_name(STEPS), "model.safetensors")
    assert (tmp_path / "run" / name).read_bytes() == (path / name).read_bytes()
    # What Trainer keeps for itself: history of evaluations, and so the model that it loads in the end.
    assert evaluations(trainer) == evaluations(whole)
    assert weights(trainer.model) == weights(whole.model)


def test_resuming_a_finished_run_changes_nothing(recorded: tuple[Path, Any], tmp_path: Path) -> None:
    path = tmp_path / "run"
    make(RecordingTrainer, path, max_steps=4).train()  # in the middle of an epoch
    before = Layout(path).transcript.read_bytes(), Layout(path).attestation.read_bytes()
    make(RecordingTrainer, path, max_steps=4, resume=True).train()
    assert (Layout(path).transcript.read_bytes(), Layout(path).attestation.read_bytes()) == before


@pytest.mark.parametrize("step", [3, 6])
def test_one_different_sample_is_refuted_at_its_step(recorded: tuple[Path, Any], step: int) -> None:
    path, trainer = recorded
    order = trainer.train_dataset.asked[:SAMPLES]
    assert sorted(order) == list(range(SAMPLES)), "the first epoch asks for each sample once"
    replaying = make(ReplayingTrainer, path, samples=Samples(changed=order[4 * (step - 1) + 1]))
    assert replaying.verdict is None
    replaying.train()
    verdict = replaying.verdict
    assert (verdict.result, verdict.first_bad_step, verdict.what) == ("refuted", step, "data")
    assert "0.input_ids" in verdict.detail
    assert replaying.state.global_step == step - 1 and verdict.replayed == [(0, step - 1)]


@pytest.mark.parametrize(
    ("change", "step", "what"),
    [
        ({"max_grad_norm": 0.25}, 1, "scalars"),
        ({"learning_rate": 2e-2}, 2, "scalars"),  # the warm-up's first learning rate is 0
        ({"lr_scheduler_type": "linear"}, 5, "scalars"),  # differs from the cosine after the warm-up's peak
        ({"weight_decay": 0.1}, 1, "scalars"),
        ({"data_seed": 5}, 1, "data"),
        ({"gradient_accumulation_steps": 1}, 1, "data"),
        ({"label_smoothing_factor": 0.1}, 1, "sites"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_settings_are_refuted(recorded: tuple[Path, Any], change: dict[str, Any], step: int, what: str) -> None:
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    replaying = make(ReplayingTrainer, recorded[0], **quiet, **change)
    replaying.train()
    assert (replaying.verdict.first_bad_step, replaying.verdict.what) == (step, what), replaying.verdict.detail


def test_other_initial_weights_are_refuted_before_the_first_step(recorded: tuple[Path, Any]) -> None:
    replaying = make(ReplayingTrainer, recorded[0])
    with torch.no_grad():
        replaying.model.transformer.wpe.weight[0, 0] += 1e-6
    replaying.train()
    verdict = replaying.verdict
    assert (verdict.result, verdict.first_bad_step, verdict.what) == ("refuted", 0, "state")
    assert replaying.state.global_step == 0 and verdict.replayed == []


def test_an_auditor_that_stops_early_gets_no_verdict(recorded: tuple[Path, Any]) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    with pytest.raises(IncompleteRunError, match="ended after step 5"):
        make(ReplayingTrainer, recorded[0], callbacks=[Stop()]).train()


def test_weights_changed_between_steps_are_noticed(tmp_path: Path) -> None:
    class Nudge(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    kwargs["model"].lm_head.weight.mul_(1.0001)

    trainer = make(RecordingTrainer, tmp_path / "run", callbacks=[Nudge()])
    with pytest.raises(StateError, match="after step 2"):
        trainer.train()


def test_stopping_inside_a_step_is_an_error(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    with pytest.raises(UsageError, match="between the micro-batches"):
        make(RecordingTrainer, tmp_path / "run", callbacks=[Stop()]).train()


def test_an_exception_inside_a_step_leaves_torch_as_it_was(tmp_path: Path) -> None:
    class Forbid(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.linalg.eigvals(torch.eye(3))

    with pytest.raises(UnsupportedOperation):
        make(RecordingTrainer, tmp_path / "run", callbacks=[Forbid()]).train()
    assert torch.linalg.eigvals(torch.eye(3)).real.tolist() == [1.0, 1.0, 1.0]
    make(RecordingTrainer, tmp_path / "again", max_steps=1).train()


def test_settings_that_cannot_be_audited_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto_find_batch_size"):
        make(RecordingTrainer, tmp_path / "run", auto_find_batch_size=True)
    assert not (tmp_path / "run").exists()


def test_importing_the_packages_does_not_import_transformers() -> None:
    code = "import sys, trainer.loop, auditor.audit.loop, vtrain.integrations; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    replayed = make(ReplayingTrainer, Path(sys.argv[1]))
    replayed.train()
    print(json.dumps(replayed.verdict.to_json()))
