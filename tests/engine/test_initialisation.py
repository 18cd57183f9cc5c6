"""``nn.init`` and friends inside a session: drawn from the counter-based generator, so the same everywhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import vtrain
from vtrain.profiles import profile_environment

INITS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "uniform_": nn.init.uniform_,
    "normal_": nn.init.normal_,
    "trunc_normal_": nn.init.trunc_normal_,
    "constant_": lambda x: nn.init.constant_(x, 0.3),
    "ones_": nn.init.ones_,
    "zeros_": nn.init.zeros_,
    "eye_": nn.init.eye_,
    "xavier_uniform_": nn.init.xavier_uniform_,
    "xavier_normal_": nn.init.xavier_normal_,
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "orthogonal_": nn.init.orthogonal_,
    "sparse_": lambda x: nn.init.sparse_(x, 0.5),
    "dirac_": lambda x: nn.init.dirac_(x.view(20, 3, 4)).view(20, 12),
}


def made(name: str, seed: int = 0) -> torch.Tensor:
    with vtrain.seeded(seed):
        return INITS[name](torch.empty(20, 12))


@pytest.mark.parametrize("name", list(INITS))
def test_every_initialiser(name: str) -> None:
    torch.manual_seed(1)
    first = made(name)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(first, made(name))
    fixed = {"constant_", "ones_", "zeros_", "eye_", "dirac_"}
    assert torch.equal(first, made(name, seed=1)) == (name in fixed)


def test_orthogonal_is_orthogonal() -> None:
    q = made("orthogonal_")
    torch.testing.assert_close(q.t() @ q, torch.eye(12), atol=1e-5, rtol=0)


def test_draws_have_the_moments_that_they_should() -> None:
    with vtrain.seeded(0):
        x = nn.init.normal_(torch.empty(400, 400), 1.0, 0.5)
        u = nn.init.uniform_(torch.empty(400, 400), -2.0, 1.0)
        t = nn.init.trunc_normal_(torch.empty(400, 400), a=-1.0, b=1.0)
    assert abs(x.mean() - 1.0) < 0.01
    assert abs(x.std() - 0.5) < 0.01
    assert u.min() >= -2.0
    assert u.max() < 1.0
    assert abs(u.mean() + 0.5) < 0.01
    assert t.abs().max() <= 1.0


def test_other_draws() -> None:
    with vtrain.seeded(0):
        permutation = torch.randperm(50)
        coins = torch.bernoulli(torch.full((1000,), 0.25))
        integers = torch.randint(3, 9, (1000,))
        dropped = nn.functional.dropout(torch.ones(10_000), 0.1)
        picked = torch.multinomial(torch.tensor([0.0, 1.0, 3.0]), 1000, replacement=True)
    assert sorted(permutation.tolist()) == list(range(50))
    assert 200 < int(coins.sum()) < 300
    assert set(integers.tolist()) == set(range(3, 9))
    assert abs(float((dropped == 0).float().mean()) - 0.1) < 0.02
    assert set(dropped.unique().tolist()) == {0.0, float(torch.tensor(1.0) * (1 / 0.9))}
    assert int((picked == 0).sum()) == 0
    assert 650 < int((picked == 2).sum()) < 850


WEIGHTS = """
import hashlib, torch, vtrain
from torch import nn
with vtrain.seeded(3):
    parts = [nn.Linear(300, 70), nn.LSTM(20, 30), nn.Conv2d(3, 8, 3), nn.Embedding(50, 20)]
    parts.append(nn.TransformerEncoderLayer(24, 3))
    nn.init.normal_(parts[0].weight)
digest = hashlib.sha256()
for part in parts:
    for p in part.parameters():
        digest.update(p.detach().numpy().tobytes())
print(digest.hexdigest())
"""


def test_seeded_weights_are_the_same_under_every_profile() -> None:
    found = set()
    for name in ("native", "avx2", "baseline"):
        env = profile_environment(name)
        out = subprocess.run([sys.executable, "-c", WEIGHTS], env=env, capture_output=True, text=True)
        found.add(out.stdout.strip() or out.stderr)
    assert len(found) == 1, found
    assert len(next(iter(found))) == len(hashlib.sha256().hexdigest())


def test_checkpointed_dropout_draws_the_same_mask_again() -> None:
    """The forward pass that torch.utils.checkpoint does again must drop what was dropped before."""
    from torch.utils.checkpoint import checkpoint

    grads = []
    for again in (False, True):
        x = torch.ones(40, 40, requires_grad=True)

        def body(v: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(v * v, 0.5)

        with vtrain.seeded(5):
            y = checkpoint(body, x, use_reentrant=False) if again else body(x)
            z = nn.functional.dropout(y, 0.5)
            z.sum().backward()
        grads.append((y.detach(), z.detach(), x.grad))
    for a, b in zip(*grads, strict=True):
        assert a is not None
        assert torch.equal(a, b)
    assert 0 < int((grads[0][0] == 0).sum()) < 1600


def test_seeded_inside_a_factory_of_a_recorded_model(tmp_path: Path) -> None:
    """Llama's rotary tables are computed in its constructor: a step in a step would compute them in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from auditor import replay
    from trainer import record

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip

    def make() -> nn.Module:
        with vtrain.seeded(3):
            return LlamaForCausalLM(config)

    with record(tmp_path / "run", model=make) as run:
        inside = run.model
    with replay(tmp_path / "run", model=make) as run:
        pass
    assert run.verdict.verified
    with vtrain.seeded(3):
        outside = LlamaForCausalLM(config)
    for (name, a), b in zip(inside.named_parameters(), outside.parameters(), strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32)), name
