"""Error scales: s of numerics §3, as vectors that a kernel combines on the fly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(slots=True)
class Scale:
    """How far a computed value may be from the exact one.

    s of element (b, i, j) of a result seen as ``(batch, rows, cols)`` is ``row[b, i] * col[b, j] + bias[j]``, where a
    missing row or col counts as 1 and a missing bias as 0; or ``|y|`` if ``relative``; or ``full`` elementwise.

    Attributes:
        kind: kind of operation, under which thresholds are calibrated.
        length: terms in each sum; 1 for an elementwise function.
        kappa: certified constant in units of the unit roundoff of C.
        compute: C, by its name in ``bounds.U``.
        shape: ``(batch, rows, cols)``, of the result's number of elements.
        row, col, bias, full: float64, contiguous, on the result's device.
        empty: computes which elements have no term but zeros, bool of ``shape``: they are 0 on any hardware, whatever s
            says. Worth asking only where zeros turn out to be in doubt.
    """

    kind: str
    length: int
    kappa: float
    shape: tuple[int, int, int]
    relative: bool = False
    row: torch.Tensor | None = None
    col: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    full: torch.Tensor | None = None
    empty: Callable[[], torch.Tensor] | None = None
    compute: str = "float64"

    def refined(self, y: torch.Tensor) -> Scale:
        """The same scale with s = 0 for sums of zeros."""
        assert self.empty is not None
        full = self.dense(y)
        full.masked_fill_(self.empty().to(full.device).view(self.shape), 0.0)  # a scale may have been moved; it was not
        return replace(self, row=None, col=None, bias=None, full=full, empty=None)

    def cpu(self) -> Scale:
        """The same scale with its vectors in host memory."""
        moved = {name: None if v is None else v.cpu() for name, v in self._vectors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def _vectors(self) -> dict[str, torch.Tensor | None]:
        return {"row": self.row, "col": self.col, "bias": self.bias, "full": self.full}

    def width(self, y: torch.Tensor, tau: float, eta: float) -> torch.Tensor:
        """Half-widths tau * s + eta, 0 where s is, float64 of ``shape``."""
        s = self.dense(y)
        return torch.where(s == 0, 0.0, tau * s + eta)

    def dense(self, y: torch.Tensor) -> torch.Tensor:
        """s as a new float64 tensor of ``shape``: what the kernels never materialise; for other devices and tests."""
        if self.relative:
            return y.to(torch.float64).abs().view(self.shape)
        if self.full is not None:
            return self.full.view(self.shape).clone()
        b, m, n = self.shape
        one = torch.ones(1, dtype=torch.float64, device=y.device)
        row = one if self.row is None else self.row.view(b, m, 1)
        col = one if self.col is None else self.col.view(b, 1, n)
        s = (row * col).expand(self.shape).contiguous()
        return s if self.bias is None else s.add_(self.bias.view(1, 1, n))
