"""torchvision's ResNet-18, unmodified, on scikit-learn's handwritten digits.

    python examples/resnet_digits.py record runs/resnet
    python examples/resnet_digits.py replay runs/resnet

``record`` prints the loss of each step; ``replay`` prints the same losses and then VERIFIED or REFUTED. The batch
norms' running statistics are state like the weights, so they are compared too. Try ``replay`` with ``--decay 0.5``: the
learning rate differs after the second step, refuted at step 3. Needs torchvision and scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
import torchvision
from torch import nn

from auditor import replay
from trainer import record
from vtrain.data import batch_indices, load

BATCH, STEPS = 4, 3


def resnet() -> nn.Module:
    return torchvision.models.resnet18(weights=None, num_classes=10)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)


def train(run: Any, decay: float) -> None:
    """The loop: only the lines with ``run`` are vtrain's."""
    data = load("digits")
    schedule = torch.optim.lr_scheduler.StepLR(run.optimizer, step_size=2, gamma=decay)
    run.model.train()
    for step in range(1, STEPS + 1):
        indices = batch_indices(0, step, BATCH, len(data))
        images = torch.stack([torch.from_numpy(data[i]["image"]) for i in indices])
        labels = torch.tensor([int(data[i]["label"]) for i in indices])
        with run.step({"images": images, "labels": labels}, indices=indices):
            loss = nn.functional.cross_entropy(run.model(images), labels)
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)
        schedule.step()
        print(f"step {step}: loss {loss.item():.6f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["record", "replay"])
    parser.add_argument("run", help="run directory")
    parser.add_argument("--decay", type=float, default=0.1, help="factor on the learning rate after two steps")
    args = parser.parse_args()
    if args.mode == "record":
        with record(args.run, model=resnet, optimizer=sgd, seed=0, checkpoint_every=2) as run:
            train(run, args.decay)
        return 0
    with replay(args.run, model=resnet, optimizer=sgd) as run:
        train(run, args.decay)
    print(run.verdict)
    return run.verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
