"""Whether a device's kernels give the host's bits, on a few operands of each family: a check as a run begins.

Operands are arithmetic, not draws: a check must not move a generator. All of ``tests/kernels`` is the longer form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vtrain.kernels import canonical
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
F32 = torch.float32
_HARD = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-40, 88.0, -104.0, 1.0, 3e38, 0.1, -2.5, 7.0]


def _numbers(where: torch.device, *shape: int, salt: int = 0) -> Tensor:
    """Of both signs and of 20 binades, so that sums round and their order shows: float32."""
    i = torch.arange(int(torch.Size(shape).numel()), dtype=torch.int64) + 977 * salt
    mantissa = (i * 2654435761 % 2**23).to(torch.float32) / 2**22 - 1
    return torch.ldexp(mantissa, i * 40503 % 20 - 10).view(shape).to(where)


def _products(d: torch.device) -> list[Tensor]:
    a, b, c = _numbers(d, 2, 19, 35), _numbers(d, 2, 35, 18, salt=1), _numbers(d, 18, salt=2)
    return [canonical.product(a, b, c, -0.5, 2.0, wide) for wide in (False, True)]


def _convolutions(d: torch.device) -> list[Tensor]:
    key = (2, 4, 6, 5, 2, 3, 3, 2, 2, 1, 1, 1, 1, 3, 3, 2)
    shapes = {"input_gradient": (2, 4, 6, 5), "weight_gradient": (2, 2, 3, 3), "convolution": (2, 2, 3, 3)}
    found = []
    for kind, shape in shapes.items():
        operands = [
            torch.zeros(shape, dtype=F32, device=d) if name == kind else _numbers(d, *s, salt=3)
            for name, s in shapes.items()
        ]
        found.append(canonical.convolution(kind, operands[0], operands[1], operands[2], None, key, False))
    return found


def _elementwise(d: torch.device) -> list[Tensor]:
    x = torch.cat([torch.tensor(_HARD, dtype=F32, device=d), _numbers(d, 50)])
    found = [canonical.function(name, x, to) for name in canonical.FUNCTIONS for to in (torch.float32, torch.float64)]
    found.append(canonical.function("pow", x, torch.float32, 2.5))
    grad = _numbers(d, x.numel(), salt=1)
    for name in ("gelu_erf", "gelu_tanh", "silu", "softplus"):
        found += [canonical.activation(name, x, None, 1.0, 20.0), canonical.activation(name, x, grad, 1.0, 20.0)]
    return found


def _sums(d: torch.device) -> list[Tensor]:
    x, b = _numbers(d, 5, 9, 33), _numbers(d, 5, 9, 33, salt=1)
    found = [canonical.sum_terms(kind, dims, x) for kind in ("value", "square") for dims in ([0], [1], [2], [0, 2])]
    found += [canonical.sum_terms("product", [0, 1, 2], x, b), canonical.running_sum(x, 1)]
    index = torch.arange(45, device=d) * 7 % 5
    return [*found, canonical.scatter(x.view(45, 33), index, 6, _numbers(d, 6, 33, salt=2), 0.3)]


def _rows(d: torch.device) -> list[Tensor]:
    x, grad, weight, bias = _numbers(d, 5, 70), _numbers(d, 5, 70, salt=1), _numbers(d, 70), _numbers(d, 70, salt=2)
    found = []
    for name in ("softmax", "log_softmax"):
        y = canonical.softmax(name, 1, x=x)
        found += [y, canonical.softmax(name, 1, y=y, grad=grad)]
    out, mean, rstd = canonical.layer_norm(x, 70, weight, bias, 1e-5)
    found += [out, mean, rstd, canonical.layer_norm_backward(x, 70, grad, mean, rstd, weight)]
    out, rstd = canonical.rms_norm(x, 70, weight, 1e-6)
    found += [out, rstd, canonical.rms_norm_backward(x, 70, grad, rstd, weight)]
    v = [_numbers(d, 5, salt=i) for i in range(4)]
    x = _numbers(d, 2, 5, 33)
    return [*found, canonical.channel_norm(x, *v[:3]), canonical.channel_norm_backward(x, x * 2, *v)]


def _steps(d: torch.device) -> list[Tensor]:
    found = []
    for name in ("sgd", "adam"):
        state = [_numbers(d, 45, salt=i) for i in range(4)]
        state[2].abs_(), state[3].abs_()
        reals = (0.1, 0.01, 0.9, 0.99, 1e-8, 0.3, 0.7, 0.9, 0.1)
        canonical.optimizer_step(name, state[0], _numbers(d, 45, salt=9), tuple(state[1:]), 1, 1, 0, 1, *reals)
        found += state
    return found


def _settled(d: torch.device) -> list[Tensor]:
    y = torch.cat(
        [torch.tensor([*_HARD, 1 + 2.0**-24, 65519.9, 2.0**-25], dtype=torch.float64), _numbers(d, 200).double().cpu()]
    )
    y = y.to(d)
    scale, found = Scale("test", 1, 1.0, (1, 1, y.numel()), relative=True), []
    for fmt in (FLOAT32, BFLOAT16, FLOAT16):
        found += [canonical.round_to(y, fmt), canonical.round_to(y.float(), fmt, signed=False)]
        found += canonical.in_doubt(y, scale, 2.0**-fmt.p * 0.7, 2.0**-140, fmt)
    return found


FAMILIES: dict[str, Callable[[torch.device], list[Tensor]]] = {
    "products": _products, "convolutions": _convolutions, "elementwise functions": _elementwise, "sums": _sums,
    "rows": _rows, "optimizers' steps": _steps, "settling": _settled,
}  # fmt: skip


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the CPU's are equal in shape, dtype and every bit, but for which NaN it is."""
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return bool(((a.view(kind) == b.view(kind)) | ((a != a) & (b != b))).all())


def report(where: torch.device) -> dict[str, bool]:
    """Families of kernels, True where the device's bits are the host's."""
    found = {}
    for name, family in FAMILIES.items():
        mine, theirs = family(torch.device("cpu")), family(where)
        same = len(mine) == len(theirs) and all(same_bits(a, b.cpu()) for a, b in zip(mine, theirs, strict=True))
        found[f"kernels of {name} have the host's bits"] = same
    return found
