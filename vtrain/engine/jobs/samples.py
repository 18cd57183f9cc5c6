"""What a job's samples become: batches on a device; and the digest of a data set that is the program's own.

A sample is what ``torch.utils.data.default_collate`` takes: a tensor, an array, a number or a text, or a dict, tuple or
list of samples, with the same keys and shapes in all samples. Others need a function of the job's own
(``vtrain.Program(collate=...)``), which is given a list of samples and returns a batch: any nest of tensors, arrays,
numbers and texts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree
from torch.utils.data import default_collate

from vtrain.data import dataset_digest
from vtrain.data.digest import nest_bytes
from vtrain.errors import BatchError

# Of a program's own data set: above either, only the batches are bound. Reading so much takes seconds.
MOST_SAMPLES, MOST_BYTES = 200_000, 1 << 30

WANTED = (
    "a sample must be a tensor, an array, a number or a text, or a dict, tuple or list of these, with the same keys "
    "and shapes in every sample; else give vtrain.Program(collate=...), which makes a batch of a list of samples"
)


def collated(samples: Sequence[Any], numbers: Sequence[int], collate: Callable[[list[Any]], Any] | None) -> Any:
    """The batch of some samples.

    Args:
        samples: of the data set, in the batch's order.
        numbers: theirs in the data set, for messages.
        collate: the program's own function; torch's ``default_collate`` if there is none.

    Raises:
        BatchError: torch's function can't put these samples together. What the program's own raises passes.
    """
    if collate is not None:
        return collate(list(samples))
    try:
        return default_collate(list(samples))
    except Exception as error:  # TypeError, RuntimeError, KeyError, ...: whatever the samples' types raise
        named = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        raise BatchError(
            f"samples {named} make no batch: {type(error).__name__}: {' '.join(str(error).split())[:300]}; {WANTED}"
        ) from error


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device; containers that torch does not know have a ``to`` of their own."""

    def move(value: Any) -> Any:
        return value.to(device) if callable(getattr(value, "to", None)) else value

    return _pytree.tree_map(move, batch)


def own_digest(data: Any, collate: Callable[[list[Any]], Any] | None, whatever_size: bool = False) -> str:
    """The content digest of a program's own data set (protocol §2), or nothing where it can't be afforded.

    Args:
        data: a map from index to sample.
        collate: the program's own function, if there is one: samples may then be of any type, and those that have no
            digest are bound by the batches alone.
        whatever_size: whether to read it all, however large it is.

    Raises:
        BatchError: a sample has no digest, and torch's ``default_collate`` is to take it.
    """
    size = len(data)
    try:
        if not whatever_size and (size > MOST_SAMPLES or size * _first_bytes(data) > MOST_BYTES):
            _not_bound(f"{size:,} samples are more than {MOST_SAMPLES:,}, or than {MOST_BYTES >> 30} GiB")
            return ""
        return dataset_digest(data)
    except BatchError as error:
        if collate is None:
            raise BatchError(f"{error}; {WANTED}") from error
        _not_bound(str(error))
        return ""


def is_map(data: Any) -> bool:
    """Whether a data set can be indexed and has a length, as ``torch.utils.data.Dataset`` wants it."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _first_bytes(data: Any) -> int:
    try:
        return nest_bytes(data[0])
    except BatchError as error:
        raise BatchError(f"sample 0: {error}") from error


def _not_bound(why: str) -> None:
    warnings.warn(
        f"the program's data set has no digest in the job: {why}. Each batch is committed to all the same, but a "
        "client can't pin the whole",
        stacklevel=2,
    )
