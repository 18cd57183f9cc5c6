"""Hugging Face's Trainer, recorded and replayed: a small GPT-2 of random weights on Python's help texts.

    python examples/finetune_hf.py record runs/hf
    python examples/finetune_hf.py record runs/hf --resume      # after an interruption
    python examples/finetune_hf.py replay runs/hf

The script is an ordinary fine-tuning script but for the class of the trainer. Each command prints what Trainer logs,
the loss among it; ``replay`` also prints VERIFIED or REFUTED. Try ``replay`` with ``--learning-rate 2e-3``: the first
step of the warm-up has learning rate 0 either way, refuted at step 2. Needs transformers and accelerate.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import vtrain
from vtrain.data import load

BLOCK = 32


def model() -> GPT2LMHeadModel:
    """Initial weights that every machine makes alike."""
    config = GPT2Config(
        vocab_size=256, n_positions=BLOCK, n_layer=2, n_embd=32, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with vtrain.seeded(0):
        return GPT2LMHeadModel(config)


def arguments(learning_rate: float, output: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=output, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4,
        learning_rate=learning_rate, lr_scheduler_type="cosine", warmup_steps=2, max_grad_norm=1.0, seed=0,
        logging_steps=1, save_strategy="no", eval_strategy="steps", eval_steps=2, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["record", "replay"])
    parser.add_argument("run", help="run directory")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    text = load("topics", block=BLOCK)
    common: dict[str, Any] = {
        "run": args.run,
        "model": model(),
        "args": arguments(args.learning_rate, f"{args.run}-output"),
        "train_dataset": torch.utils.data.Subset(text, range(400)),  # type: ignore[arg-type]
        "eval_dataset": torch.utils.data.Subset(text, range(400, 416)),  # type: ignore[arg-type]
    }
    if args.mode == "record":
        from trainer.hf import RecordingTrainer

        RecordingTrainer(**common, policy=vtrain.Policy(), seed=0, checkpoint_every=2, resume=args.resume).train()
        return 0
    from auditor.hf import ReplayingTrainer

    trainer = ReplayingTrainer(**common)
    trainer.train()
    assert trainer.verdict is not None
    print(trainer.verdict)
    return trainer.verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
