"""Reflections, exponentials and solutions of small matrices, as sequences of others (numerics §2, class 4).

What ``torch.nn.utils.parametrizations.orthogonal`` and its like need. LAPACK's blocks and orders are its own; these are
the textbook's sequences (Golub and Van Loan 2013, §3.4, §5.1, §9.3), one column after another, a rounding after each
operation. Leading dimensions are batches.
"""

from __future__ import annotations

import math

import torch

from vtrain.engine.optable import composed

Tensor = torch.Tensor
_TERMS = 11  # of the exponential's series, for norms up to 1: what is left is below 2^-28


# ---- reflections ----------------------------------------------------------------------------------------------------
def _reflected(a: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """(I - tau v v^T) a, with v ``(..., m)``, tau ``(...)``, a ``(..., m, n)``."""
    shares = torch.matmul(v.unsqueeze(-2), a)
    return a - (tau.unsqueeze(-1) * v).unsqueeze(-1) * shares


@composed("geqrf.default")
def geqrf(a: Tensor) -> tuple[Tensor, Tensor]:
    """R on and above the diagonal, the reflections' vectors below it (their first element is 1), and their factors."""
    out = a.clone(memory_format=torch.contiguous_format)
    m, n = a.shape[-2:]
    taus = a.new_zeros(*a.shape[:-2], min(m, n))
    for j in range(min(m, n)):
        x = out[..., j:, j].clone()
        first = x[..., 0]
        rest = torch.linalg.vector_norm(x[..., 1:], dim=-1)
        norm = torch.linalg.vector_norm(x, dim=-1)
        turns = rest > 0
        end = torch.where(turns, torch.where(first > 0, -norm, norm), first)
        tau = torch.where(turns, (end - first) / torch.where(turns, end, 1.0), 0.0)
        v = x / torch.where(turns, first - end, 1.0).unsqueeze(-1)
        v[..., 0] = 1.0
        out[..., j:, j + 1 :] = _reflected(out[..., j:, j + 1 :].clone(), v, tau)
        out[..., j + 1 :, j] = torch.where(turns.unsqueeze(-1), v[..., 1:], 0.0)
        out[..., j, j], taus[..., j] = end, tau
    return out, taus


@composed("linalg_householder_product.default")
def householder_product(a: Tensor, tau: Tensor) -> Tensor:
    """The first columns of the product of the reflections that ``geqrf`` gives."""
    m, n = a.shape[-2:]
    q = torch.eye(m, n, dtype=a.dtype, device=a.device).expand(a.shape).clone()
    for i in reversed(range(tau.shape[-1])):
        v = a[..., i:, i].clone()
        v[..., 0] = 1.0
        q[..., i:, :] = _reflected(q[..., i:, :].clone(), v, tau[..., i])
    return q


# ---- exponential ----------------------------------------------------------------------------------------------------
@composed("linalg_matrix_exp.default")
def matrix_exp(a: Tensor) -> Tensor:
    """The series of a / 2^s, of the largest 1-norm at most 1, by Horner's rule; squared s times."""
    if not a.numel():
        return a.clone()
    norm = float(a.detach().abs().sum(-2).amax())
    squarings = max(0, math.frexp(norm)[1]) if math.isfinite(norm) else 0
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    small = a * 2.0**-squarings
    out = one + small / _TERMS
    for k in reversed(range(1, _TERMS)):
        out = one + torch.matmul(small / k, out)
    for _ in range(squarings):
        out = torch.matmul(out, out)
    return out


# ---- solutions ------------------------------------------------------------------------------------------------------
def _exchanged(a: Tensor, i: int, j: Tensor) -> Tensor:
    """a ``(b, n, k)`` with row i and, in each of the batch, row j ``(b)`` exchanged."""
    rows = torch.arange(a.shape[1], device=a.device).expand(a.shape[0], -1).clone()
    rows[:, i] = j
    rows = rows.scatter(1, j.unsqueeze(1), i)
    return a.gather(1, rows.unsqueeze(-1).expand(a.shape))


def _factored(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L below the diagonal and U of a ``(b, n, n)`` with rows exchanged; the exchanges and the first zero, from 1."""
    n = a.shape[-1]
    pivots = torch.ones(a.shape[0], n, dtype=torch.int32, device=a.device)
    info = torch.zeros(a.shape[0], dtype=torch.int32, device=a.device)
    out = a.clone(memory_format=torch.contiguous_format)
    for j in range(n):
        at = out[:, j:, j].abs().argmax(-1) + j
        pivots[:, j] = (at + 1).to(torch.int32)
        out = _exchanged(out, j, at)
        top = out[:, j, j].clone()
        info = torch.where((info == 0) & (top == 0), j + 1, info)
        column = out[:, j + 1 :, j] / torch.where(top == 0, 1.0, top).unsqueeze(-1)
        out[:, j + 1 :, j] = column
        out[:, j + 1 :, j + 1 :] = out[:, j + 1 :, j + 1 :] - column.unsqueeze(-1) * out[:, j : j + 1, j + 1 :]
    return out, pivots, info


def _substituted(lu: Tensor, pivots: Tensor, b: Tensor, adjoint: bool) -> Tensor:
    """The solution of a x = b, or of a^T x = b; all of three dimensions."""
    n = lu.shape[-1]
    x = b.clone(memory_format=torch.contiguous_format)
    exchanges = [(j, pivots[:, j].to(torch.int64) - 1) for j in range(n)]
    if adjoint:
        for j in range(n):  # U^T, from its first row on
            x[:, j] = x[:, j] / lu[:, j, j].unsqueeze(-1)
            x[:, j + 1 :] = x[:, j + 1 :] - lu[:, j, j + 1 :].unsqueeze(-1) * x[:, j : j + 1]
        for j in reversed(range(n)):  # L^T, from its last one on
            x[:, :j] = x[:, :j] - lu[:, j, :j].unsqueeze(-1) * x[:, j : j + 1]
        for j, at in reversed(exchanges):
            x = _exchanged(x, j, at)
        return x
    for j, at in exchanges:
        x = _exchanged(x, j, at)
    for j in range(n):
        x[:, j + 1 :] = x[:, j + 1 :] - lu[:, j + 1 :, j].unsqueeze(-1) * x[:, j : j + 1]
    for j in reversed(range(n)):
        x[:, j] = x[:, j] / lu[:, j, j].unsqueeze(-1)
        x[:, :j] = x[:, :j] - lu[:, :j, j].unsqueeze(-1) * x[:, j : j + 1]
    return x


@composed("linalg_lu_solve.default")
def lu_solve(lu: Tensor, pivots: Tensor, b: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """x of a x = b from ``a``'s factors (or x a = b), a transposed if ``adjoint``."""
    if not left:
        return lu_solve(lu, pivots, b.mT, adjoint=not adjoint).mT
    n, batch = lu.shape[-1], torch.broadcast_shapes(lu.shape[:-2], b.shape[:-2])
    factors = _flat(lu.expand(*batch, n, n), 2), _flat(pivots.expand(*batch, n), 1)
    x = _substituted(*factors, _flat(b.expand(*batch, *b.shape[-2:]), 2), adjoint)
    return x.reshape(*batch, *b.shape[-2:])


def _flat(t: Tensor, dims: int) -> Tensor:
    """t with one dimension of batches before the last ones."""
    at = t.dim() - dims
    return t.reshape(math.prod(t.shape[:at]), *t.shape[at:])


@composed("_linalg_solve_ex.default")
def solve(
    a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x of a x = b (or x a = b), and a's factors, exchanges and first zero on U's diagonal."""
    is_vector = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    lu, pivots, info = _factored(_flat(a, 2))
    lu, pivots, info = lu.view(a.shape), pivots.view(a.shape[:-1]), info.view(a.shape[:-2])
    if check_errors and bool((info != 0).any()):
        raise torch.linalg.LinAlgError("linalg.solve: The solver failed because the input matrix is singular.")
    x = lu_solve(lu, pivots, b.unsqueeze(-1) if is_vector else b, left=left)
    return x.squeeze(-1) if is_vector else x, lu, pivots, info


@composed("linalg_inv_ex.default")
def inverse(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """The x of a x = 1, and the place of the first zero on the diagonal, from 1."""
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    x, _, _, info = solve(a, one, check_errors=check_errors)
    return x, info
