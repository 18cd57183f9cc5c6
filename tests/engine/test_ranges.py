"""No order of a sum or a product leaves the compute type's range: otherwise no error bound would hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from vtrain.engine.definition import dtype_name
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy
from vtrain.rounding.bounds import LONGEST, U

BIG = [3e38, 3e38, -3e38, -3e38]


@pytest.mark.parametrize("policy", [Policy(target="bfloat16"), Policy(target="float16"), Policy(bits=8), Policy()])
def test_products_near_the_top_of_the_range(policy: Policy) -> None:
    """A partial sum that overflows float32 in one order and not in another."""
    found = set()
    for order in set(itertools.permutations(BIG)):
        with Session(Plain(), policy, 0).step(1):
            row = torch.tensor([order])
            found.add(float(row @ torch.ones(4, 1)))
            found.add(float(torch.nn.functional.conv1d(row.view(1, 1, 4), torch.ones(1, 1, 4))))
            found.add(float(torch.nn.functional.linear(row, torch.ones(1, 4), torch.zeros(1))))
    assert found == {0.0}


class Types(Plain):
    """Which C each result was computed in, and its bound."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def settle(self, site, y, scale, vary=None):  # type: ignore[no-untyped-def]
        self.found.append(dtype_name(y.dtype))
        assert scale().kappa * U[self.found[-1]] < 2.0**-8
        return super().settle(site, y, scale, vary)


def c_of(call: Callable[[], object], policy: Policy | None = None) -> list[str]:
    types = Types()
    with Session(types, policy or Policy(target="bfloat16"), 0).step(1):
        call()
    return types.found


LONG = LONGEST["float32"]


@pytest.mark.parametrize(("n", "c"), [(LONG, "float32"), (LONG + 1, "float64"), (2**20, "float64"), (2**23, "float64")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_sums_of_products_are_wide(n: int, c: str, dtype: torch.dtype) -> None:
    """AuxiliaryState 2^15 terms float32's bound is no use, and beyond 2^23 it has none."""
    row, col = torch.ones(1, n, dtype=dtype), torch.ones(n, 1, dtype=dtype)
    for call in (
        lambda: row @ col,
        lambda: torch.bmm(row[None], col[None]),
        lambda: torch.dot(row[0], col[:, 0]),
        lambda: torch.addmm(torch.ones(1, dtype=dtype), row, col),
        lambda: torch.mv(row, col[:, 0]),
        lambda: torch._grouped_mm(row, col, offs=torch.tensor([n // 2, n], dtype=torch.int32)),
    ):
        assert c_of(call) == [c]


def test_long_sums_of_convolutions_are_wide() -> None:
    """Depth, the terms of an input's gradient, and samples times positions."""
    n = LONG // 32 + 1
    x, weight = torch.ones(1, n, 1, 32), torch.ones(1, n, 1, 32)
    assert c_of(lambda: torch.conv2d(x, weight)) == ["float64"]
    assert c_of(lambda: torch.conv_transpose2d(torch.ones(1, n, 1, 1), torch.ones(n, 1, 1, 32))) == ["float64"]
    mask, one = [True, True, False], [1, 1]
    grad, image, tap = torch.ones(33, 1, 32, 32), torch.ones(33, 1, 32, 32), torch.ones(1, 1, 1, 1)
    back = lambda: torch.ops.aten.convolution_backward(grad, image, tap, None, one, [0, 0], one, False, [0, 0], 1, mask)  # noqa: E731
    assert c_of(back) == ["float32", "float64"]


@pytest.mark.parametrize(
    ("alpha", "beta", "c"),
    [
        (1.0, 1.0, "float32"), (1 / 3, 1.0, "float32"), (-0.5, -7.0, "float32"), (2.0**-126, 2.0**-126, "float32"),
        (0.0, 0.0, "float32"), (1.5, 1.0, "float64"), (2.0**120, 0.0, "float64"), (2.0**-127, 1.0, "float64"),
        (1.0, 1e-40, "float64"), (1e300, 1.0, None), (1.0, math.inf, None), (math.nan, 1.0, None), (1e-300, 1.0, None),
    ],
)  # fmt: skip
def test_factors(alpha: float, beta: float, c: str | None) -> None:
    """float32 where it keeps the bound with them, else float64, and where that has none an error."""
    a, b, bias = torch.ones(2, 3), torch.ones(3, 2), torch.ones(2)
    for call in (
        lambda: torch.addmm(bias, a, b, alpha=alpha, beta=beta),
        lambda: torch.baddbmm(bias, a[None], b[None], alpha=alpha, beta=beta),
        lambda: torch.addmv(bias, a, b[:, 0], alpha=alpha, beta=beta),
    ):
        if c is None:
            with pytest.raises(UnsupportedOperation, match=r"a factor of .*2\^-700"):
                c_of(call)
        else:
            assert c_of(call) == [c]


def test_a_float16_bias_times_a_factor_leaves_float32() -> None:
    """No pass over float16 is needed to know its largest value, but a factor may carry that beyond 2^126."""
    a, b, bias = (torch.ones(shape, dtype=torch.float16) for shape in ((2, 3), (3, 2), (2,)))
    assert c_of(lambda: torch.addmm(bias, a, b, beta=2.0**110)) == ["float32"]
    assert c_of(lambda: torch.addmm(bias, a, b, beta=2.0**111)) == ["float64"]


def test_a_factor_of_a_scatter_that_leaves_the_range() -> None:
    with pytest.raises(UnsupportedOperation, match="a factor of 1e\\+300"):
        c_of(lambda: torch.zeros(2).index_add(0, torch.tensor([0]), torch.ones(1), alpha=1e300), Policy(other="logged"))


def test_a_broadcast_value_is_as_many_terms_as_it_has_places() -> None:
    """x[0] += 1, a thousand times, from one value."""
    kappas: list[float] = []

    class Kappas(Plain):
        def settle(self, site, y, scale, vary=None):  # type: ignore[no-untyped-def]
            kappas.append(scale().kappa)
            return super().settle(site, y, scale, vary)

    with Session(Kappas(), Policy(other="logged"), 0).step(1):
        places = torch.zeros(1000, dtype=torch.int64)
        torch.full((2,), 2.0**-40).index_put((places,), torch.tensor(1.0), accumulate=True)
    assert kappas[0] > 1000


def test_an_infinite_weight_beside_finite_elements() -> None:
    """An element that the infinite tap does not reach has a finite value, and so a finite bound."""
    weight = torch.tensor([[[[math.inf, 2.0, 1.0]]]])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Bounds(Plain):
        def settle(self, site, y, scale, vary=None):  # type: ignore[no-untyped-def]
            seen.append((y.reshape(-1).clone(), scale().dense(y).reshape(-1)))
            return super().settle(site, y, scale, vary)

    with Session(Bounds(), Policy(), 0).step(1):
        torch.conv_transpose2d(torch.ones(1, 1, 1, 4), weight)
    (y, s), finite = seen[0], seen[0][0].isfinite()
    assert finite.tolist() == [False] * 4 + [True] * 2 and bool((s[finite] >= y[finite].abs()).all())
    assert bool(s[finite].isfinite().all())


def test_a_bfloat16_module_near_the_top() -> None:
    with Session(Plain(), Policy(), 0).step(1):
        row = torch.tensor([BIG], dtype=torch.bfloat16)
        assert float(row @ torch.ones(4, 1, dtype=torch.bfloat16)) == 0.0


def test_what_overflows_in_every_order_is_infinite() -> None:
    with Session(Plain(), Policy(target="bfloat16"), 0).step(1):
        y = torch.full((1, 4), 3e38) @ torch.ones(4, 1)
        z = torch.tensor([[float("inf"), 1.0]]) @ torch.ones(2, 1)
        assert float(y) == float("inf")
        assert float(z) == float("inf")
        assert bool((torch.tensor([[float("inf"), -float("inf")]]) @ torch.ones(2, 1)).isnan())


def test_products_of_many_factors() -> None:
    """1e30^12 * 1e-30^12 passes 1e360 in one order, and 1e-360 in another."""
    factors = [1e30] * 12 + [1e-30] * 12
    orders = [factors, factors[::-1], [f for pair in zip(factors[:12], factors[12:], strict=True) for f in pair]]
    found, running = set(), set()
    for order in orders:
        with Session(Plain(), Policy(), 0).step(1):
            x = torch.tensor(order)
            found.add(float(x.prod()))
            running.add(float(x.cumprod(0)[-1]))
    assert len(found) == len(running) == 1
    assert found == running
    assert abs(found.pop() - 1) < 1e-5


def test_products_with_special_values() -> None:
    with Session(Plain(), Policy(), 0).step(1):
        assert float(torch.tensor([3.0, 0.0, -2.0]).prod()) == 0.0
        assert float(torch.tensor([3.0, float("inf")]).prod()) == float("inf")
        assert bool(torch.tensor([3.0, float("nan")]).prod().isnan())
        assert float(torch.tensor([1e30, 1e30]).prod()) == float("inf")
        assert float(torch.tensor([1e-30, 1e-30]).prod()) == 0.0
