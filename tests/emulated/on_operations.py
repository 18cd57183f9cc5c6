"""Every operation on the device: the CPU's bits, by the same sites."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "engine"))
sys.path.append(str(Path(__file__).parents[1] / "kernels"))
sys.path.append(str(Path(__file__).parents[1] / "kernels" / "ptx"))
import test_device
import test_semantics
from emulated import BACKEND, NAME

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.kernels import launch
from vtrain.policy import Policy

Tensor = torch.Tensor
CANONICAL = Policy(matmul="chain")  # a logged result is the same by its log alone: see on_loops
NAMES = list(test_semantics.CASES)


class Moving(TorchFunctionMode):
    """Whatever a call is given lies on the device when it is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = moved((args, kwargs or {}))
        return func(*args, **kwargs)


def moved(value: Any, where: str = NAME) -> Any:
    with torch._C.DisableTorchFunction():
        return tree_map(lambda v: v.to(where) if isinstance(v, Tensor) and v.device.type != where else v, value)


def words(value: Any) -> list[Any]:
    """Bits; of a NaN that it is one."""

    def of(v: Any) -> Any:
        if not isinstance(v, Tensor):
            return repr(v)
        v = v.detach().cpu().contiguous()
        if v.is_floating_point():
            v = torch.where(v.isnan(), torch.full((), float("nan"), dtype=v.dtype), v)
        return (tuple(v.shape), str(v.dtype), v.reshape(-1).view(torch.uint8).tolist())

    return [of(v) for v in tree_leaves(value)]


def done(session: Session, work: Callable[[], Any]) -> tuple[list[Any], bytes]:
    with session.step(1):
        found = work()
    return words(found), session.sites()[1]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if i % 5 == 0 else pytest.mark.slow) for i, name in enumerate(NAMES)]
)
def test_values_gradients_and_sites(name: str) -> None:
    f, inputs = test_semantics.CASES[name]
    wanted = done(Session(Plain(), CANONICAL, 0), lambda: test_semantics.run(f, inputs, None))

    def there() -> Any:
        with Moving():
            return test_semantics.run(f, moved(inputs), None)

    assert done(Session(Plain(), CANONICAL, 0), there) == wanted


@pytest.mark.parametrize("group", list(test_device.GROUPS))
def test_kernels(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the launcher, in the device's memory; the PTX's bits are ``test_device``'s matter."""
    torch.manual_seed(0)
    host = test_device.GROUPS[group]()
    monkeypatch.setattr(launch, "launch", test_device.elsewhere(NAME))
    torch.manual_seed(0)
    BACKEND.launched = set()
    assert words(host) == words(test_device.GROUPS[group]())
    assert BACKEND.launched and torch.ops.emulated.violations() == 0


# ---- torch's own samples ---------------------------------------------------------------------------------------------
def outcome(op: Any, sample: Any, where: str) -> Any:
    def copied(value: Any) -> Any:
        return tree_map(lambda v: v.detach().clone().to(where) if isinstance(v, Tensor) else v, value)

    x, args, kwargs = copied((sample.input, sample.args, sample.kwargs))
    if "device" in kwargs:
        kwargs["device"] = where
    try:
        return done(Session(Plain(), CANONICAL, 0), lambda: op(x, *args, **kwargs))
    except UnsupportedOperation as error:
        return str(error).splitlines()[0]
    except Exception as error:
        return type(error).__name__


# refused there, by name; torch itself wants an operand in the host's memory
OTHERWISE = {"nextafter", "tensor_split"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_samples_of_every_operator(dtype: torch.dtype) -> None:
    sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=object))  # type: ignore[arg-type]
    from torch.testing._internal.common_methods_invocations import op_db

    warnings.simplefilter("ignore")
    tried, wrong = 0, []
    for op in op_db:
        if dtype not in op.dtypes or op.name in OTHERWISE:
            continue
        try:
            samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))[:8]
        except Exception:  # of no concern here: some need other libraries
            continue
        for sample in samples:
            here = outcome(op, sample, "cpu")
            tried += not isinstance(here, str)
            there = outcome(op, sample, NAME) if not isinstance(here, str) else here
            if there != here:
                wrong.append(f"{op.name}: {str(there)[:200]} for {str(here)[:200]}")
    assert tried > 1000
    assert wrong == [], "\n".join(wrong)
