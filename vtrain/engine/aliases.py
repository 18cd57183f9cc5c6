"""Memory that is seen in two ways, and what must hold for it (numerics §2, class 1; §7).

Nearly no program has any, so nothing is looked at until the first such view is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

Tensor = torch.Tensor


def same_memory(x: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one storage."""
    return torch._C._is_alias_of(x, other)  # type: ignore[attr-defined]


def shifted(x: Tensor, other: Tensor) -> bool:
    """Whether other is in x's memory but is not x: elements may be read before or after they are written."""
    return same_memory(x, other) and not (
        x.data_ptr() == other.data_ptr() and x.shape == other.shape and x.stride() == other.stride()
    )


def overlapping(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether two indices may mean one element: dimensions do not nest within each other's strides."""
    if 0 in size:
        return False
    reach = 0
    for step, n in sorted(zip(stride, size, strict=True)):
        if n > 1 and step <= reach:
            return True
        reach += step * (n - 1)
    return False


def one_nan(x: Tensor) -> None:
    """Every NaN of x becomes the canonical one, in place: any NaN equals any NaN, until somebody reads their bits."""
    plain = x.detach().data  # not a change that autograd should see
    nan = plain.isnan()
    if bool(nan.any()):
        plain.masked_fill_(nan, float("nan"))


class Watched:
    """Storages that have a view of other bits, or a view some of whose indices mean one element.

    Attributes:
        active: whether there are any.
        begin: called when the first one comes.
    """

    def __init__(self) -> None:
        self.active = False
        self.begin: Callable[[], None] = lambda: None
        self._bits: set[int] = set()
        self._shared: set[int] = set()

    def _watch(self, storages: set[int], x: Tensor) -> None:
        storages.add(x.untyped_storage()._cdata)  # one that is freed and comes again costs a look, no more
        if not self.active:
            self.active = True
            self.begin()

    def bits(self, x: Tensor) -> None:
        """x's memory is seen as another type: NaNs in it stay canonical from now on."""
        self._watch(self._bits, x)

    def shared(self, x: Tensor) -> None:
        """x's indices meet in an element: nothing may write through them."""
        self._watch(self._shared, x)

    def may_write(self, targets: Iterable[Tensor]) -> bool:
        """Whether each index of the targets means an element of its own."""
        return not any(t.untyped_storage()._cdata in self._shared and overlapping(t.shape, t.stride()) for t in targets)

    def written(self, targets: Iterable[Tensor]) -> None:
        """Targets were written."""
        for t in targets:
            if t.is_floating_point() and t.untyped_storage()._cdata in self._bits:
                one_nan(t)
