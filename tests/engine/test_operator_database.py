"""PyTorch's own samples of every operator: what only classes 1 and 2 compute is what torch computes (numerics §2)."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import pytest
import torch
from exact_samples import EXACT, resolve
from torch.utils._pytree import tree_leaves, tree_map

from vtrain.engine.forms import form_of
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy

# ties in another order (and any index of equal elements), memory that torch does not write, bins by float64, a
# multiply-add that torch fuses
OTHERWISE = {"topk", "sort", "argsort", "msort", "kthvalue", "mode", "empty", "empty_like", "empty_strided", "histc",
             "empty_permuted", "new_empty", "new_empty_strided", "add", "sub", "rsub", "addr"}  # fmt: skip


class Names(Plain):
    """A listener that keeps the names of operations."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def operation(self, name: str, run: Any, args: tuple, kwargs: dict) -> Any:
        self.seen.add(name)
        return run(args, kwargs)


def _copy(value: Any) -> Any:
    return tree_map(lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else v, value)


def _alike(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b or a != a)
    return a.dtype is b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _compare(op: Any, sample: Any, name: str) -> str | None:
    """What differs, or None: nothing, or that torch or the engine refuses, or that other classes compute too."""
    listener = Names()
    try:
        wanted = op(_copy(sample.input), *_copy(sample.args), **_copy(sample.kwargs))
        args = _copy((sample.input, sample.args, sample.kwargs))
        with Session(listener, Policy(), 0).step(1):
            found = op(args[0], *args[1], **args[2])
    except (UnsupportedOperation, NotImplementedError):
        return None
    except Exception as error:
        return f"{name}: {error!r}" if listener.seen and _exact(listener.seen) else None
    if not _exact(listener.seen) or all(map(_alike, tree_leaves(wanted), tree_leaves(found))):
        return None
    return f"{name}: {wanted} {found}"[:300]


def _exact(names: set[str]) -> bool:
    return all(getattr(form_of(resolve(n)), "entry").cls in EXACT for n in names)  # noqa: B009


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_the_values_are_torchs(dtype: torch.dtype) -> None:
    sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=object))  # type: ignore[arg-type]
    from torch.testing._internal.common_methods_invocations import op_db

    warnings.simplefilter("ignore")
    tried, wrong = 0, []
    for op in op_db:
        if dtype not in op.dtypes or op.name in OTHERWISE:
            continue
        try:
            samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))[:40]
        except Exception:  # of no concern here: some need other libraries
            continue
        tried += len(samples)
        wrong += [found for sample in samples if (found := _compare(op, sample, op.name))]
    assert tried > 3000
    assert sorted({found.split(":")[0] for found in wrong}) == [], wrong
