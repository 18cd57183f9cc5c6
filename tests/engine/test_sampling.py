"""Draws of torch.distributions: their distribution, and the same bits whatever the machine."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributions as dist

import vtrain
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy
from vtrain.profiles import profile_environment

N = 20_000
Cdf = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are not validated: that is no part of a draw."""
    monkeypatch.setattr(dist.Distribution, "_validate_args", False)


def full(value: float) -> torch.Tensor:
    return torch.full((N,), value)


def gamma_cdf(shape: float) -> Cdf:
    return lambda x: torch.special.gammainc(torch.full_like(x, shape), x)


CONTINUOUS: dict[str, tuple[Callable[[], torch.Tensor], Cdf]] = {
    **{
        f"gamma {a}": (lambda a=a: torch._standard_gamma(full(a)), gamma_cdf(a))
        for a in (0.2, 0.7, 1.0, 1.5, 30.0, 4e5)
    },
    "beta": (lambda: dist.Beta(full(2.0), full(1.0)).sample(), lambda x: x**2),
    "beta low": (
        lambda: dist.Beta(full(0.5), full(0.5)).sample(),
        lambda x: torch.asin(x.sqrt()) * (2 / math.pi),
    ),
    "dirichlet": (lambda: torch._sample_dirichlet(torch.ones(N, 5))[:, 4], lambda x: 1 - (1 - x) ** 4),
    "cauchy": (lambda: torch.empty(N).cauchy_(2.0, 3.0), lambda x: torch.atan((x - 2) / 3) / math.pi + 0.5),
    "log_normal": (lambda: torch.empty(N).log_normal_(0.5, 2.0), lambda x: torch.special.ndtr((x.log() - 0.5) / 2)),
    "normal": (lambda: torch.normal(1.0, 2.0, (N,)), lambda x: torch.special.ndtr((x - 1) / 2)),
    "student": (lambda: dist.StudentT(full(2.0)).sample(), lambda x: 0.5 + x / (2 * (2 + x * x).sqrt())),
    "chi2": (
        lambda: dist.Chi2(full(3.0)).sample(),
        lambda x: torch.special.gammainc(torch.full_like(x, 1.5), x / 2),
    ),
    "random_": (lambda: torch.empty(N).random_() / 2**24, lambda x: x),
    "random_ int64": (lambda: torch.empty(N, dtype=torch.int64).random_(), lambda x: x / 2**63),
    "rrelu": (lambda: -torch.rrelu(-torch.ones(N), 0.25, 0.75, training=True), lambda x: (x - 0.25) * 2),
    "gumbel": (lambda: dist.Gumbel(full(0.0), full(1.0)).sample(), lambda x: torch.exp(-torch.exp(-x))),
    "laplace": (
        lambda: dist.Laplace(full(0.0), full(1.0)).sample(),
        lambda x: torch.where(x < 0, x.exp() / 2, 1 - (-x).exp() / 2),
    ),
    "weibull": (lambda: dist.Weibull(full(1.0), full(2.0)).sample(), lambda x: 1 - torch.exp(-(x**2))),
    "pareto": (lambda: dist.Pareto(full(1.0), full(3.0)).sample(), lambda x: 1 - x ** (-3.0)),
}


@pytest.mark.parametrize("name", list(CONTINUOUS))
def test_continuous(name: str) -> None:
    draw, cdf = CONTINUOUS[name]
    with vtrain.seeded(1):
        drawn = draw()
    x = drawn.double().sort().values
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    f = cdf(x)
    distance = max(float((steps[1:] - f).max()), float((f - steps[:-1]).max()))
    assert distance * math.sqrt(N) < 1.95  # Kolmogorov and Smirnov: of all but 0.1 % of seeds
    assert distance * math.sqrt(N) > 0.3  # and it is not the uniform grid


def poisson_pmf(k: int, rate: float) -> float:
    return math.exp(k * math.log(rate) - rate - math.lgamma(k + 1))


def binomial_pmf(k: int, n: int, p: float) -> float:
    if k > n:
        return 0.0
    chosen = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(chosen + k * math.log(p) + (n - k) * math.log1p(-p))


Pmf = Callable[[int], float]
DISCRETE: dict[str, tuple[Callable[[], torch.Tensor], Pmf]] = {
    **{
        f"poisson {r}": (lambda r=r: torch.poisson(full(r)), lambda k, r=r: poisson_pmf(k, r)) for r in (0.3, 9.0, 40.0)
    },
    "poisson 700": (lambda: torch.poisson(full(700.0)), lambda k: poisson_pmf(k, 700.0)),
    **{
        f"binomial {n} {p}": (
            lambda n=n, p=p: torch.binomial(full(float(n)), full(p)),
            lambda k, n=n, p=p: binomial_pmf(k, n, p),
        )
        for n, p in ((1, 0.3), (16, 0.5), (17, 0.9), (300, 0.02), (1000, 0.6))
    },
    "geometric": (lambda: torch.empty(N).geometric_(0.2), lambda k: 0.2 * 0.8 ** (k - 1) if k else 0.0),
    "geometric distribution": (lambda: dist.Geometric(full(0.3)).sample(), lambda k: 0.3 * 0.7**k),
    "negative binomial": (
        lambda: dist.NegativeBinomial(full(3.0), probs=full(0.4)).sample(),
        lambda k: math.comb(k + 2, k) * 0.6**3 * 0.4**k,
    ),
    "categorical": (
        lambda: dist.Categorical(torch.tensor([[0.1, 0.2, 0.7]])).sample((N,)),  # type: ignore[arg-type]
        lambda k: (0.1, 0.2, 0.7)[k] if k < 3 else 0.0,
    ),
    "random_ bool": (lambda: torch.empty(N, dtype=torch.bool).random_(), lambda k: 0.5 * (k < 2)),
    "randint_like": (lambda: torch.randint_like(full(0.0), torch.tensor(4)), lambda k: 0.25 * (k < 4)),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("name", list(DISCRETE))
def test_discrete(name: str) -> None:
    draw, pmf = DISCRETE[name]
    with vtrain.seeded(2):
        drawn = draw().flatten().to(torch.int64)
    counts = torch.bincount(drawn).tolist()
    cells: list[tuple[float, float]] = []
    have = want = 0.0
    for k in range(len(counts)):
        have, want = have + counts[k], want + N * pmf(k)
        if want >= 20:
            cells.append((have, want))
            have = want = 0.0
    cells.append((have, max(N - sum(w for _, w in cells), 1.0)))
    chi2 = sum((h - w) ** 2 / w for h, w in cells)
    free = len(cells) - 1
    assert chi2 < free + 3 * math.sqrt(2 * free) + 5


def test_no_function_of_a_library_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last digit of one would change a decision in 10^16, which no test of bits would meet."""

    def none(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("a function that differs by processor")

    for name in ("log", "log1p", "exp", "pow", "sqrt", "sin", "cos", "tan", "sum", "reciprocal"):
        for owner in (torch, torch.Tensor):
            for form in (name, f"{name}_", f"__{name}__"):
                if hasattr(owner, form):
                    monkeypatch.setattr(owner, form, none)
    x, session = torch.full((300,), 40.0), Session(Plain(), Policy(), 0)
    with session.step(1):
        torch.poisson(x)
        torch.binomial(x, x / 100)
        torch._sample_dirichlet((x / 80).view(100, 3))
        for draw in (torch.Tensor.cauchy_, torch.Tensor.log_normal_, torch.Tensor.random_):
            draw(x)
        x.geometric_(0.3)


def test_special_parameters() -> None:
    nan = float("nan")
    with vtrain.seeded(0):
        gamma = torch._standard_gamma(torch.tensor([0.0, nan, -1.0, 1e-30, float("inf")]))
        poisson = torch.poisson(torch.tensor([0.0, nan]))
        binomial = torch.binomial(torch.tensor([0.0, 5.0, 5.0, 50.0]), torch.tensor([0.5, nan, 1.0, 0.0]))
        empty = [f(torch.empty(0, 3)) for f in (torch._standard_gamma, torch._sample_dirichlet, torch.poisson)]
        ints = torch.empty(3, 4, dtype=torch.int32).geometric_(1.0)
        half = torch._standard_gamma(torch.full((9,), 3.0, dtype=torch.bfloat16))
        with pytest.raises(UnsupportedOperation, match="negative rate"):
            torch.poisson(torch.tensor([-1.0]))
        with pytest.raises(UnsupportedOperation, match="finite integer"):
            torch.binomial(torch.tensor([0.5]), torch.tensor([0.5]))
    assert gamma[0] == 0 and gamma[3] == torch.finfo(torch.float32).tiny and gamma[[1, 2, 4]].isnan().all()
    assert poisson[0] == 0 and poisson[1].isnan()
    assert binomial[0] == 0 and binomial[1].isnan() and binomial[2:].tolist() == [5.0, 0.0]
    assert [e.shape for e in empty] == [(0, 3)] * 3
    assert (ints == 1).all()
    assert half.dtype == torch.bfloat16


def test_rrelu_s_gradient() -> None:
    x = torch.tensor([-2.0, 3.0, -4.0], requires_grad=True)
    with Session(Plain(), Policy(), 0).step(1):
        y = torch.nn.functional.rrelu(x, 0.1, 0.3, training=True)
        y.sum().backward()
        assert x.grad is not None and torch.equal(x.grad * x, y)
        x.grad = None
        torch.nn.functional.rrelu(x, 0.1, 0.3, training=False).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad, torch.tensor([0.2, 1.0, 0.2]))


def test_a_gradient_by_the_parameters_of_gamma_is_an_error() -> None:
    shape = torch.ones(3, requires_grad=True)
    with Session(Plain(), Policy(), 0).step(1):
        drawn = dist.Gamma(shape, 1.0).rsample()
        with pytest.raises(UnsupportedOperation, match=r"log_prob"):
            drawn.sum().backward()


def digest() -> str:
    """Of all draws, with sizes and parameters that take every branch."""
    hashed = hashlib.sha256()
    with vtrain.seeded(3):
        for draw, _ in (*CONTINUOUS.values(), *DISCRETE.values()):
            hashed.update(draw().contiguous().view(-1).numpy().tobytes())
        rates = torch.tensor([i**3 / 1e4 for i in range(2000)])
        for x in (torch.poisson(rates), torch._standard_gamma(rates), torch.binomial(rates.floor(), rates / 8e5)):
            hashed.update(x.numpy().tobytes())
    return hashed.hexdigest()


def test_the_same_bits_under_other_arithmetic() -> None:
    other = {**os.environ, **profile_environment("baseline"), "OMP_NUM_THREADS": "1", "VTRAIN_CPU": "generic"}
    done = subprocess.run([sys.executable, __file__], env=other, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()


if __name__ == "__main__":
    dist.Distribution.set_default_validate_args(False)
    print(digest())
