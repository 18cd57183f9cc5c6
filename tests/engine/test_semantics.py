"""Handlers compute what torch's operations compute: values and gradients against torch's own in float64.

Only here tolerances are right: the question is whether it is the same function, not whether it is the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.policy import Policy

Tensor = torch.Tensor
G = torch.Generator().manual_seed(11)


def t(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


def positive(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=G) + 0.1


LABELS = torch.tensor([0, 3, 6, -100, 2])
LSTM, GRU = torch.nn.LSTM(6, 5, 2, batch_first=True), torch.nn.GRU(6, 5, bidirectional=True)
ATTENTION = torch.nn.MultiheadAttention(12, 3, batch_first=True)
ENCODER = torch.nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True, activation="gelu")


def like(module: torch.nn.Module, x: Tensor) -> torch.nn.Module:
    """The module in x's dtype, as a fresh copy."""
    import copy

    return copy.deepcopy(module).to(x.dtype)


def w(x: Tensor, like_: Tensor) -> Tensor:
    return x.to(like_.dtype)


W33, W1, WD = t(6, 4, 3, 3) / 6, t(6, 4, 1, 1) / 2, t(8, 1, 3, 3) / 3
CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "matrix_exp": (torch.linalg.matrix_exp, (t(4, 4),)),
    "matrix_exp of large ones": (torch.linalg.matrix_exp, (t(2, 3, 3) * 4,)),
    "solve": (torch.linalg.solve, (t(2, 4, 4) + 3 * torch.eye(4), t(2, 4, 3))),
    "solve, exchanged": (lambda a, b: torch.linalg.solve(a.flip(0), b), (t(4, 4) + 3 * torch.eye(4), t(4))),
    "solve from the right": (lambda a, b: torch.linalg.solve(a, b, left=False), (t(4, 4) + 3 * torch.eye(4), t(2, 4))),
    "inverse": (torch.linalg.inv, (t(4, 4) + 3 * torch.eye(4),)),
    "reflections": (torch.linalg.householder_product, (t(5, 3) * 0.3, positive(3))),
    "matmul 2d": (torch.matmul, (t(5, 7), t(7, 3))),
    "matmul batched": (torch.matmul, (t(2, 3, 5, 7), t(2, 3, 7, 4))),
    "matmul broadcast": (torch.matmul, (t(3, 5, 7), t(7, 4))),
    "matvec": (torch.matmul, (t(5, 7), t(7))),
    "dot": (torch.dot, (t(9), t(9))),
    "outer": (torch.outer, (t(5), t(6))),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), (t(2, 4, 5), t(2, 3, 5))),
    "linear": (F.linear, (t(4, 6), t(3, 6), t(3))),
    "baddbmm": (lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=2.0), (t(2, 3, 4), t(2, 3, 5), t(2, 5, 4))),
    "empty product": (torch.matmul, (t(4, 0), t(0, 3))),
    "bilinear": (F.bilinear, (t(4, 3), t(4, 5), t(2, 3, 5), t(2))),
    "conv2d": (lambda x, k, b: F.conv2d(x, k, b, padding=1), (t(2, 4, 7, 6), W33, t(6))),
    "conv2d stride": (lambda x, k: F.conv2d(x, k, stride=2, padding=1), (t(2, 4, 7, 6), W33)),
    "conv2d 1x1 stride": (lambda x, k: F.conv2d(x, k, stride=2), (t(2, 4, 7, 7), W1)),
    "conv2d dilated": (lambda x, k: F.conv2d(x, k, padding=2, dilation=2), (t(2, 4, 9, 8), W33)),
    "conv2d depthwise": (lambda x, k: F.conv2d(x, k, padding=1, groups=8), (t(2, 8, 6, 6), WD)),
    "conv2d groups": (lambda x, k: F.conv2d(x, k, groups=2), (t(2, 8, 6, 6), W33)),
    "conv2d channels last": (
        lambda x, k: F.conv2d(x.to(memory_format=torch.channels_last), k),
        (t(2, 4, 6, 6), W33),
    ),
    "conv1d": (lambda x, k, b: F.conv1d(x, k, b, padding=2), (t(2, 4, 9), t(6, 4, 5), t(6))),
    "conv transpose": (
        lambda x, k, b: F.conv_transpose2d(x, k, b, stride=2, padding=1, output_padding=1),
        (t(2, 4, 5, 5), t(4, 3, 3, 3), t(3)),
    ),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1), (t(2, 3, 8, 8),)),
    "avg pool": (lambda x: F.avg_pool2d(x, 3, 2, 1), (t(2, 3, 8, 8),)),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (t(2, 3, 7, 5),)),
    "global pool": (lambda x: F.adaptive_avg_pool2d(x, 1), (t(2, 3, 7, 5),)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), (t(2, 3, 4, 5),)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1)), (t(2, 3, 4),)),
    "sum": (lambda x: x.sum((0, 2)), (t(3, 4, 5),)),
    "sum all": (lambda x: x.sum(), (t(3, 4, 5),)),
    "sum transposed": (lambda x: x.t().sum(0), (t(30, 4),)),
    "mean keepdim": (lambda x: x.mean(-1, keepdim=True), (t(3, 4, 5),)),
    "var": (lambda x: x.var(1), (t(3, 9),)),
    "std": (lambda x: x.std(unbiased=False), (t(3, 9),)),
    "norm 2": (lambda x: torch.linalg.vector_norm(x, dim=1), (t(3, 9),)),
    "norm 1": (lambda x: torch.linalg.vector_norm(x, 1), (t(3, 9),)),
    "norm 3": (lambda x: torch.linalg.vector_norm(x, 3, dim=0), (t(3, 9),)),
    "norm inf": (lambda x: torch.linalg.vector_norm(x, float("inf"), dim=0), (t(3, 9),)),
    "cumsum": (lambda x: x.cumsum(1), (t(3, 9),)),
    "prod": (lambda x: x.prod(1), (t(3, 5),)),
    "logsumexp": (lambda x: x.logsumexp(1), (t(3, 9),)),
    "amax": (lambda x: x.amax(1), (t(3, 9),)),
    "max": (lambda x: x.max(1).values, (t(3, 9),)),
    "softmax": (lambda x: F.softmax(x, -1), (t(3, 4, 5),)),
    "softmax dim 0": (lambda x: F.softmax(x, 0), (t(3, 4),)),
    "log_softmax": (lambda x: F.log_softmax(x, 1), (t(3, 4, 5),)),
    "cross entropy": (lambda x: F.cross_entropy(x, LABELS), (t(5, 7),)),
    "cross entropy smoothing": (lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1), (t(5, 7),)),
    "cross entropy 2d": (lambda x: F.cross_entropy(x, torch.ones(2, 3, 3, dtype=torch.long)), (t(2, 4, 3, 3),)),
    "cross entropy weights": (
        lambda x: F.cross_entropy(x, LABELS, weight=w(torch.arange(1.0, 8.0), x), reduction="sum"),
        (t(5, 7),),
    ),
    "mse": (F.mse_loss, (t(4, 5), t(4, 5))),
    "l1": (F.l1_loss, (t(4, 5), t(4, 5))),
    "smooth l1": (F.smooth_l1_loss, (t(4, 5), t(4, 5))),
    "huber": (F.huber_loss, (t(4, 5) * 3, t(4, 5))),
    "bce logits": (lambda x: F.binary_cross_entropy_with_logits(x, w(torch.ones(4, 5) * 0.3, x)), (t(4, 5),)),
    "bce": (lambda x: F.binary_cross_entropy(torch.sigmoid(x), w(torch.ones(4, 5) * 0.3, x)), (t(4, 5),)),
    "kl": (lambda x: F.kl_div(F.log_softmax(x, 1), w(torch.full((4, 5), 0.2), x), reduction="batchmean"), (t(4, 5),)),
    "layer norm": (lambda x, a, b: F.layer_norm(x, (6,), a, b), (t(4, 6), t(6), t(6))),
    "layer norm 2d": (lambda x: F.layer_norm(x, (4, 6)), (t(3, 4, 6),)),
    "rms norm": (lambda x, a: F.rms_norm(x, (6,), a), (t(4, 6), t(6))),
    "group norm": (lambda x, a, b: F.group_norm(x, 2, a, b), (t(3, 4, 5, 2), t(4), t(4))),
    "batch norm": (lambda x, a, b: F.batch_norm(x, None, None, a, b, True), (t(5, 4, 3, 2), t(4), t(4))),
    "batch norm 1d": (lambda x, a, b: F.batch_norm(x, None, None, a, b, True), (t(5, 4), t(4), t(4))),
    "batch norm eval": (
        lambda x, a, b: F.batch_norm(x, w(torch.zeros(4), x), w(torch.ones(4) * 2, x), a, b, False),
        (t(5, 4, 3), t(4), t(4)),
    ),
    "instance norm": (lambda x: F.instance_norm(x), (t(3, 4, 5, 6),)),
    "gelu": (F.gelu, (t(40),)),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), (t(40),)),
    "silu": (F.silu, (t(40),)),
    "mish": (F.mish, (t(40),)),
    "softplus": (F.softplus, (t(40) * 12,)),
    "elu": (F.elu, (t(40),)),
    "selu": (F.selu, (t(40),)),
    "leaky relu": (F.leaky_relu, (t(40),)),
    "prelu": (F.prelu, (t(4, 3), positive(3))),
    "hardswish": (F.hardswish, (t(40) * 4,)),
    "hardsigmoid": (F.hardsigmoid, (t(40) * 4,)),
    "relu6": (F.relu6, (t(40) * 5,)),
    "log sigmoid": (F.logsigmoid, (t(40),)),
    "glu": (F.glu, (t(4, 10),)),
    "tanh": (torch.tanh, (t(40),)),
    "sigmoid": (torch.sigmoid, (t(40),)),
    "exp": (torch.exp, (t(40),)),
    "log": (torch.log, (positive(40),)),
    "log1p": (torch.log1p, (positive(40),)),
    "expm1": (torch.expm1, (t(40),)),
    "sqrt": (torch.sqrt, (positive(40),)),
    "rsqrt": (torch.rsqrt, (positive(40),)),
    "sin cos": (lambda x: x.sin() * x.cos(), (t(40),)),
    "erf": (torch.erf, (t(40),)),
    "atan": (torch.atan, (t(40),)),
    "pow 2": (lambda x: x**2, (t(40),)),
    "pow 3": (lambda x: x**3, (t(40),)),
    "pow 2.5": (lambda x: x**2.5, (positive(40),)),
    "pow tensor": (torch.pow, (positive(40), t(40))),
    "scalar pow": (lambda x: 2.0**x, (t(40),)),
    "reciprocal": (torch.reciprocal, (positive(40),)),
    "rsub": (lambda x: 3.0 - x, (t(40),)),
    "division": (lambda x, y: x / y / 3.0, (t(40), positive(40))),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3), (t(40), t(40))),
    "lerp far": (lambda x, y: torch.lerp(x, y, 0.8), (t(40), t(40))),
    "addcmul": (lambda x, y, z: torch.addcmul(x, y, z, value=0.3), (t(40), t(40), t(40))),
    "addcdiv": (lambda x, y, z: torch.addcdiv(x, y, z, value=0.3), (t(40), t(40), positive(40))),
    "where": (lambda x, y: torch.where(x > 0, x, y), (t(40), t(40))),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), (t(40),)),
    "embedding": (lambda x: F.embedding(torch.tensor([[1, 2, 2], [0, 4, 1]]), x), (t(5, 6),)),
    "embedding padding": (lambda x: F.embedding(torch.tensor([1, 2, 2, 0]), x, padding_idx=2), (t(5, 6),)),
    "gather": (lambda x: x.gather(1, torch.tensor([[0, 0], [2, 1]])), (t(2, 3),)),
    "index": (lambda x: x[torch.tensor([1, 1, 0])] * 2, (t(3, 4),)),
    "index_add": (lambda x, y: x.index_add(0, torch.tensor([1, 1]), y), (t(3, 4), t(2, 4))),
    "scatter_add": (lambda x, y: x.scatter_add(0, torch.tensor([[1, 1, 0, 0]]), y), (t(3, 4), t(1, 4))),
    "cat split": (lambda x, y: torch.cat([x, y], 1).split(3, 1)[1] * 2, (t(3, 4), t(3, 5))),
    "sort": (lambda x: x.sort(1).values * 2, (t(3, 7),)),
    "topk": (lambda x: x.topk(3, 1).values * 2, (t(3, 7),)),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (t(2, 3, 5, 4), t(2, 3, 5, 4), t(2, 3, 5, 4)),
    ),
    "attention mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(5, 5).tril().bool()),
        (t(2, 3, 5, 4), t(2, 3, 5, 4), t(2, 3, 5, 4)),
    ),
    "multihead": (lambda x: like(ATTENTION, x)(x, x, x, need_weights=False)[0], (t(2, 5, 12),)),
    "encoder layer": (lambda x: like(ENCODER, x)(x), (t(2, 5, 12),)),
    "lstm": (lambda x: like(LSTM, x)(x)[0], (t(2, 5, 6),)),
    "gru": (lambda x: like(GRU, x)(x)[0], (t(2, 5, 6),)),
    "cosine similarity": (lambda x, y: F.cosine_similarity(x, y), (t(4, 6), t(4, 6))),
    "normalize": (lambda x: F.normalize(x, dim=1), (t(4, 6),)),
    "cdist": (lambda x, y: (x[:, None] - y[None]).pow(2).sum(-1), (t(4, 6), t(3, 6))),
    "unfold": (lambda x: F.unfold(x, 3, padding=1), (t(2, 3, 5, 5),)),
    "bilinear up": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (t(1, 2, 4, 5),)),
    "reflect": (lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"), (t(1, 2, 4, 5),)),
    "replicate": (lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"), (t(1, 2, 4, 5),)),
    "adaptive max": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (t(1, 2, 7, 5),)),
    "weight norm": (lambda x, v, g: F.linear(x, torch._weight_norm(v, g, 0)), (t(2, 4), t(3, 4), positive(3, 1))),
    "soft margin": (lambda x: F.soft_margin_loss(x, w(torch.ones(4, 5), x)), (t(4, 5),)),
    "celu": (F.celu, (t(40),)),
    "softshrink": (F.softshrink, (t(40),)),
    "hardshrink": (F.hardshrink, (t(40),)),
    "logaddexp": (torch.logaddexp, (t(9), t(9))),
    "xlogy": (torch.xlogy, (positive(9), positive(9))),
    "std_mean": (lambda x: torch.std_mean(x, 1)[0], (t(4, 6),)),
    "nan_to_num": (torch.nan_to_num, (t(9),)),
    "cumprod": (lambda x: x.cumprod(1), (positive(3, 5),)),
    "cross": (lambda x, y: torch.linalg.cross(x, y), (t(4, 3), t(4, 3))),
    "tan": (torch.tan, (t(9) / 3,)),
    "asin": (torch.asin, (positive(9) / 2,)),
    "hypot": (torch.hypot, (t(9), t(9))),
    "tril": (lambda x: (x @ x.t()).tril(), (t(4, 6),)),
}  # fmt: skip


def run(f: Callable[..., Tensor], inputs: tuple[Tensor, ...], weight: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Value, and gradients of a weighted sum of it."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = f(*leaves)
    seed = torch.ones_like(y) if weight is None else weight.to(y.dtype)
    y.backward(seed)
    return y.detach(), [x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves]


@pytest.mark.parametrize("name", list(CASES))
def test_values_and_gradients(name: str) -> None:
    f, inputs = CASES[name]
    wide = tuple(x.double() for x in inputs)
    shape = f(*wide).shape
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    wanted, wanted_grads = run(f, wide, weight)
    session = Session(Plain(), Policy(), 0)
    with session.step(1):
        found, found_grads = run(f, inputs, weight)
    for a, b in zip([found, *found_grads], [wanted, *wanted_grads], strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)
    assert session.engine.seq > 0 or name in NOTHING_TO_SETTLE


NOTHING_TO_SETTLE = {
    "pad", "amax", "max", "relu6", "leaky relu", "where", "clamp", "rsub", "division", "lerp", "lerp far", "addcmul",
    "addcdiv", "norm inf", "cat split", "sort", "topk", "hardswish", "hardsigmoid", "pow 2", "pow 3", "reciprocal",
    "reflect", "softshrink", "hardshrink", "nan_to_num", "cross",
}  # fmt: skip


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (3, 5), (2, 4, 3)])
def test_reflections_give_the_matrix_again(shape: tuple[int, ...]) -> None:
    a = t(*shape)
    with Session(Plain(), Policy(), 0).step(1):
        factors, tau = torch.geqrf(a)
        zero = torch.geqrf(torch.zeros(3, 2))
    wanted, factor = torch.geqrf(a.double())
    assert torch.allclose(factors.double(), wanted, atol=1e-5) and torch.allclose(tau.double(), factor, atol=1e-5)
    assert not any(part.any() for part in zero)


def test_grouped_products_are_the_products_of_the_groups() -> None:
    a, b = t(7, 8), t(3, 8, 16)
    offs = torch.tensor([3, 3, 7], dtype=torch.int32)
    x, w3 = a.clone().requires_grad_(), b.clone().requires_grad_()
    with Session(Plain(), Policy(), 0).step(1):
        y = torch._grouped_mm(x, w3, offs=offs)
        y.backward(torch.ones_like(y))
    da, db = torch.empty_like(a), torch.zeros_like(b)
    with Session(Plain(), Policy(), 0).step(1):
        for g, (start, end) in enumerate([(0, 3), (3, 3), (3, 7)]):
            assert torch.equal(y[start:end], a[start:end] @ b[g])
            da[start:end] = torch.ones(end - start, 16) @ b[g].t()
            db[g] = a[start:end].t() @ torch.ones(end - start, 16)
    assert x.grad is not None
    assert w3.grad is not None
    assert torch.equal(x.grad, da)
    assert torch.equal(w3.grad, db)


def test_of_equal_elements_the_lowest_index_comes_first() -> None:
    x = torch.tensor([2.0, 1.0, 2.0, 0.0, 1.0, 2.0] * 40)
    with Session(Plain(), Policy(), 0).step(1):
        order, top, best = x.sort(descending=True).indices, x.topk(120).indices, x.argmax()
    wanted = sorted(range(len(x)), key=lambda i: -float(x[i]))
    assert order.tolist() == wanted
    assert top.tolist() == wanted[:120]
    assert int(best) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear", "conv2d", "layer norm", "softmax", "gelu", "silu", "cross entropy", "tanh"])
def test_narrow_tensors(name: str, dtype: torch.dtype) -> None:
    f, inputs = CASES[name]
    narrow = tuple(x.to(dtype) for x in inputs)
    wanted, wanted_grads = run(f, tuple(x.double() for x in narrow), None)
    with Session(Plain(), Policy(), 0).step(1):
        found, found_grads = run(f, narrow, None)
    for a, b in zip([found, *found_grads], [wanted, *wanted_grads], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=4e-2, atol=4e-2)
