"""Philox4x32-10: the authors' known answers, a scalar oracle, and the naming of draws."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtrain.errors import UsageError
from vtrain.random import MAX_SITE, MAX_STEP, MAX_WORDS, StreamKey, for_each_chunk, philox4x32, words
from vtrain.random import philox as philox_module

WORD = st.integers(0, 2**32 - 1)

# The philox4x32 lines for ten rounds of the file kat_vectors of Random123: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def oracle(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """One block in Python integers, straight from section 3.3 of the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def oracle_words(key: StreamKey, step: int, site: int, n: int) -> list[int]:
    blocks = (oracle((b, site, step % 2**32, step // 2**32), key.key) for b in range((n + 3) // 4))
    return list(itertools.chain.from_iterable(blocks))[:n]


def _hex(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    k0, k1 = _hex(key)
    assert list(oracle(tuple(_hex(counter)), (k0, k1))) == _hex(answer)
    got = philox4x32(np.array([_hex(counter)] * 3, dtype=np.uint32), (k0, k1))
    assert got.dtype == np.uint32
    assert got.tolist() == [_hex(answer)] * 3


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), max_size=9), WORD, WORD)
def test_blocks_equal_the_oracle(counters: list[tuple[int, ...]], k0: int, k1: int) -> None:
    got = philox4x32(np.array(counters, dtype=np.uint32).reshape(-1, 4), (k0, k1))
    assert got.tolist() == [list(oracle(c, (k0, k1))) for c in counters]


@given(st.integers(0, 2**128 - 1), st.integers(0, MAX_STEP - 1), st.integers(0, MAX_SITE - 1), st.integers(0, 41))
def test_words_equal_the_oracle(seed: int, step: int, site: int, n: int) -> None:
    key = StreamKey(seed, "s")
    assert words(key, step, site, n).tolist() == oracle_words(key, step, site, n)


@pytest.mark.parametrize("n", [4 * 8192 - 1, 4 * 8192, 4 * 8192 + 1, 3 * 4 * 8192 + 6])
def test_chunks_join(n: int) -> None:
    key = StreamKey(5, "s")
    got = words(key, 2**40 + 3, 9, n)
    counters = np.zeros(((n + 3) // 4, 4), dtype=np.uint32)
    counters[:, 0], counters[:, 1:] = np.arange(len(counters)), (9, 3, 2**8)
    assert got.tobytes() == philox4x32(counters, key.key).reshape(-1)[:n].tobytes()


@pytest.mark.parametrize("per_item", [1, 2, 4])
def test_pieces_cover_every_item_once(per_item: int) -> None:
    key, items = StreamKey(5, "s"), 40_001
    got = np.zeros((items, per_item), dtype=np.uint32)
    stops = [0]

    def consume(piece: np.ndarray, start: int, stop: int) -> None:
        assert start == stops[-1]
        stops.append(stop)
        got[start:stop] = piece.reshape(-1, per_item)
        piece[:] = 0  # allowed: must not reach a later piece

    for_each_chunk(key, 1, 2, items, per_item, consume)
    assert stops[-1] == items
    assert got.tobytes() == words(key, 1, 2, items * per_item).tobytes()


def test_no_two_draws_share_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every (step, site, block) of the corners of the space, exhaustively, with the rounds replaced by the identity."""
    monkeypatch.setattr(philox_module, "_rounds", lambda even, odd, product, key: None)
    corners = [0, 1, 2, 2**16, 2**31, 2**32 - 2, 2**32 - 1]
    steps = corners + [2**32 + c for c in corners] + [2**62 + c for c in corners] + [MAX_STEP - 1]
    key, blocks, seen = StreamKey(0, "s"), 5, set()
    for step, site in itertools.product(steps, corners):
        seen |= {tuple(row) for row in words(key, step, site, 4 * blocks).reshape(-1, 4).tolist()}
    assert len(seen) == len(steps) * len(corners) * blocks


def test_key_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"vtrain-philox-v1\n42\ndrop\xc3\xb6ut").digest()
    key = StreamKey("42", "dropöut")
    assert key.key == tuple(np.frombuffer(digest[:8], dtype="<u4").tolist())
    assert key == StreamKey(42, "dropöut")
    assert len({StreamKey(s, t).key for s, t in [(4, "2"), (42, "2"), (4, "2\n"), (4, "22")]}) == 4


def test_words_are_pinned() -> None:
    """The bits of one draw, so that a change of the naming can't go unnoticed."""
    assert words(StreamKey(1, "torch"), 3, 7, 5).tolist() == oracle_words(StreamKey(1, "torch"), 3, 7, 5)
    assert hashlib.sha256(words(StreamKey(1, "torch"), 3, 7, 1000).astype("<u4").tobytes()).hexdigest() == (
        "3fc04b3b05909b47af5d68cd0f1560ec3ed834e3beac182417b6205ffdde0b1e"
    )


@pytest.mark.parametrize(
    "seed", [-1, 2**128, "", "-1", "+1", " 1", "01", "1.0", "0x1", "٣", str(2**128), 1.0, True, None]
)
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(UsageError, match="seed is"):
        StreamKey(seed, "s")  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", ["", None, 3])
def test_bad_streams(stream: object) -> None:
    with pytest.raises(UsageError, match="stream is"):
        StreamKey(1, stream)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "site", "n", "named"),
    [
        (-1, 0, 1, "step"),
        (MAX_STEP, 0, 1, "step"),
        (1.5, 0, 1, "step"),
        (0, -1, 1, "site"),
        (0, MAX_SITE, 1, "site"),
        (0, 0, -1, "number of words"),
        (0, 0, MAX_WORDS + 1, "number of words"),
    ],
)
def test_out_of_range(step: int, site: int, n: int, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        words(StreamKey(0, "s"), step, site, n)


@pytest.mark.parametrize("counter", [np.zeros((1, 4), np.uint64), np.zeros(4, np.uint32), np.zeros((4, 1), np.uint32)])
def test_bad_counters(counter: np.ndarray) -> None:
    with pytest.raises(UsageError, match="counter is"):
        philox4x32(counter, (0, 0))


def test_bad_key_word() -> None:
    with pytest.raises(UsageError, match="key word"):
        philox4x32(np.zeros((1, 4), np.uint32), (0, 2**32))
