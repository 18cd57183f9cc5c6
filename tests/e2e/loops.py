"""Loops as people write them, around operations that can't round, or round in one place; each records and replays.

As a script: ``loops.py FOLDER`` replays the runs of all of them, and prints the verdicts' results, or what differs.
"""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from auditor import replay
from trainer import record

Tensor = torch.Tensor
STEPS = 4


def update(run: Any, loss: Tensor, **metrics: Any) -> None:
    loss.backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.metric(loss=loss, **metrics)


def data(step: int, *shape: int) -> Tensor:
    n = int(torch.tensor(shape).prod())
    return ((torch.arange(n) * 7919 + step * 101) % 257 - 128).view(shape) / 64.0


# ---- distributions and checks ---------------------------------------------------------------------------------------
def policy(run: Any) -> None:
    for step in range(STEPS):
        with run.step(data(step, 4, 6)):
            logits = run.model(data(step, 4, 6))
            categorical = torch.distributions.Categorical(logits=logits)
            action = categorical.sample()
            normal = torch.distributions.Normal(logits.mean(-1), F.softplus(logits[:, 0]) + 0.1)
            loss = -(categorical.log_prob(action) * action).mean() - 0.01 * categorical.entropy().mean()
            loss = loss - 0.1 * normal.log_prob(torch.zeros(4)).mean()
            update(run, loss + torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean())


def anomalies(run: Any) -> None:
    for step in range(STEPS):
        with run.step(data(step, 4, 6)), torch.autograd.set_detect_anomaly(True):
            out = run.model(data(step, 4, 6))
            assert not torch.allclose(out, out + 1) and not torch.equal(out, out + 1)
            assert bool(torch.isclose(out, out).all())
            update(run, out.square().mean())


def clipped(run: Any) -> None:
    for step in range(STEPS):
        with run.step(data(step, 4, 6)):
            loss = run.model(data(step, 4, 6)).square().sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(run.model.parameters(), 0.5, norm_type=2.0, error_if_nonfinite=True)
            nn.utils.clip_grad_value_(run.model.parameters(), 0.2)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss, norm=norm)


def scaled(run: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
    for step in range(2 * STEPS):
        with run.step(data(step, 4, 6)):
            with torch.autocast("cpu", torch.float16):
                loss = run.model(data(step, 4, 6)).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            scaler.step(run.optimizer)
            scaler.update()
            run.optimizer.zero_grad()
            run.metric(loss=loss, scale=scaler.get_scale(), growth=scaler.state_dict()["_growth_tracker"])


# ---- selection ------------------------------------------------------------------------------------------------------
def quantiles(run: Any) -> None:
    for step in range(STEPS):
        with run.step(data(step, 8, 6)):
            out, wanted = run.model(data(step, 8, 6)), data(step + 9, 8, 3)
            error = wanted - out
            levels = torch.tensor([0.1, 0.5, 0.9])
            loss = torch.maximum(levels * error, (levels - 1) * error).mean()
            limit = torch.quantile(error.detach(), 0.9) + torch.nanquantile(error.detach(), torch.tensor([0.25]))[0]
            loss = (
                loss
                + error.median(dim=0).values.abs().sum()
                + error.abs().clamp(max=limit.abs()).kthvalue(2).values.sum()
            )
            update(run, loss, middle=error.median(), often=error.round().mode(0).values.sum())


def graph(run: Any) -> None:
    edges = torch.tensor([[0, 1, 2, 2, 3, 4, 5, 5], [1, 0, 0, 3, 3, 3, 1, 0]])
    for step in range(STEPS):
        with run.step({"x": data(step, 6, 6), "edges": edges}):
            sent = run.model(data(step, 6, 6))[edges[0]]
            to = edges[1][:, None].expand_as(sent)
            pooled = torch.zeros(6, 3).scatter_reduce(0, to, sent, "amax", include_self=False)
            lowest = torch.zeros(6, 3).index_reduce(0, edges[1], sent, "amin", include_self=False)
            mean = torch.zeros(6, 3).scatter_reduce(0, to, sent, "mean", include_self=False)
            products = torch.ones(6, 3).scatter_reduce(0, to, 1 + sent / 8, "prod")
            update(
                run, (pooled + lowest).square().mean() + mean.sum() + products.sum() + sent.nansum(0).square().mean()
            )


def packed(run: Any) -> None:
    lengths = torch.tensor([5, 3, 1])
    for step in range(STEPS):
        with run.step((data(step, 3, 5, 6), lengths)):
            x = nn.utils.rnn.pack_padded_sequence(data(step, 3, 5, 6), lengths, batch_first=True)
            out, (hidden, _) = run.model["lstm"](x)
            padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
            again = nn.utils.rnn.pack_padded_sequence(padded, lengths.flip(0), batch_first=True, enforce_sorted=False)
            update(run, run.model["gru"](again)[1].square().mean() + hidden.mean())


def attention(run: Any) -> None:
    keep = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    for step in range(STEPS):
        with run.step(data(step, 2, 4, 6)):
            x = data(step, 2, 4, 6)
            out, _ = run.model(x, x, x, key_padding_mask=~keep, attn_mask=torch.ones(4, 4).triu(1).bool())
            other = F.scaled_dot_product_attention(out, x, x, attn_mask=keep[:, None])
            update(run, (other.masked_scatter(keep[..., None], out) ** 2).mean())


# ---- state ----------------------------------------------------------------------------------------------------------
def best(run: Any) -> None:
    """Weights kept, written, read and put back inside steps; statistics in float64."""
    mean = torch.zeros((), dtype=torch.float64)
    for step in range(STEPS):
        with run.step(data(step, 4, 6)):
            kept = copy.deepcopy(run.model.state_dict())
            loss = run.model(data(step, 4, 6)).square().mean()
            update(run, loss)
            mean = mean * 0.9 + loss.detach().double() * 0.1
            file = io.BytesIO()
            torch.save(run.model.state_dict(), file)
            file.seek(0)
            loaded = torch.load(file)
            assert all(torch.equal(loaded[n], p) for n, p in run.model.state_dict().items())
            if step == 2:
                run.model.load_state_dict(kept)
            run.metric(mean=mean, root=mean.sqrt(), inverse=mean.reciprocal(), rounded=mean.float())


def parametrised() -> nn.Module:
    p = nn.utils.parametrizations
    return nn.Sequential(
        p.orthogonal(nn.Linear(6, 6)), nn.Tanh(), p.orthogonal(nn.Linear(6, 4), "weight", "householder"), nn.Tanh(),
        p.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"), p.weight_norm(nn.Linear(4, 4)), nn.Tanh(),
        p.spectral_norm(nn.Linear(4, 3)),
    )  # fmt: skip


def plain(run: Any) -> None:
    for step in range(STEPS):
        with run.step(data(step, 4, 6)):
            update(run, run.model(data(step, 4, 6)).square().mean())


def linear() -> nn.Module:
    return nn.Linear(6, 3)


def recurrent() -> nn.Module:
    return nn.ModuleDict({"lstm": nn.LSTM(6, 4, 2, batch_first=True), "gru": nn.GRU(4, 3, bidirectional=True)})


LOOPS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], None]]] = {
    "policy": (linear, policy),
    "anomalies": (linear, anomalies),
    "clipped": (linear, clipped),
    "scaled": (linear, scaled),
    "quantiles": (linear, quantiles),
    "graph": (linear, graph),
    "packed": (recurrent, packed),
    "attention": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), attention),
    "best": (linear, best),
    "parametrised": (parametrised, plain),
}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def recorded(name: str, run: Path) -> None:
    make, loop = LOOPS[name]
    with record(run, model=make, optimizer=sgd, checkpoint_every=2) as recording:
        loop(recording)


def replayed(name: str, run: Path) -> str:
    make, loop = LOOPS[name]
    with replay(run, model=make, optimizer=sgd) as replaying:
        loop(replaying)
    verdict = replaying.verdict
    return verdict.result if verdict.verified else f"{verdict.result} {verdict.what} {verdict.detail}"


if __name__ == "__main__":
    print(json.dumps({name: replayed(name, Path(sys.argv[1]) / name) for name in LOOPS}))
