"""The models that are timed, with their batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """A model to time.

    Attributes:
        name: for the table.
        model: makes it, in float32, with random weights.
        batch: makes its one batch.
        loss: of model and batch.
        policy: of the recorded run.
    """

    name: str
    model: Callable[[], torch.nn.Module]
    batch: Callable[[], Batch]
    loss: Callable[[torch.nn.Module, Batch], torch.Tensor]
    policy: dict[str, Any]


def gpt2(layers: int = 4, width: int = 256, heads: int = 4, vocab: int = 512, block: int = 64) -> torch.nn.Module:
    """GPT-2 without dropout."""
    from vtrain.programs.language import gpt2 as program

    return program(vocab, block, layers, width, heads, 0.0).model


def tokens(count: int = 8, block: int = 64, vocab: int = 512) -> Batch:
    """Random tokens."""
    ids = torch.randint(0, vocab, (count, block), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def resnet18() -> torch.nn.Module:
    """torchvision's, for ten classes."""
    import torchvision

    return torchvision.models.resnet18(weights=None, num_classes=10)


def images(count: int = 32) -> Batch:
    """Random images of 3x32x32."""
    g = torch.Generator().manual_seed(0)
    return {"image": torch.randn(count, 3, 32, 32, generator=g), "label": torch.randint(0, 10, (count,), generator=g)}


def language_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The model's own."""
    return model(**batch).loss


def image_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross entropy."""
    dtype = next(model.parameters()).dtype
    return torch.nn.functional.cross_entropy(model(batch["image"].to(dtype)), batch["label"])


BENCHES = {
    b.name: b
    for b in (
        Bench("gpt2", gpt2, tokens, language_loss, {}),
        Bench("gpt2-canonical", gpt2, tokens, language_loss, {"matmul": "chain"}),
        Bench("gpt2-integer", gpt2, tokens, language_loss, {"matmul": "integer"}),
        Bench("gpt2-bfloat16", gpt2, tokens, language_loss, {"target": "bfloat16"}),
        Bench("resnet18", resnet18, images, image_loss, {}),
        Bench("resnet18-canonical", resnet18, images, image_loss, {"matmul": "chain"}),
        Bench("resnet18-integer", resnet18, images, image_loss, {"matmul": "integer"}),
    )
}


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def train_step(bench: Bench, model: torch.nn.Module, opt: torch.optim.Optimizer, batch: Batch) -> torch.Tensor:
    """Forward, backward, update."""
    loss = bench.loss(model, batch)
    loss.backward()
    opt.step()
    opt.zero_grad()
    return loss


def quiet() -> None:
    """No warnings among the figures."""
    warnings.filterwarnings("ignore")
