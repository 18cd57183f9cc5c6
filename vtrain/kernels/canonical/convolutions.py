"""The three products of a 2-D convolution."""

from __future__ import annotations

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import Tensor, checked, contiguous, sized


def convolution(
    kind: str, x: Tensor, weight: Tensor, grad: Tensor, bias: Tensor | None, key: tuple[int, ...], wide: bool
) -> Tensor:
    """One of a 2-D convolution's three products, without its patches being materialised (product.hpp).

    Args:
        kind: ``convolution`` writes grad ``(n, o, oh, ow)``, ``input_gradient`` x ``(n, c, h, w)``, ``weight_gradient``
            weight ``(o, c / groups, kh, kw)``; each reads the other two. All contiguous.
        bias: ``(o,)``, of the forward convolution.
        key: n, c, h, w, o, kh, kw, stride (2), padding (2), dilation (2), oh, ow, groups.
    """
    name = f"{kind}_wide" if wide else kind
    checked(name, x, x=x, weight=weight, grad=grad, bias=bias)
    contiguous(name, x=x, weight=weight, grad=grad)
    n, c, h, w, o, kh, kw, *_, oh, ow, groups = key
    shapes = {"x": (n, c, h, w), "weight": (o, c // groups, kh, kw), "grad": (n, o, oh, ow)}
    for what, t in (("x", x), ("weight", weight), ("grad", grad)):
        if tuple(t.shape) != shapes[what]:
            raise OperandError(f"kernel {name}: {what} is {list(t.shape)}, want {list(shapes[what])}")
    sized(name, o, bias=bias)
    y = {"convolution": grad, "input_gradient": x, "weight_gradient": weight}[kind]
    if y.numel():
        launch.launch(name, x, weight, grad, None if bias is None else bias.contiguous(), y, *key)
    return y
