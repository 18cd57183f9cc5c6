"""The models that every release must train and audit: real library classes, unmodified, small, with dropout.

``python zoo.py record|replay[:POLICY] DIR NAME...`` (POLICY: ``matmul=chain,other=logged``) trains or
audits each named case in this process's arithmetic and prints one JSON line a case. The two differ in one line: the
context manager.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import vtrain
from vtrain import ops
from vtrain.random import StreamKey, randint, uniform24, words

Batch = dict[str, Any]
STEPS = 4
DEVICE = torch.device(os.environ.get("ZOO_DEVICE", "cpu"))


def tokens(step: int, shape: tuple[int, ...], below: int) -> torch.Tensor:
    """Random integers that every machine draws alike."""
    n = int(torch.Size(shape).numel())
    return torch.from_numpy(randint(words(StreamKey(5, "zoo-tokens"), step, 0, 2 * n), 0, below)).view(shape)


def reals(step: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers in [-1, 1) that every machine draws alike."""
    n = int(torch.Size(shape).numel())
    return torch.from_numpy(uniform24(words(StreamKey(5, "zoo-reals"), step, 1, n))).view(shape) * 2 - 1


@dataclass(frozen=True)
class Case:
    """A model, how it is fed, and how it is trained."""

    model: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], torch.Tensor] = lambda model, batch: model(**batch).loss
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3)
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    clip: float = 0.0
    accumulate: int = 1
    autocast: bool = False
    policy: dict[str, Any] = field(default_factory=dict)


# ---- language models ------------------------------------------------------------------------------------------------
def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=48, n_head=3, vocab_size=96, n_positions=32, bos_token_id=0,
                                      eos_token_id=0))  # fmt: skip


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(vocab_size=96, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
                                      intermediate_size=96, max_position_embeddings=32))  # fmt: skip


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
                                        attention_dropout=0.1, bos_token_id=0, eos_token_id=0))  # fmt: skip


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                                               decoder_start_token_id=0))  # fmt: skip


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
                                            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
                                            max_position_embeddings=32, bos_token_id=0, eos_token_id=0))  # fmt: skip


def causal(step: int) -> Batch:
    ids = tokens(step, (3, 16), 96)
    return {"input_ids": ids, "labels": ids}


def masked(step: int) -> Batch:
    ids = tokens(step, (3, 16), 96)
    labels = ids.masked_fill(tokens(step, (3, 16), 5) > 0, -100)
    mask = (torch.arange(16) < torch.tensor([[16], [11], [7]])).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_checkpoints() -> nn.Module:
    model = gpt2()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    return model


# ---- vision ---------------------------------------------------------------------------------------------------------
class Classifier(nn.Module):
    """A torchvision model with a cross-entropy loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(image), label)


def vision(name: str, **config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return Classifier(getattr(torchvision.models, name)(weights=None, num_classes=10, **config))

    return make


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=5,
                                               intermediate_size=96, image_size=32, patch_size=8,
                                               hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1))  # fmt: skip


def pictures(side: int, count: int) -> Callable[[int], Batch]:
    return lambda step: {"image": reals(step, (count, 3, side, side)), "label": tokens(step, (count,), 10)}


def patches(step: int) -> Batch:
    return {"pixel_values": reals(step, (3, 3, 32, 32)), "labels": tokens(step, (3,), 5)}


def direct(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(**batch)


# ---- recurrent and plain --------------------------------------------------------------------------------------------
class Recurrent(nn.Module):
    """Two layers of LSTM or GRU over embedded tokens, with dropout between them."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.net = kind(24, 32, num_layers=2, dropout=0.2, batch_first=True, bidirectional=kind is nn.GRU)
        self.head = nn.Linear(64 if kind is nn.GRU else 32, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.head(self.net(self.embed(ids))[0])
        return nn.functional.cross_entropy(y[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Mixers(nn.Module):
    """A layer each of window attention, linear attention with decay, and convolutions, of ``vtrain.ops``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.inner = nn.ModuleList([nn.Linear(24, 72) for _ in range(3)])
        self.outer = nn.ModuleList([nn.Linear(24, 24) for _ in range(3)])
        self.decay, self.taps = nn.Parameter(torch.full((2, 1, 1), -1.0)), nn.Parameter(torch.full((24, 3), 0.3))
        self.filter, self.head = nn.Parameter(torch.full((24, 12), 0.1)), nn.Linear(24, 40)

    def mixed(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, 12)).transpose(1, 2) for t in self.inner[layer](x).chunk(3, -1))
        if layer == 0:
            return ops.attention(q, k, v, window=5).transpose(1, 2).flatten(2)
        if layer == 1:
            q, k = ops.taylor_map(q[..., :4]), ops.taylor_map(k[..., :4])
            return ops.linear_attention(q, k, v, log_decay=self.decay)[0].transpose(1, 2).flatten(2)
        short = ops.short_conv(v.transpose(2, 3).flatten(1, 2), self.taps)[0]
        return ops.long_conv(short, self.filter).mT * nn.functional.silu(q.transpose(1, 2).flatten(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer, outer in enumerate(self.outer):
            x = x + outer(self.mixed(layer, nn.functional.layer_norm(x, (24,))))
        return nn.functional.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.Tanh(),
                                 nn.Dropout(0.1), nn.Linear(64, 10))  # fmt: skip

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(x), label)


def rows(step: int) -> Batch:
    return {"x": reals(step, (16, 20)), "label": tokens(step, (16,), 10)}


def sequences(step: int) -> Batch:
    return {"ids": tokens(step, (4, 12), 40)}


def sgd(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def adam(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(m.parameters(), lr=1e-3, weight_decay=1e-2, amsgrad=True)


def foreach(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(m.parameters(), lr=1e-3, foreach=True)


def foreach_sgd(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True, foreach=True)


def cosine(o: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=STEPS)


def warm_up(o: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 3))


BF16, F16 = {"target": "bfloat16"}, {"target": "float16"}
CASES: dict[str, Case] = {
    "gpt2": Case(gpt2, causal, clip=1.0, schedule=cosine),
    "gpt2-bfloat16": Case(gpt2, causal, policy=BF16),
    "gpt2-float16": Case(gpt2, causal, policy=F16, optimizer=sgd),
    "gpt2-18-bits": Case(gpt2, causal, policy={"bits": 18}, optimizer=sgd),
    "gpt2-statistical": Case(gpt2, causal, policy={"threshold": "statistical"}),
    "gpt2-ternary": Case(gpt2, causal, policy={**BF16, "encoding": "ternary"}),
    "gpt2-autocast": Case(gpt2, causal, autocast=True),
    "gpt2-module-in-bfloat16": Case(lambda: gpt2().to(torch.bfloat16), causal, optimizer=sgd),
    "gpt2-checkpointing": Case(with_checkpoints, causal),
    "gpt2-accumulation": Case(gpt2, causal, accumulate=2, clip=0.5, optimizer=foreach),
    "bert": Case(bert, masked, schedule=warm_up, optimizer=adam),
    "llama": Case(llama, causal, optimizer=foreach),
    "mixtral": Case(mixtral, causal),
    "t5": Case(t5, lambda s: {"input_ids": tokens(s, (3, 12), 96), "labels": tokens(s + 99, (3, 9), 96)}),
    "vit": Case(vit, patches),
    "resnet18": Case(vision("resnet18"), pictures(32, 4), direct, sgd),
    "resnet50": Case(vision("resnet50"), pictures(32, 3), direct, sgd),
    "convnext": Case(vision("convnext_tiny"), pictures(32, 2), direct, sgd),
    "mobilenet-v3": Case(vision("mobilenet_v3_small"), pictures(32, 4), direct, sgd),
    "lstm": Case(lambda: Recurrent(nn.LSTM), sequences, direct, foreach_sgd, clip=1.0),
    "gru": Case(lambda: Recurrent(nn.GRU), sequences, direct),
    "mixers": Case(Mixers, sequences, direct),
    "mixers-autocast": Case(Mixers, sequences, direct, autocast=True),
    "mixers-bfloat16": Case(Mixers, sequences, direct, policy=BF16),
    "mlp": Case(Perceptron, rows, direct, sgd),
    "mlp-foreach": Case(Perceptron, rows, direct, foreach_sgd),
}


# ---- the loop: the same for both sides ------------------------------------------------------------------------------
def loop(case: Case, run: Any) -> None:
    """Train for STEPS steps; ``run`` is what ``record`` or ``replay`` gives."""
    model, optimizer = run.model, run.optimizer
    schedule = case.schedule(optimizer) if case.schedule else None
    for step in range(STEPS):
        batches = [case.batch(step * case.accumulate + part) for part in range(case.accumulate)]
        with run.step(batches):
            for batch in map(there, batches):
                with torch.autocast(DEVICE.type, torch.bfloat16) if case.autocast else contextlib.nullcontext():
                    loss = case.loss(model, batch)
                (loss / case.accumulate).backward()
            if case.clip:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip)
            optimizer.step()
            optimizer.zero_grad()
            run.metric(loss=loss)
        if schedule is not None:
            schedule.step()


def placed(case: Case) -> Callable[[], nn.Module]:
    """Makes the case's model where it is trained."""
    return lambda: case.model().to(DEVICE)


def there(batch: Batch) -> Batch:
    """A batch where the model is; copies are exact."""
    return pytree.tree_map(lambda v: v.to(DEVICE) if isinstance(v, torch.Tensor) else v, batch)


def record_case(case: Case, path: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    from trainer import record

    policy = vtrain.Policy(**{**case.policy, **(changes or {})})
    with record(path, model=placed(case), optimizer=case.optimizer, policy=policy, seed=7, checkpoint_every=2) as run:
        loop(case, run)
    return {"finite": bool(all(p.isfinite().all() for p in run.model.parameters()))}


def replay_case(case: Case, path: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    from auditor import replay

    with replay(path, model=placed(case), optimizer=case.optimizer) as run:
        loop(case, run)
    return run.verdict.to_json()


def outcomes(mode: str, changes: dict[str, Any], root: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """What each case came to; an exception is an outcome too."""
    for name in names:
        work = record_case if mode == "record" else replay_case
        try:
            yield {"case": name, **work(CASES[name], root / name, changes)}
        except Exception as error:
            yield {"case": name, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def main() -> None:
    mode, root, *names = sys.argv[1:]
    warnings.filterwarnings("ignore")
    with contextlib.suppress(ImportError):
        import transformers

        transformers.logging.set_verbosity_error()
    mode, _, policy = mode.partition(":")
    changes = dict(item.split("=") for item in policy.split(",") if item)
    for outcome in outcomes(mode, changes, Path(root), names or list(CASES)):
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
