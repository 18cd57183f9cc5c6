"""Prints the digest of many integer products, convolutions and gradients; a process is one machine.

``python integer_work.py``, with the environment's profile, threads, kernel variant and VTRAIN_INTEGER.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F

from vtrain.engine.carriers import carrier
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.policy import Policy

Tensor = torch.Tensor
HARD = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-126), 1.9921874, 2.0**100, -(2.0**-60), 3e38, 1 / 3])


def numbers(shape: tuple[int, ...], seed: int, hard: bool = False) -> Tensor:
    """Numbers that every machine draws alike; ``hard``: of all magnitudes."""
    i = torch.arange(math.prod(shape)) + 977 * seed
    x = ((i * 2654435761 % (1 << 32)) - (1 << 31)).float() / (1 << 28)
    if hard:
        x = torch.where(i % 3 == 0, HARD[i * 7 % len(HARD)], x * torch.exp2((i % 41 - 20).float()))
    return x.view(shape)


def results(policy: Policy, dtype: torch.dtype) -> list[Tensor]:
    """Of products and convolutions of many shapes, with gradients."""
    out: list[Tensor] = []
    with Session(Plain(), policy, 0).step(1):
        for seed, (m, k, n) in enumerate([(1, 1, 1), (3, 40, 5), (33, 130, 17), (64, 64, 64), (2, 33000, 3)]):
            for hard in (False, True):
                a, b = (numbers(s, seed, hard).to(dtype) for s in ((m, k), (k, n)))
                c = numbers((n,), seed).to(dtype)
                out += [a @ b, torch.addmm(c, a, b), torch.addmm(c, a, b, beta=0.3, alpha=-1.7), b.t() @ a.t()]
        for seed, groups in enumerate((1, 2, 4)):
            x, w = numbers((3, 4, 9, 8), seed).to(dtype), numbers((8, 4 // groups, 3, 2), seed + 9).to(dtype)
            leaves = x.requires_grad_(), w.requires_grad_()
            y = F.conv2d(*leaves, None, (2, 1), (1, 2), (1, 2), groups)
            out += [y.detach(), *torch.autograd.grad(y, leaves, numbers(tuple(y.shape), seed).to(dtype))]
    return out


def digest() -> str:
    h = hashlib.sha256()
    for policy in (
        Policy(matmul="integer"),
        Policy(matmul="integer", bits=18),
        Policy(matmul="integer", target="float16"),
    ):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for y in results(policy, dtype):
                h.update(torch.where(y.isnan(), torch.nan, y.double()).view(torch.int64).numpy().tobytes())
    return h.hexdigest()


if __name__ == "__main__":
    print(carrier(torch.device("cpu")), digest())
