"""The torch face of the generator: each draw against its definition on words, and for its distribution."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from vtrain.engine.generators.draws import PhiloxSource
from vtrain.errors import UnsupportedOperation, UsageError
from vtrain.random import MAX_SITE, StreamKey, bernoulli_threshold, box_muller, permutation, randint, uint64s, words

SOURCE = PhiloxSource("7")
KEY = StreamKey(7, "torch")
SHAPES = [(), (0,), (5,), (3, 0, 2), (3, 5), (11, 7, 1_000)]  # the last takes several chunks, and ends within one
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
BOUNDS = st.floats(-60_000, 60_000, width=32)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return left.dtype == right.dtype and torch.equal(left.view(integer), right.view(integer))


def test_words_are_the_stream() -> None:
    got = SOURCE.words(3, 4, 101)
    assert got.dtype == torch.int32
    assert (got.long() & 0xFFFFFFFF).tolist() == words(KEY, 3, 4, 101).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unit_uniform(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    got = SOURCE.uniform(shape, dtype, "cpu", 0.0, 1.0, 1, 2)
    exact = torch.from_numpy((words(KEY, 1, 2, math.prod(shape)) >> 8).astype(np.float64) / 2**24)
    wanted = exact.to(dtype)  # one rounding, as every multiple of 2^-24 is a float32
    wanted[wanted == 1] = 0
    assert same_bits(got, wanted.reshape(shape))


@given(BOUNDS, BOUNDS)
@example(-1e-45, 1e-45)
@example(0.1, 0.1)
@example(-0.0, 0.0)
@example(1.0, 1.0000001192092896)
def test_uniform_is_two_operations(low: float, high: float) -> None:
    """Against exact rational arithmetic with a rounding after each of the two operations."""
    low, high = sorted(float(np.float32(bound)) for bound in (low, high))
    got = SOURCE.uniform((64,), torch.float32, "cpu", low, high, 5, 6).numpy()

    def round32(value: Fraction) -> Fraction:
        # Python divides integers with one rounding to float64; a product or sum of float32 then rounds as if once.
        return Fraction(float(np.float32(value.numerator / value.denominator)))

    width = round32(Fraction(high) - Fraction(low))
    for word, value in zip(words(KEY, 5, 6, 64).tolist(), got.tolist(), strict=True):
        drawn = round32(round32(Fraction(word >> 8, 2**24) * width) + Fraction(low))
        assert Fraction(value) == (drawn if drawn < Fraction(high) else Fraction(low))


def test_uniform_rounds_a_python_scalar_first() -> None:
    low, high = np.float32(0.1), np.float32(0.7)
    got = SOURCE.uniform((1000,), torch.float32, "cpu", 0.1, 0.7, 1, 1)
    assert same_bits(got, SOURCE.uniform((1000,), torch.float32, "cpu", float(low), float(high), 1, 1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_never_gives_high(dtype: torch.dtype) -> None:
    """One word in 512 would round to 1 in bfloat16, and one in 4096 in float16."""
    got = SOURCE.uniform((50_000,), dtype, "cpu", 0.0, 1.0, 8, 8)
    assert got.min() >= 0
    assert got.max() < 1
    narrow = SOURCE.uniform((5_000,), dtype, "cpu", 1.0, 1.0 + 2 * torch.finfo(dtype).eps, 8, 8)
    assert set(narrow.tolist()) == {1.0, 1.0 + torch.finfo(dtype).eps}


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (torch.float32, 1.0, 0.0),
        (torch.float32, math.nan, 1.0),
        (torch.float32, 0.0, math.inf),
        (torch.float32, -3e38, 3e38),
        (torch.float32, 0.0, 1e39),
        (torch.float16, 0.0, 70_000.0),
    ],
)
def test_bad_bounds(dtype: torch.dtype, low: float, high: float) -> None:
    with pytest.raises(UsageError, match="wanted"):
        SOURCE.uniform((2,), dtype, "cpu", low, high, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_uniform_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedOperation, match="uniform draws"):
        SOURCE.uniform((2,), dtype, "cpu", 0.0, 1.0, 1, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_normal(shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    got = SOURCE.normal(shape, 9, 1)
    drawn = uint64s(words(KEY, 9, 1, 4 * n)).reshape(n, 2).tolist()
    u1 = np.array([((w >> 11) + 1) * 2.0**-53 for w, _ in drawn], np.float64)
    u2 = np.array([(w >> 11) * 2.0**-53 for _, w in drawn], np.float64)
    assert got.dtype == torch.float32
    assert got.shape == shape
    assert got.flatten().numpy().tobytes() == box_muller(u1, u2).astype(np.float32).tobytes()


def test_draws_are_normal() -> None:
    z = SOURCE.normal((200_000,), 1, 3).double()
    assert abs(z.mean()) < 4 / math.sqrt(200_000)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / 200_000)
    assert abs((z.abs() < 0.6744897501960817).double().mean() - 0.5) < 2 / math.sqrt(200_000)


@pytest.mark.parametrize("shape", SHAPES)
def test_exponential_parts(shape: tuple[int, ...]) -> None:
    got = SOURCE.exponential_parts(shape, 9, 2)
    drawn = uint64s(words(KEY, 9, 2, 2 * math.prod(shape))).tolist()
    assert got.dtype == torch.float64
    assert got.shape == shape
    assert [Fraction(u) for u in got.flatten().tolist()] == [Fraction((w >> 11) + 1, 2**53) for w in drawn]


def test_the_ends_of_the_unit_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that are all ones and all zeros: ln never sees 0, the angle never reaches 1."""
    fakes = {"ones": 2**32 - 1, "zeros": 0}
    ends = {}
    for name, word in fakes.items():

        def fake(key: object, step: int, site: int, items: int, per_item: int, consume: object, w: int = word) -> None:
            consume(np.full(items * per_item, w, dtype=np.uint32), 0, items)  # type: ignore[operator]

        monkeypatch.setattr("vtrain.engine.generators.draws.for_each_chunk", fake)
        ends[name] = (SOURCE.normal((), 0, 0).item(), SOURCE.exponential_parts((), 0, 0).item())
    longest = float(np.float32(math.sqrt(106 * math.log(2))))
    assert ends == {"ones": (0.0, 1.0), "zeros": (longest, 2.0**-53)}


@pytest.mark.parametrize("p", [0.0, 2.0**-32, 0.1, 0.5, 0.9, 1 - 2.0**-32, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_bernoulli_mask(shape: tuple[int, ...], p: float) -> None:
    got = SOURCE.bernoulli_mask(shape, p, 2, 5)
    wanted = [w < bernoulli_threshold(p) for w in words(KEY, 2, 5, math.prod(shape)).tolist()]
    assert got.dtype == torch.bool
    assert got.shape == shape
    assert got.flatten().tolist() == wanted


def test_a_word_at_the_threshold_is_tails() -> None:
    drawn = words(KEY, 2, 5, 100).tolist()
    for word in drawn:
        got = SOURCE.bernoulli_mask((100,), word / 2**32, 2, 5)
        assert got.tolist() == [w < word for w in drawn]


def test_share_of_heads() -> None:
    n = 2**20
    heads = int(SOURCE.bernoulli_mask((n,), 0.1, 2, 6).sum())
    assert abs(heads - 0.1 * n) < 4 * math.sqrt(0.09 * n)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", SHAPES)
def test_randint(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    low, high = (-(2**62), 2**62) if dtype == torch.int64 else (info.min, info.max + 1)
    got = SOURCE.randint(shape, low, high, 4, 4, dtype=dtype)
    assert got.dtype == dtype
    assert got.shape == shape
    assert got.flatten().tolist() == randint(words(KEY, 4, 4, 2 * math.prod(shape)), low, high).tolist()


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(0, 257, torch.uint8), (-1, 5, torch.uint8), (0, 0, torch.int64), (5, 4, torch.int64)]
)
@pytest.mark.parametrize("n", [0, 3])
def test_bad_ranges(low: int, high: int, dtype: torch.dtype, n: int) -> None:
    with pytest.raises(UsageError, match="wanted"):
        SOURCE.randint((n,), low, high, 1, 1, dtype=dtype)


def test_randint_of_a_float() -> None:
    with pytest.raises(UnsupportedOperation, match="integer draws"):
        SOURCE.randint((3,), 0, 4, 1, 1, dtype=torch.float32)


def test_randperm() -> None:
    got = SOURCE.randperm(1000, 3, 3)
    assert got.dtype == torch.int64
    assert got.tolist() == permutation(KEY, 3, 3, 1000).tolist()


def draw_all(source: PhiloxSource, step: int, site: int) -> list[torch.Tensor]:
    return [
        source.words(step, site, 64),
        source.uniform((64,), torch.float32, "cpu", -1.0, 1.0, step, site),
        source.normal((64,), step, site),
        source.exponential_parts((64,), step, site),
        source.bernoulli_mask((64,), 0.5, step, site),
        source.randint((64,), 0, 2**40, step, site),
        source.randperm(64, step, site),
    ]


def test_every_draw_depends_on_seed_stream_step_and_site() -> None:
    sources = [PhiloxSource(7), PhiloxSource(8), PhiloxSource(StreamKey(7, "other")), PhiloxSource(7).part("other")]
    places = [(1, 1), (2, 1), (1, 2), (2**32 + 1, 1)]
    draws = [draw_all(source, *place) for source, place in itertools.product(sources, places)]
    for left, right in itertools.combinations(draws, 2):
        assert not any(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_no_draw_has_a_state() -> None:
    torch.manual_seed(0)
    first = draw_all(PhiloxSource(7), 1, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, draw_all(SOURCE, 1, 1), strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("step", "site"), [(-1, 0), (0, -1), (0, MAX_SITE)])
def test_out_of_range(step: int, site: int) -> None:
    calls = [
        lambda: SOURCE.words(step, site, 1),
        lambda: SOURCE.uniform((1,), torch.float32, "cpu", 0.0, 1.0, step, site),
        lambda: SOURCE.normal((1,), step, site),
        lambda: SOURCE.exponential_parts((1,), step, site),
        lambda: SOURCE.bernoulli_mask((1,), 1.0, step, site),
        lambda: SOURCE.randint((1,), 0, 2, step, site),
        lambda: SOURCE.randperm(1, step, site),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"step is|site is"):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_gets_the_same_bits() -> None:
    """Every draw on CUDA, brought back."""
    device = "cuda"
    got = [
        SOURCE.words(1, 1, 64, device),
        SOURCE.uniform((64,), torch.float32, device, -1.0, 1.0, 1, 1),
        SOURCE.normal((64,), 1, 1, device),
        SOURCE.exponential_parts((64,), 1, 1, device),
        SOURCE.bernoulli_mask((64,), 0.5, 1, 1, device),
        SOURCE.randint((64,), 0, 2**40, 1, 1, device),
        SOURCE.randperm(64, 1, 1, device),
    ]
    assert all(g.device.type == "cuda" for g in got)
    assert all(torch.equal(g.cpu(), w) for g, w in zip(got, draw_all(SOURCE, 1, 1), strict=True))
