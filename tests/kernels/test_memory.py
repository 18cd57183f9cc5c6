"""Copying and comparing many blocks of memory at once (host/memory.cpp)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_sanitizers import ADDRESS, KERNELS, built, run

from vtrain.kernels import block, copy_blocks, differing_blocks

Tensor = torch.Tensor
PIECE, FEW = 1 << 19, 1 << 21  # bytes, as there
# none, a few, around a line, around what is streamed, around a piece, and more than one thread takes
SIZES = [0, 1, 15, 63, 64, 65, 4095, 4096, 4161, PIECE - 1, PIECE, PIECE + 1, FEW + 12345]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def differing(mine: list[Tensor], theirs: list[Tensor]) -> list[int]:
    return differing_blocks([block(m, t) for m, t in zip(mine, theirs, strict=True)])


def noise(size: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("to", "of"), [(0, 0), (1, 0), (0, 3), (16, 1), (5, 7)])
def test_every_byte_is_copied_and_none_beside(threads: int, to: int, of: int) -> None:
    room = [noise(size + 64, 1) for size in SIZES]
    before = [r.clone() for r in room]
    given = [noise(size + of, 2)[of:] for size in SIZES]
    copy_blocks([block(r[to : to + len(g)], g) for r, g in zip(room, given, strict=True)])
    for r, b, g in zip(room, before, given, strict=True):
        assert torch.equal(r[to : to + len(g)], g)
        assert torch.equal(r[:to], b[:to])
        assert torch.equal(r[to + len(g) :], b[to + len(g) :])


def test_one_bit_anywhere_is_a_difference(threads: int) -> None:
    mine = [noise(size, 3) for size in SIZES]
    theirs = [t.clone() for t in mine]
    assert differing(mine, theirs) == []
    for number, t in enumerate(theirs):
        for place in {p for p in (0, len(t) // 2, PIECE - 1, PIECE, FEW, len(t) - 1) if 0 <= p < len(t)}:
            t[place] ^= 128
            assert differing(mine, theirs) == [number], (len(t), place)
            t[place] ^= 128
    for t in theirs[2::3]:
        t[-1] += 1
    assert differing(mine, theirs) == list(range(2, len(SIZES), 3))


def test_bytes_are_compared_and_not_numbers() -> None:
    assert differing([torch.tensor([0.0])], [torch.tensor([-0.0])]) == [0]
    nan = torch.tensor([float("nan")])
    assert differing([nan], [nan.clone()]) == []


def test_no_blocks() -> None:
    copy_blocks([])
    assert differing_blocks([]) == []


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (torch.zeros(4), torch.zeros(3)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.float64)),
        (torch.zeros(2, 2).t(), torch.zeros(2, 2)),
        (torch.zeros(2, 2), torch.zeros(1).expand(2, 2)),
        (torch.zeros(4), torch.zeros(4, device="meta")),
        (torch.zeros(4, device="meta"), torch.zeros(4)),
    ],
)
def test_other_operands_are_refused(mine: Tensor, theirs: Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous tensors of one size"):
        block(mine, theirs)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("broken", ["", pytest.param("-DBREAK_LENGTH", marks=pytest.mark.slow)])
def test_under_sanitizers(tmp_path: Path, broken: str) -> None:
    sources = Path(__file__).with_name("memory_main.cpp"), KERNELS / "host" / "memory.cpp"
    done = run(built(tmp_path, [*ADDRESS, *([broken] if broken else [])], *sources))
    if broken:
        assert "heap-buffer-overflow" in done.stderr
    else:
        assert done.returncode == 0 and done.stderr == "", done.stderr[:3000]
