"""TRL's ``GRPOTrainer``, where it is installed: completions are generated in a step, and trained on in two.

``python test_trl.py RUN`` replays a run in that process's arithmetic and prints the verdict's result.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vtrain
from auditor.hf import ReplayingMixin
from trainer.hf import RecordingMixin
from vtrain.profiles import profile_environment


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "]
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def reward(completions: list[str], **others: Any) -> list[float]:
    return [text.count("a") + 0.1 * len(set(text)) for text in completions]


def train(path: Path, role: type, **settings: Any) -> Any:
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    with vtrain.seeded(0):
        model = Qwen2ForCausalLM(
            Qwen2Config(vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=1, eos_token_id=1,
                        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=1)
        )  # fmt: skip
    arguments = GRPOConfig(
        output_dir=f"{path}-output", per_device_train_batch_size=4, num_generations=4, max_completion_length=6,
        num_iterations=2, max_steps=3, learning_rate=1e-3, report_to="none", use_cpu=True, bf16=False,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    kind: Any = type("Made", (role, GRPOTrainer), {})
    trainer = kind(
        run=path, model=model, args=arguments, reward_funcs=reward, processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": ["abc", "hello", "tom ", "xyz"]}), **settings,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_is_verified_in_another_arithmetic(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from test_hf_trainer import Interrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", RecordingMixin, checkpoint_every=1, callbacks=[Interrupt(2, "on_step_begin")])
    train(tmp_path / "run", RecordingMixin, checkpoint_every=1, resume=True)
    done = subprocess.run([sys.executable, __file__, str(tmp_path / "run")], env=profile_environment("baseline"),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["verified"], done.stdout + done.stderr


if __name__ == "__main__":
    print(train(Path(sys.argv[1]), ReplayingMixin).verdict.result)
