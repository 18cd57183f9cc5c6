"""What operators keep from one call to the next: no step shows whether it was there before, and training may use it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_operators import numbers, wanting

from vtrain import ops
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.ops import fourier, maps, positions
from vtrain.policy import Policy

Tensor = torch.Tensor
KEEPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "taylor": ops.taylor_map, "rotary": lambda x: ops.rotary(x, start=3),
    "transform": lambda x: ops.monarch_dft(x, None, (2, 4))[0],
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_kept() -> None:
    for kept in (maps._pairs, fourier._tables, positions._consecutive):
        kept.cache_clear()


@pytest.mark.parametrize("name", list(KEEPERS))
def test_the_first_call_dispatches_what_others_do(name: str) -> None:
    """In a dispute, one side has done earlier steps in the same process and the other has not."""
    session, walks = Session(Plain(), Policy(), 0), []
    x = numbers(2, 5, 8)
    for step in (1, 2):
        done: list[str] = []
        with session.step(step):
            session.engine.seen = lambda func, args, kwargs, out, done=done: done.append(str(func))  # type: ignore[misc]
            KEEPERS[name](x)
            session.engine.seen = None
        walks.append(done)
    assert walks[0] == walks[1] and walks[0]


@pytest.mark.parametrize("name", list(KEEPERS))
def test_what_inference_made_serves_in_training(name: str) -> None:
    x = numbers(2, 5, 8)
    with torch.inference_mode():
        first = KEEPERS[name](x)
    (a,) = wanting(x)
    y = KEEPERS[name](a)
    y.square().sum().backward()
    assert torch.equal(y.detach(), first.clone()) and a.grad is not None and bool(a.grad.isfinite().all())


@pytest.mark.parametrize("name", list(KEEPERS))
def test_a_default_device_does_not_move_them(name: str) -> None:
    x = numbers(2, 5, 8)
    with torch.device("meta"):
        first = KEEPERS[name](x)
    assert torch.equal(first, KEEPERS[name](x))
