"""The copy of a loop's state: what it holds, and which differences it tells."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vtrain.engine import state
from vtrain.engine.loops.auxiliary import AuxiliaryState
from vtrain.engine.state.snapshot import PARTS, Snapshot, differing

Tensor = torch.Tensor


def inference() -> Tensor:
    with torch.inference_mode():
        return torch.arange(5.0)


KINDS = {
    "contiguous": torch.arange(12.0).view(3, 4), "transposed": torch.arange(12.0).view(3, 4).t(),
    "strided": torch.arange(12.0)[::3], "expanded": torch.ones(1, 3).expand(2, 3), "number": torch.tensor(3),
    "bool": torch.tensor([True, False]), "bfloat16": torch.ones(5, dtype=torch.bfloat16),
    "complex": torch.ones(3, dtype=torch.complex64), "conjugated": torch.ones(3, dtype=torch.complex64).conj(),
    "negated": torch._neg_view(torch.arange(4.0)), "parameter": torch.nn.Parameter(torch.ones(3)),
    "inference": inference(), "several threads": torch.zeros(3, 2**18),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_tensor_is_copied_and_compared(kind: str) -> None:
    t, kept = KINDS[kind], Snapshot()
    kept.take({"model": {"t": t, "empty": torch.empty(0, 3)}})
    copy = kept.files["model"]["t"]
    assert torch.equal(copy, t) and copy.is_contiguous() and not (copy.requires_grad or copy.is_neg())
    assert kept.changed({"model": {"t": t, "empty": torch.empty(0, 3)}}) == []
    other = t.detach().clone()
    other[(-1,) * t.dim()] = not other[(-1,) * t.dim()]
    assert kept.changed({"model": {"t": other, "empty": torch.empty(0, 3)}}) == ["model/t"]
    kept.take({"model": {"t": other}})
    assert kept.files["model"]["t"].data_ptr() == copy.data_ptr() and torch.equal(copy, other)


def test_what_came_what_went_and_what_has_another_form() -> None:
    kept = Snapshot()
    kept.take({"model": {"a": torch.zeros(4), "b": torch.zeros(4), "c": torch.zeros(4)}, "gone": {"d": torch.zeros(1)}})
    now = {"a": torch.zeros(2, 2), "b": torch.zeros(4, dtype=torch.int32), "e": torch.zeros(1)}
    found = kept.changed({"model": now, "new": {"f": torch.zeros(1)}})
    assert found == ["gone/d", "model/a", "model/b", "model/c", "model/e", "new/f"]


def test_a_hidden_bit_is_seen_in_its_turn_and_beside_a_moved_counter_at_once() -> None:
    t, kept = torch.zeros(3 * 2**17 + 5), Snapshot()  # not a multiple of the parts
    for place in (0, len(t) // 3, len(t) - 1):
        kept.take({"model": {"t": t}})
        t.numpy()[place] = 1
        turns = [turn for turn in range(PARTS) if kept.changed({"model": {"t": t}}, turn)]
        assert turns == [4 * place * PARTS // (4 * len(t))]
        assert kept.changed({"model": {"t": t}}) == ["model/t"]
        t[(place + len(t) // 2) % len(t)] = 0  # of another part, by torch
        assert all(kept.changed({"model": {"t": t}}, turn) for turn in range(PARTS))
    small = torch.zeros(2**14)
    kept.take({"model": {"t": small}})
    small.numpy()[-1] = 1
    assert all(kept.changed({"model": {"t": small}}, turn) for turn in range(PARTS))


def test_gradients_may_be_dropped_or_zeroed() -> None:
    kept = Snapshot()
    kept.take({"model": {"w": torch.ones(2)}, "gradients": {"w": torch.ones(2)}})
    assert kept.changed({"model": {"w": torch.ones(2)}}) == []
    assert kept.changed({"model": {"w": torch.ones(2)}, "gradients": {"w": torch.zeros(2)}}) == []
    assert kept.changed({"model": {"w": torch.zeros(2)}, "gradients": {"w": torch.ones(2) / 2}}) == [
        "gradients/w", "model/w",
    ]  # fmt: skip
    kept.take({"model": {}})
    assert kept.changed({"model": {}, "gradients": {"w": torch.zeros(2)}}) == ["gradients/w"]


def test_differing_names() -> None:
    same, nan = torch.zeros(2), torch.tensor(float("nan"))
    before = {"same": same, "nan": nan, "zero": torch.tensor(0.0), "gone": same}
    now = {"same": same.clone(), "nan": nan.clone(), "zero": torch.tensor(-0.0), "new": same}
    assert sorted(differing(before, now)) == ["gone", "new", "zero"]


def test_buffers_that_no_state_dict_holds_are_a_file_of_their_own() -> None:
    inner = torch.nn.Linear(1, 1)
    inner.register_buffer("cache", torch.zeros(1), persistent=False)
    inner.register_buffer("mean", torch.zeros(1))
    model = torch.nn.ModuleDict({"a": inner, "again": inner})
    model.register_buffer("own", torch.zeros(1), persistent=False)
    files = state.collect(model, None)
    assert set(files["buffers"]) == {"own", "a.cache"} and "a.mean" in files["model"]


def test_what_objects_hold_is_copied_against_writing_in_place() -> None:
    average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1))
    beyond = AuxiliaryState(SimpleNamespace(extra={"average": average}, optimizer=None, steps_done=1))  # type: ignore[arg-type]
    beyond.mark()
    wanted = average.module.weight.detach().clone()
    average.module.weight.data.add_(1)
    beyond.rollback()
    assert torch.equal(average.module.weight, wanted)
