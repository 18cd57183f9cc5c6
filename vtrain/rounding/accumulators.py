"""Accumulators of matrix units, which are not IEEE: what is known of them, and a model of the worst (numerics §3).

A unit takes a block of L exact products and a float32 number, aligns these L + 1 terms to the largest exponent among
them, cuts each toward zero at F fractional bits of it, adds the integers exactly, and cuts the sum toward zero to
float32. The order of a block's terms therefore plays no part. A block errs by less than

    (L + 1) 2^-F max |term| + 2^-23 |sum|                                                                 (2)

Sources: Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330
(2021), for V100, T4 and A100; Xie, Fan, Wang and Yang, MMA-Sim: bit-accurate reference model of tensor cores and matrix
cores, arXiv 2511.10909 (2025), for all rows; Khattak and Mikaitis, Accurate models of NVIDIA tensor cores, arXiv
2512.07004 (2025), for V100 to B200. FP8 on Ada and Hopper keeps 13 bits: it is no type of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SAMPLE = 1 << 14  # elements of a result that are summed by the model; one at a time costs k / L vector operations


@dataclass(frozen=True)
class Accumulator:
    """Matrix units with float32 sums, of bfloat16 and float16 operands.

    Attributes:
        block: L, the least number of products that an instruction adds at once.
        bits: F, fractional bits that aligned terms keep.
    """

    block: int
    bits: int

    @property
    def kappa(self) -> float:
        """Error of a full block by (2), a product, in units of 2^-24 times the sum of magnitudes."""
        return ((self.block + 1) * 2.0 ** (24 - self.bits) + 2.0) / self.block


# By the compute capability's major and minor number.
ARCHITECTURES = {
    (7, 0): Accumulator(4, 23),  # Volta
    (7, 5): Accumulator(4, 24),  # Turing
    (8, 0): Accumulator(8, 24),  # Ampere
    (8, 6): Accumulator(8, 24),
    (8, 7): Accumulator(8, 24),
    (8, 9): Accumulator(8, 24),  # Ada
    (9, 0): Accumulator(8, 25),  # Hopper; its own instructions take 16 at once
    (10, 0): Accumulator(8, 25),  # Blackwell, data centre
    (10, 3): Accumulator(8, 25),
    (12, 0): Accumulator(8, 25),  # Blackwell, others
    (12, 1): Accumulator(8, 25),
}
WORST = max(ARCHITECTURES.values(), key=lambda found: found.kappa)


def modelled_sums(left: torch.Tensor, right: torch.Tensor, unit: Accumulator = WORST) -> torch.Tensor:
    """Sums of left * right along the last dimension as matrix units give them: float64 ``(count,)``.

    Args:
        left, right: ``(count, k)``, finite numbers of bfloat16 or float16.
        unit: whose arithmetic.
    """
    left, right = left.to(torch.float64), right.to(torch.float64)
    total = torch.zeros(left.shape[0], dtype=torch.float64, device=left.device)
    for at in range(0, left.shape[1], unit.block):
        products = left[:, at : at + unit.block] * right[:, at : at + unit.block]  # exact: 22 bits
        terms = torch.cat([products, total.unsqueeze(1)], 1)
        total = _cut(_aligned(terms, unit.bits).sum(1), 24, 2.0**-149)
    return total


def _aligned(terms: torch.Tensor, bits: int) -> torch.Tensor:
    """Terms cut toward zero at ``bits`` below the largest one's leading bit."""
    largest = terms.abs().amax(1, keepdim=True)
    quantum = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1 - bits)
    return torch.where(largest > 0, (terms / quantum).trunc() * quantum, terms)


def _cut(x: torch.Tensor, bits: int, least: float) -> torch.Tensor:
    """x cut toward zero to ``bits`` significant bits and to multiples of ``least``."""
    quantum = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - bits).clamp_min(least)
    return (x / quantum).trunc() * quantum


def sampled(count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Flat indices of at most ``SAMPLE`` elements out of ``count``, at even distances: int64."""
    return torch.arange(0, count, max(1, -(-count // SAMPLE)), device=device)
