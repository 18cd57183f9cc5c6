"""Softmax, the norms and the activations against their sequences of float32 operations, in every bit."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import array, assert_same, numbers, strange

from vtrain.engine.listener import Plain
from vtrain.engine.ops import normalization, pointwise, softmax
from vtrain.engine.session import Session
from vtrain.kernels import canonical
from vtrain.policy import Policy

Tensor = torch.Tensor
WIDTHS = [1, 2, 31, 32, 33, 64, 97, 1000]
AREAS = [1, 2, 4, 16, 25, 32, 49, 63, 64, 65, 196]
EPS = [1e-5, 0.0, 1e-12]


def rows_of(n: int) -> list[Tensor]:
    """Rows of n numbers: ordinary, hard, equal, zero, with infinities, NaN and the ends of the range."""
    edge = torch.tensor([88.7, 88.8, -87.3, -103.9, -104.0, 0.0, -0.0, 1e-45, 3.4028235e38, -3.4028235e38])
    return [
        numbers(5, n, seed=1, spread=2), numbers(3, n, seed=2), strange(9, n, seed=3), torch.full((2, n), 0.1),
        torch.zeros(1, n), torch.full((1, n), -math.inf), edge.repeat(1 + 2 * n // 10)[: 2 * n].view(2, n),
        torch.where(torch.arange(n) == n - 1, torch.tensor(math.inf), numbers(2, n, seed=4)),
        torch.where(torch.arange(n) == n // 2, torch.tensor(math.nan), numbers(2, n, seed=5)),
    ]  # fmt: skip


# ---- softmax --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", WIDTHS)
def test_softmax(n: int) -> None:
    for x in rows_of(n):
        assert_same(canonical.softmax("softmax", 1, x), naive.softmax(array(x)))
        assert_same(canonical.softmax("log_softmax", 1, x), naive.log_softmax(array(x)))


@pytest.mark.parametrize("n", WIDTHS)
def test_softmax_backward(n: int) -> None:
    for q, x in enumerate(rows_of(n)):
        grad = numbers(*x.shape, seed=10 + q)
        for name, twin in (
            ("softmax", naive.softmax_backward),
            ("log_softmax", naive.log_softmax_backward),
        ):
            for y in (canonical.softmax(name, 1, x), x):
                got = canonical.softmax(name, 1, y=y, grad=grad)
                assert_same(got, twin(array(y), array(grad)), name)


def test_softmax_along_any_dimension_of_any_layout() -> None:
    x = numbers(4, 5, 33, seed=6, spread=2)
    for view in (x, x.permute(2, 0, 1), x.mT, x[:, ::2], x[:, :1].expand(4, 6, 33)):
        for dim in (-1, 0, 1, 2):
            last = view.movedim(dim, -1)
            want = naive.softmax(array(last.reshape(-1, last.shape[-1]))).reshape(last.shape)
            got = canonical.softmax("softmax", dim, view)
            assert got.is_contiguous()
            assert_same(got.movedim(dim, -1), want)
            grad = numbers(*view.shape[::-1], seed=7).permute(2, 1, 0)
            flat = grad.movedim(dim, -1).reshape(-1, last.shape[-1])
            back = naive.softmax_backward(want.reshape(flat.shape), array(flat)).reshape(last.shape)
            assert_same(canonical.softmax("softmax", dim, y=got, grad=grad).movedim(dim, -1), back)
    assert canonical.softmax("softmax", 0, torch.tensor(3.0)).item() == 1.0
    assert canonical.softmax("softmax", 1, torch.empty(2, 0)).shape == (2, 0)
    assert canonical.softmax("softmax", 1, torch.empty(0, 3)).shape == (0, 3)


def test_long_rows() -> None:
    """More than one segment of the sum, more than one piece for the threads."""
    x = numbers(2, 16385, seed=8, spread=1)
    assert_same(canonical.softmax("softmax", 1, x), naive.softmax(array(x)))
    want = naive.layer_norm(array(x), None, None, 1e-5)
    for got, twin in zip(canonical.layer_norm(x, 16385, None, None, 1e-5), want, strict=True):
        assert_same(got, twin)


# ---- norms of rows --------------------------------------------------------------------------------------------------
def affine(n: int) -> list[tuple[Tensor | None, Tensor | None]]:
    weight, bias = numbers(n, seed=20, spread=1), numbers(2 * n, seed=21, spread=1)[::2]
    return [(None, None), (weight, None), (weight, bias), (None, bias), (strange(n, seed=22), strange(n, seed=23))]


@pytest.mark.parametrize("n", WIDTHS)
def test_layer_norm(n: int) -> None:
    for q, x in enumerate(rows_of(n)):
        for weight, bias in affine(n):
            eps = EPS[q % 3]
            got = canonical.layer_norm(x, n, weight, bias, eps)
            want = naive.layer_norm(array(x), array(weight), array(bias), eps)
            for what, a, b in zip(("y", "mean", "rstd"), got, want, strict=True):
                assert_same(a, b, what)
            grad = numbers(*x.shape, seed=24 + q)
            back = canonical.layer_norm_backward(x, n, grad, got[1], got[2], weight)
            assert_same(back, naive.layer_norm_backward(array(x), array(grad), want[1], want[2], array(weight)))


@pytest.mark.parametrize("n", WIDTHS)
def test_rms_norm(n: int) -> None:
    for q, x in enumerate(rows_of(n)):
        for weight, _ in affine(n):
            eps = EPS[q % 3]
            got, want = canonical.rms_norm(x, n, weight, eps), naive.rms_norm(array(x), array(weight), eps)
            for what, a, b in zip(("y", "rstd"), got, want, strict=True):
                assert_same(a, b, what)
            grad = numbers(*x.shape, seed=25 + q)
            back = canonical.rms_norm_backward(x, n, grad, got[1], weight)
            assert_same(back, naive.rms_norm_backward(array(x), array(grad), want[1], array(weight)))


def test_norms_of_any_layout() -> None:
    x, weight = numbers(33, 6, seed=26).T, numbers(4, 33, seed=27)[0]
    flat = x.contiguous()
    for got, want in zip(canonical.layer_norm(x, 33, weight, None, 1e-5),
                         canonical.layer_norm(flat, 33, weight, None, 1e-5), strict=True):  # fmt: skip
        assert_same(got, array(want))
    deep = numbers(2, 3, 4, 5, seed=28)
    got = canonical.rms_norm(deep, 20, None, 1e-5)
    want = naive.rms_norm(array(deep.view(6, 20)), None, 1e-5)
    assert_same(got[0].view(6, 20), want[0])
    assert_same(got[1], want[1])
    assert canonical.layer_norm(torch.empty(0, 4), 4, None, None, 1e-5)[1].shape == (0,)


# ---- batch norm -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("channels", [1, 3, 37])
def test_channel_norm(channels: int, area: int) -> None:
    for make in (numbers, strange):
        for shape in ((4, channels, area), (1, channels, 1, area), (3, channels, area, 1)):
            x, grad = make(*shape, seed=30), make(*shape, seed=31)
            mean, gain, bias, offset, slope = (make(channels, seed=s) for s in range(32, 37))
            views = [x] if len(shape) < 4 else [x, x.to(memory_format=torch.channels_last)]
            for view in views:
                for b in (None, bias):
                    got = canonical.channel_norm(view, mean, gain, b)
                    assert_same(got, naive.channel_norm(array(x), array(mean), array(gain), array(b)))
                got = canonical.channel_norm_backward(view, grad, mean, offset, slope, gain)
                want = [array(t) for t in (x, grad, mean, offset, slope, gain)]
                assert_same(got, naive.channel_norm_backward(*want))


def test_channel_norm_of_two_dimensions_and_of_nothing() -> None:
    x, mean, gain = numbers(7, 33, seed=37), numbers(33, seed=38), numbers(33, seed=39)
    assert_same(
        canonical.channel_norm(x, mean, gain, mean), naive.channel_norm(array(x), *map(array, (mean, gain, mean)))
    )
    assert canonical.channel_norm(torch.empty(0, 33, 4), mean, gain, None).shape == (0, 33, 4)


# ---- activations ----------------------------------------------------------------------------------------------------
SIZES = [1, 31, 32, 33, 4095, 4096, 4097, 20000]


@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh", "silu"])
def test_activations(name: str) -> None:
    for n in SIZES:
        for x, grad in (
            (numbers(n, seed=40, spread=3), numbers(n, seed=41)),
            (strange(n, seed=42), strange(n, seed=43)),
        ):
            assert_same(canonical.activation(name, x), naive.activation(name, array(x), None))
            assert_same(canonical.activation(name, x, grad), naive.activation(name, array(x), array(grad)))
    square = numbers(30, 40, seed=44).T
    assert_same(canonical.activation(name, square), naive.activation(name, array(square), None))
    assert canonical.activation(name, torch.empty(0)).shape == (0,)


@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 20.0), (0.1, 20.0), (3.7, 5.0), (-2.0, 0.0), (0.0, 1.0)])
def test_softplus(beta: float, threshold: float) -> None:
    edge = torch.tensor(
        [threshold, math.nextafter(threshold, math.inf), threshold + 1e-5, math.nan, math.inf, -math.inf]
    )
    for x in (numbers(4097, seed=45, spread=4), strange(333, seed=46), edge):
        grad = numbers(*x.shape, seed=47)
        got = canonical.activation("softplus", x, None, beta, threshold)
        assert_same(got, naive.softplus(array(x), None, beta, threshold))
        got = canonical.activation("softplus", x, grad, beta, threshold)
        assert_same(got, naive.softplus(array(x), array(grad), beta, threshold))


@pytest.mark.parametrize("name", sorted(canonical.FUNCTIONS - {"sin", "cos"}))
def test_functions_of_any_type_round_one_result(name: str) -> None:
    """float32 in or out differ from float64 by exact widening and one rounding alone; layouts change nothing."""
    x = torch.cat([numbers(4097, seed=48), strange(1000, seed=49)])
    wide = canonical.function(name, x.double(), torch.float64)
    assert_same(canonical.function(name, x, torch.float64), array(wide))
    assert_same(canonical.function(name, x), array(wide.float()))
    assert_same(canonical.function(name, x.double()), array(wide.float()))
    pairs = x[:5096].view(-1, 2)
    assert_same(canonical.function(name, pairs.T, torch.float64), array(wide[:5096].view(-1, 2).T))
    assert canonical.function(name, torch.empty(0, 3)).shape == (0, 3)


# ---- what the engine makes of them ----------------------------------------------------------------------------------
def by_pieces(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with canonical sums and functions, for a composite that is not fused."""

    def wrapped(engine: Any, *args: Any, **kwargs: Any) -> Any:
        before, engine.canonical = engine.canonical, True
        try:
            return f(engine, *args, **kwargs)
        finally:
            engine.canonical = before

    return wrapped


PIECES = "settled_sum settle_function exp32 log32 mean_square moments product_sum".split()


@contextlib.contextmanager
def unfused(patch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session whose composites are sequences of operations, of which sums and functions are canonical kernels."""
    with patch.context() as p:
        for module in (softmax, normalization, pointwise):
            for name in PIECES:
                if hasattr(module, name):
                    p.setattr(module, name, by_pieces(getattr(module, name)))
        session = Session(Plain(), Policy(matmul="chain", other="logged"), 0)
        yield session


def batch_norm(x: Tensor) -> Tensor:
    mean, var = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    y = F.batch_norm(x, mean, var, numbers(x.shape[1], seed=51), numbers(x.shape[1], seed=52), True)
    return torch.cat([y.flatten(), mean, var])


COMPOSITES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, 1),
    "softmax of columns": lambda x: F.softmax(x, 0),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "layer_norm": lambda x: F.layer_norm(
        x, x.shape[2:], numbers(*x.shape[2:], seed=53), numbers(*x.shape[2:], seed=54)
    ),
    "layer_norm of two": lambda x: F.layer_norm(x, x.shape[1:]),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[2:], numbers(*x.shape[2:], seed=55), 1e-6),
    "batch_norm": batch_norm,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, 0.7, 5.0),
}


@pytest.mark.parametrize("shape", [(3, 5, 33), (7, 33, 1), (2, 3, 100)], ids=str)
@pytest.mark.parametrize("name", COMPOSITES)
def test_fused_composites_are_the_unfused_sequence(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(session: Session) -> list[Tensor]:
        x = numbers(*shape, seed=56, spread=2).requires_grad_()
        with session.step(1):
            y = COMPOSITES[name](x)
            y.backward(numbers(*y.shape, seed=57))
        assert x.grad is not None
        return [y.detach(), x.grad]

    fused = run(Session(Plain(), Policy(matmul="chain"), 0))
    with unfused(monkeypatch) as session:
        sequence = run(session)
    for what, a, b in zip(("y", "gradient"), fused, sequence, strict=True):
        assert_same(a, array(b), what)


def test_the_unfused_session_reaches_no_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the comparison above is not one of a kernel with itself."""
    called: list[str] = []
    for name in "softmax layer_norm layer_norm_backward rms_norm rms_norm_backward channel_norm activation".split():
        monkeypatch.setattr(canonical, name, lambda *_, n=name: called.append(n))
    with unfused(monkeypatch) as session:
        for f in COMPOSITES.values():
            x = numbers(3, 5, 33, seed=58, spread=2).requires_grad_()
            with session.step(1):
                f(x).sum().backward()
    assert called == []
