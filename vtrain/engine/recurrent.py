"""Recurrent layers in the operations that torch's CPU composes them of, in that order (its ``RNN.cpp``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.functional import linear

Tensor = torch.Tensor
Hidden: TypeAlias = tuple[Tensor, ...]  # (h,) or (h, c)


@dataclass(frozen=True)
class Weights:
    """Of one layer in one direction; biases and the projection are None where there are none."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    projection: Tensor | None = None


Cell: TypeAlias = Callable[[Tensor, Hidden, Weights], Hidden]


def _lstm_cell(x: Tensor, hidden: Hidden, w: Weights) -> Hidden:
    h, c = hidden
    gates = linear(h, w.hh, w.bias_hh).add_(x).unsafe_chunk(4, 1)
    into, forget, cell, out = gates[0].sigmoid_(), gates[1].sigmoid_(), gates[2].tanh_(), gates[3].sigmoid_()
    c = (forget * c).add_(into * cell)
    h = out * c.tanh()
    return (h if w.projection is None else linear(h, w.projection)), c


def _gru_cell(x: Tensor, hidden: Hidden, w: Weights) -> Hidden:
    (h,) = hidden
    given, own = x.unsafe_chunk(3, 1), linear(h, w.hh, w.bias_hh).unsafe_chunk(3, 1)
    reset, update = own[0].add_(given[0]).sigmoid_(), own[1].add_(given[1]).sigmoid_()
    new = given[2].add(own[2].mul_(reset)).tanh_()
    return ((h - new).mul_(update).add_(new),)


def _simple_cell(function: Callable[[Tensor], Tensor]) -> Cell:
    return lambda x, hidden, w: (function(linear(hidden[0], w.hh, w.bias_hh).add_(x)),)


# ---- one layer, one direction ----------------------------------------------------------------------------------------
def _full(cell: Cell, x: Tensor, hidden: Hidden, w: Weights, backwards: bool) -> tuple[Tensor, Hidden]:
    """Over x ``(steps, batch, features)``: outputs ``(steps, batch, size)`` and the last hidden state."""
    inputs = list(linear(x, w.ih, w.bias_ih).unbind(0))
    outputs = []
    for step in reversed(inputs) if backwards else inputs:
        hidden = cell(step, hidden, w)
        outputs.append(hidden[0])
    return torch.stack(outputs[::-1] if backwards else outputs, 0), hidden


def _packed(cell: Cell, x: Tensor, sizes: list[int], hidden: Hidden, w: Weights) -> tuple[Tensor, Hidden]:
    """Over the rows of a packed sequence: of step i there are ``sizes[i]``, which fall."""
    inputs, outputs, over = linear(x, w.ih, w.bias_ih), [], []
    offset, last = 0, sizes[0]
    for size in sizes:
        if last > size:
            over.append(tuple(h.narrow(0, size, last - size) for h in hidden))
            hidden = tuple(h.narrow(0, 0, size) for h in hidden)
        hidden, last = cell(inputs.narrow(0, offset, size), hidden, w), size
        outputs.append(hidden[0])
        offset += size
    over.append(hidden)
    return torch.cat(outputs, 0), tuple(torch.cat(parts, 0) for parts in zip(*reversed(over), strict=True))


def _packed_backwards(cell: Cell, x: Tensor, sizes: list[int], given: Hidden, w: Weights) -> tuple[Tensor, Hidden]:
    """``_packed`` from the last step to the first: sequences begin as they are reached."""
    inputs, outputs = linear(x, w.ih, w.bias_ih), []
    offset, last = x.shape[0], sizes[-1]
    hidden = tuple(h.narrow(0, 0, last) for h in given)
    for size in reversed(sizes):
        if size > last:
            hidden = tuple(
                torch.cat([h, first.narrow(0, last, size - last)], 0) for h, first in zip(hidden, given, strict=True)
            )
        offset, last = offset - size, size
        hidden = cell(inputs.narrow(0, offset, size), hidden, w)
        outputs.append(hidden[0])
    return torch.cat(outputs[::-1], 0), hidden


# ---- layers upon layers ----------------------------------------------------------------------------------------------
def _weights(params: Sequence[Tensor], biases: bool, projected: bool) -> list[Weights]:
    each = 2 + 2 * biases + projected
    parts = [list(params[i : i + each]) for i in range(0, len(params), each)]
    return [
        Weights(p[0], p[1], p[2] if biases else None, p[3] if biases else None, p[-1] if projected else None)
        for p in parts
    ]


def _stack(
    run: Callable[[Tensor, Hidden, Weights, bool], tuple[Tensor, Hidden]], x: Tensor, hidden: list[Hidden],
    weights: list[Weights], layers: int, dropout: float, train: bool, both: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Outputs, and the last hidden states of all layers, stacked."""
    last = []
    for i in range(layers):
        outputs = []
        for backwards in (False, True)[: 1 + both]:
            at = i * (1 + both) + backwards
            output, final = run(x, hidden[at], weights[at], backwards)
            outputs.append(output)
            last.append(final)
        x = torch.cat(outputs, outputs[0].dim() - 1) if both else outputs[0]
        if dropout != 0 and train and i < layers - 1:
            x = torch.dropout(x, dropout, True)
    return x, [torch.stack(parts, 0) for parts in zip(*last, strict=True)]


def _layers(cell: Cell, pair: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The operation on padded and on packed sequences."""

    def states(given: Any) -> list[Hidden]:
        return list(zip(*(h.unbind(0) for h in (given if pair else [given])), strict=True))

    def projected(given: Any) -> bool:
        return pair and given[0].shape[2] != given[1].shape[2]

    def padded(
        x: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        x = x.transpose(0, 1) if batch_first else x
        y, last = _stack(
            lambda x, h, w, backwards: _full(cell, x, h, w, backwards), x, states(hx),
            _weights(params, has_biases, projected(hx)), num_layers, dropout, train, bidirectional,
        )  # fmt: skip
        return (y.transpose(0, 1) if batch_first else y, *last)

    def packed(
        data: Tensor, batch_sizes: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int,
        dropout: float, train: bool, bidirectional: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        sizes = [int(n) for n in batch_sizes.tolist()]
        y, last = _stack(
            lambda x, h, w, backwards: (_packed_backwards if backwards else _packed)(cell, x, sizes, h, w), data,
            states(hx), _weights(params, has_biases, projected(hx)), num_layers, dropout, train, bidirectional,
        )  # fmt: skip
        return (y, *last)

    return padded, packed


COMPOSED: dict[str, Callable[..., Any]] = {}
for _name, _cell in (
    ("lstm", _lstm_cell), ("gru", _gru_cell), ("rnn_tanh", _simple_cell(torch.tanh)),
    ("rnn_relu", _simple_cell(torch.relu)),
):  # fmt: skip
    COMPOSED[f"{_name}.input"], COMPOSED[f"{_name}.data"] = _layers(_cell, _name == "lstm")


def _lone(cell: Cell, pair: bool) -> Callable[..., Any]:
    def run(
        x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        w = Weights(w_ih, w_hh, b_ih, b_hh)
        found = cell(linear(x, w_ih, b_ih), tuple(hx) if pair else (hx,), w)
        return found if pair else found[0]

    return run


COMPOSED["lstm_cell"], COMPOSED["gru_cell"] = _lone(_lstm_cell, True), _lone(_gru_cell, False)
