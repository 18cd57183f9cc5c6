"""What is not covered fails: it names the operation, the line that called it, and how to register a handler."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch

from vtrain.engine.listener import Plain
from vtrain.engine.optable import TABLE, OpClass, add, register, table_digest
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy

ADAM = importlib.import_module("torch.optim.adam")
X = torch.linspace(-1, 1, 16).view(4, 4)
OUT = torch.empty(4, 4)
REFUSED: dict[str, Callable[[], object]] = {
    "fft": lambda: torch.fft.fft(X),
    "svd, several tensors": lambda: torch.linalg.svd(X),
    "in place": lambda: X.clone().digamma_(),
    "out=": lambda: torch.lgamma(X, out=OUT),
    "float64 sum": lambda: X.double().sum(),
    "float64 product": lambda: X.double() @ X.double(),
    "float64 exp": lambda: torch.exp(X.double()),
    "float64 multiply-add": lambda: torch.addcmul(X.double(), X.double(), X.double()),
    "float64 cube root": lambda: X.double() ** (1 / 3),
    "float64 mean": lambda: X.double().mean(),
    "complex": lambda: torch.view_as_complex(X.view(8, 2)) * 2,
    "flash attention": lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*[X.view(1, 1, 4, 4)] * 3),
    "fused optimizer": lambda: torch.ops.aten._fused_sgd_(
        [X.bfloat16()], [X.bfloat16()], [], weight_decay=0.0, momentum=0.0, lr=0.1, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=True,
    ),
    "foreach without a twin": lambda: torch._foreach_lgamma([X]),
    "random without a definition": lambda: torch._standard_gamma_grad(X.abs(), X.abs()),
    "float64 noise": lambda: torch.randn(3, dtype=torch.float64),
}  # fmt: skip


@pytest.fixture
def session() -> Session:
    return Session(Plain(), Policy(), 0)


@pytest.mark.parametrize("name", list(REFUSED))
def test_an_uncovered_operation_is_an_error(name: str, session: Session) -> None:
    OUT.fill_(7.0)
    with warnings.catch_warnings(), pytest.raises(UnsupportedOperation) as caught, session.step(1):
        warnings.simplefilter("ignore")
        REFUSED[name]()
    text = str(caught.value)
    assert "test_unsupported.py" in text, text
    assert "register" in text
    assert caught.value.exit_code == 4
    assert torch.equal(OUT, torch.full((4, 4), 7.0))


def test_the_message_names_the_line_of_the_user(session: Session) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(x)  # the line

    with pytest.raises(UnsupportedOperation, match=r"i0\.default") as caught, session.step(1):
        Model()(X)
    assert "return torch.special.i0(x)" in str(caught.value)


def test_registering_a_handler_makes_it_work_and_changes_the_table_digest(session: Session) -> None:
    before = table_digest()
    name = "aten.i0.default"

    @register("i0.default", cls=OpClass.VARYING)
    def i0(engine: object, x: torch.Tensor) -> torch.Tensor:
        return engine.function(torch.special.i0(x.double()), engine.format(x.dtype))  # type: ignore[attr-defined]

    try:
        assert table_digest() != before
        with session.step(1):
            y = torch.special.i0(X)
        assert torch.equal(y, torch.special.i0(X.double()).float())
        with pytest.raises(ValueError, match="registered"):
            add(TABLE[name])
    finally:
        del TABLE[name]
    assert table_digest() == before


def test_outside_a_step_torch_is_untouched(session: Session) -> None:
    state = torch.get_rng_state()
    fused = ADAM._default_to_fused_or_foreach
    with session.step(1):
        torch.rand(3)
        assert ADAM._default_to_fused_or_foreach is not fused
    assert torch.equal(torch.get_rng_state(), state)
    assert ADAM._default_to_fused_or_foreach is fused
    assert torch.backends.mkldnn.enabled
    torch.fft.fft(X)


@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_model_does_not_slip_through(warm: bool) -> None:
    """Inside a step torch runs it operation by operation; compiled code would hide them."""
    from vtrain import seeded

    with seeded(0):
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    compiled = torch.compile(model, backend="aot_eager")
    if warm:
        compiled(X).sum().backward()
    results = []
    for run in (model, compiled):
        model.zero_grad()
        session = Session(Plain(), Policy(), 0)
        with session.step(1):
            run(X).sum().backward()
        results.append(([p.grad for p in model.parameters()], session.engine.seq))
    assert results[0][1] == results[1][1] > 5
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert a is not None
        assert torch.equal(a, b)
