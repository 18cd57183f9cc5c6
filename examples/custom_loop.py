"""Your own training loop, recorded and replayed: a small transformer that learns Python's help texts.

    python examples/custom_loop.py record runs/custom
    python examples/custom_loop.py replay runs/custom

Both commands run the same loop; they differ in what opens the run. ``record`` prints the loss of each step and leaves
the run in the directory. ``replay``, on the same or other hardware, prints the same losses and then VERIFIED, or
REFUTED with the first step that differs. Try ``replay`` with ``--data-seed 1``: other samples, refuted at step 1.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import nn

from auditor import replay
from trainer import record
from vtrain.data import batch_indices, load

BLOCK, BATCH, STEPS = 24, 8, 6


class Reader(nn.Module):
    """Predicts the next byte."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Embedding(BLOCK, width)
        layer = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, num_layers=2), nn.Linear(width, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        logits = self.head(self.body(x, mask=mask, is_causal=True))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def extra(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a checkpoint keeps besides model and optimizer."""
    return {"schedule": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)}


def train(run: Any, data_seed: int) -> None:
    """The loop: only the lines with ``run`` are vtrain's."""
    data = load("topics", block=BLOCK)
    for step in range(run.steps_done + 1, STEPS + 1):
        indices = batch_indices(data_seed, step, BATCH, len(data))
        ids = torch.stack([torch.from_numpy(data[i]["input_ids"]) for i in indices])
        with run.step(ids, indices=indices):
            loss = run.model(ids)
            loss.backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)
        run.extra["schedule"].step()
        print(f"step {step}: loss {loss.item():.6f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["record", "replay"])
    parser.add_argument("run", help="run directory")
    parser.add_argument("--data-seed", type=int, default=0, help="of the order of the samples")
    args = parser.parse_args()
    if args.mode == "record":
        with record(args.run, model=Reader, optimizer=adamw, extra=extra, seed=0, checkpoint_every=3) as run:
            train(run, args.data_seed)
        return 0
    with replay(args.run, model=Reader, optimizer=adamw, extra=extra) as run:
        train(run, args.data_seed)
    print(run.verdict)
    return run.verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
