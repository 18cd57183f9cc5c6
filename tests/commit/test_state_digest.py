"""Tensor and state digests against a plain transcription of their definition, and chunk proofs against forgers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtrain.commit import digest as d
from vtrain.commit.digest import TensorBytes
from vtrain.errors import MalformedRunError, ProofError, StateError, UsageError, VersionError

MIB = 1 << 20


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def mth(data: list[bytes]) -> bytes:
    """RFC 6962 §2.1, over leaf data."""
    if len(data) <= 1:
        return sha256(b"\x00" + data[0]) if data else sha256(b"")
    k = 1 << (len(data) - 1).bit_length() - 1
    return sha256(b"\x01" + mth(data[:k]) + mth(data[k:]))


def plain_json(value: object) -> bytes:
    """RFC 8785 for ASCII without floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def plain_tensor_digest(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    chunks = [data[i : i + MIB] for i in range(0, len(data), MIB)]
    header = {
        "format": "vtrain-tensor-v1-sha256-1MiB",
        "dtype": dtype,
        "shape": list(shape),
        "bytes": len(data),
        "chunk_bytes": MIB,
        "chunks": len(chunks),
    }
    return sha256(b"\x00" + plain_json(header) + b"\n" + mth(chunks))


def plain_state_root(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    leaves = [
        {"format": "vtrain-state-v1-sha256-1MiB", "name": n, "tensor": plain_tensor_digest(*tensors[n]).hex()}
        for n in sorted(tensors, key=lambda n: n.encode())
    ]
    return mth([plain_json(leaf) for leaf in leaves])


def noise(n: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(n)


def u8(n: int, seed: int = 0) -> TensorBytes:
    return TensorBytes("U8", (n,), noise(n, seed))


@pytest.mark.parametrize("n", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 9 * MIB + 17])
def test_tensor_digest_at_chunk_boundaries(n: int) -> None:
    assert d.tensor_digest(u8(n)) == plain_tensor_digest("U8", (n,), noise(n))


def test_state_digest_is_the_definition() -> None:
    plain = {
        "b.weight": ("I32", (5, 7), noise(140, 1)),
        "a": ("U8", (11 * MIB + 3,), noise(11 * MIB + 3, 2)),
        "b": ("I64", (), noise(8, 3)),
        "empty": ("F32", (3, 0), b""),
        "B": ("I16", (2 * MIB,), noise(4 * MIB, 4)),
    }
    digest = d.state_digest({n: TensorBytes(*t) for n, t in plain.items()})
    assert digest.root == plain_state_root(plain)
    assert list(digest.tensors) == ["B", "a", "b", "b.weight", "empty"]
    assert digest.tensors == {n: plain_tensor_digest(*t).hex() for n, t in plain.items()}
    assert digest.text == f"vtrain-state-v1-sha256-1MiB:{digest.root.hex()}"
    assert d.named_digests({n: TensorBytes(*t) for n, t in plain.items()}) == digest.tensors


def test_pinned_digests() -> None:
    """Bits that released runs depend on: if this fails, a format name has to change."""
    one = TensorBytes("F32", (2,), np.array([1.0, np.nan], "<f4"))
    assert d.tensor_digest(one).hex() == PINNED_TENSOR
    assert d.state_digest({"x": one}).root.hex() == PINNED_STATE
    assert d.state_digest({}).root == sha256(b"")


PINNED_TENSOR = "1677129bc15767b8cab22f48d1b15da0282e39832278045ce8f07d3986d56a73"
PINNED_STATE = "f25f8f7aaec1c2ac4fb058beb3262c1f0abafb6f94d00f29122d000a0c0d58b9"


def test_names_are_sorted_by_utf8_not_utf16() -> None:
    """U+FB00 is below U+1F600 in UTF-8 and above it in UTF-16, which RFC 8785 uses for keys."""
    assert list(d.state_digest({"\U0001f600": u8(1), "\ufb00": u8(1)}).tensors) == ["\ufb00", "\U0001f600"]


@pytest.mark.parametrize(
    "other",
    [
        TensorBytes("I32", (2, 3), noise(24)),
        TensorBytes("F32", (3, 2), noise(24)),
        TensorBytes("F32", (6,), noise(24)),
        TensorBytes("F32", (2, 3, 1), noise(24)),
        TensorBytes("F32", (2, 3), noise(24, 9)),
    ],
)
def test_everything_is_in_the_digest(other: TensorBytes) -> None:
    assert d.tensor_digest(other) != d.tensor_digest(TensorBytes("F32", (2, 3), noise(24)))
    here, there = d.state_digest({"x": other}), d.state_digest({"y": other})
    assert here.root != there.root and here.tensors["x"] == there.tensors["y"]


def test_zeros_of_either_sign_differ() -> None:
    plus, minus = (TensorBytes("F32", (1,), np.array([z], "<f4")) for z in (0.0, -0.0))
    assert d.tensor_digest(plus) != d.tensor_digest(minus)


NAN_CASES = {
    "F32": ("<u4", 0x7FC00000, [0x7F800001, 0xFF800001, 0xFFFFFFFF, 0x7FFFFFFF], [0x7F800000, 0xFF800000, 0x807FFFFF]),
    "F16": ("<u2", 0x7E00, [0x7C01, 0xFC01, 0xFFFF, 0x7FFF], [0x7C00, 0xFC00, 0x83FF]),
    "BF16": ("<u2", 0x7FC0, [0x7F81, 0xFF81, 0xFFFF, 0x7FFF], [0x7F80, 0xFF80, 0x807F]),
    "F64": (
        "<u8",
        0x7FF8000000000000,
        [0x7FF0000000000001, 0xFFF0000000000001, 0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF],
        [0x7FF0000000000000, 0xFFF0000000000000, 0x800FFFFFFFFFFFFF],
    ),
}


@pytest.mark.parametrize("dtype", NAN_CASES)
@pytest.mark.parametrize("at", [0, -1])
def test_all_nans_are_one(dtype: str, at: int) -> None:
    kind, canonical, nans, others = NAN_CASES[dtype]
    n = 2 * MIB // np.dtype(kind).itemsize + 5

    def with_last(bits: int) -> np.ndarray:
        a = (np.arange(n) % 1000).astype(kind)
        a[at] = bits
        return a

    wanted = plain_tensor_digest(dtype, (n,), with_last(canonical).tobytes())
    for bits in [canonical, *nans]:
        data = with_last(bits)
        assert d.tensor_digest(TensorBytes(dtype, (n,), data)) == wanted
        assert int(data[at]) == bits, "the caller's tensor was changed"
    for bits in others:
        data = with_last(bits)
        assert d.tensor_digest(TensorBytes(dtype, (n,), data)) == plain_tensor_digest(dtype, (n,), data.tobytes())


@pytest.mark.parametrize("dtype", ["I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_integers_have_no_nan(dtype: str) -> None:
    width = d.DTYPES[dtype].width
    data = b"\xff" * width * 3
    assert d.tensor_digest(TensorBytes(dtype, (3,), data)) == plain_tensor_digest(dtype, (3,), data)


def test_only_chunks_with_a_nan_are_copied() -> None:
    clean = memoryview(np.ones(4, "<f4")).cast("B")
    assert d.canonical_bytes("F32", clean) is clean
    spoilt = memoryview(np.full(4, np.nan, "<f4")).cast("B")
    assert d.canonical_bytes("F32", spoilt).obj is not spoilt.obj


def test_buffers_of_any_kind() -> None:
    a = np.arange(12, dtype="<f4").reshape(3, 4)
    wanted = d.tensor_digest(TensorBytes("F32", (3, 4), a.tobytes()))
    unaligned = memoryview(b"x" + a.tobytes())[1:]
    for data in (a, bytearray(a.tobytes()), memoryview(a), a.view(np.uint8), unaligned):
        assert d.tensor_digest(TensorBytes("F32", (3, 4), data)) == wanted
    for kind, dtype in (("<f2", "F16"), ("<f8", "F64"), ("<i8", "I64"), ("?", "BOOL"), ("<i2", "I16"), ("i1", "I8")):
        data = np.ones((2, 3), kind)
        assert d.tensor_digest(TensorBytes(dtype, (2, 3), data)) == plain_tensor_digest(dtype, (2, 3), data.tobytes())


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "match"),
    [
        ("F8", (1,), b"x", "dtype 'F8'"),
        ("f32", (1,), bytes(4), "dtype 'f32'"),
        ("F32", (2,), bytes(4), "has 8 bytes, found 4"),
        ("F32", (), bytes(8), "has 4 bytes, found 8"),
        ("F32", (-1, -1), bytes(4), "extent"),
        ("F32", (True,), bytes(4), "extent"),
        ("F32", (1.0,), bytes(4), "extent"),
        ("F32", [1], bytes(4), "tuple"),
        ("F32", (2**53, 0), b"", "extent"),
        ("F32", (2**30, 2**30), b"", "more than"),
        ("F32", (2, 2), np.zeros((2, 4), "<f4")[:, ::2], "C-contiguous"),
        ("F32", (2,), np.zeros(2, ">f4"), "little-endian"),
        ("I64", (2,), np.zeros(2, object), "little-endian"),
    ],
)
def test_bad_tensors(dtype: str, shape: Any, data: Any, match: str) -> None:
    with pytest.raises(StateError, match=match):
        TensorBytes(dtype, shape, data)


@pytest.mark.parametrize("name", ["\ud800", 3, None, b"x"])
def test_bad_names(name: Any) -> None:
    with pytest.raises(StateError, match="Unicode"):
        d.state_digest({name: u8(1)})


STATE = {"w": u8(3 * MIB + 5, 1), "a": TensorBytes("F32", (2,), noise(8, 2)), "z": u8(9, 3), "\u00e9": u8(MIB, 4)}
ROOT = d.state_digest(STATE).root


def chunk_of(name: str, index: int) -> bytes:
    return bytes(STATE[name].view[index * MIB : (index + 1) * MIB])


def test_every_chunk_can_be_proved() -> None:
    for name, count in (("w", 4), ("a", 1), ("z", 1), ("\u00e9", 1)):
        for index in range(count):
            d.verify_chunk(ROOT, d.chunk_proof(STATE, name, index), chunk_of(name, index))
    with pytest.raises(UsageError, match="no chunk 4"):
        d.chunk_proof(STATE, "w", 4)
    with pytest.raises(UsageError, match="no chunk -1"):
        d.chunk_proof(STATE, "w", -1)
    with pytest.raises(UsageError, match="no tensor"):
        d.chunk_proof(STATE, "v", 0)


def test_a_chunk_is_proved_whatever_its_nans() -> None:
    quiet = TensorBytes("F32", (2,), np.array([0x7FC00000, 5], "<u4"))
    root = d.state_digest({"x": quiet}).root
    d.verify_chunk(root, d.chunk_proof({"x": quiet}, "x", 0), np.array([0xFF800001, 5], "<u4"))


PROOF = d.chunk_proof(STATE, "w", 2)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "v"},
        {"name": "\ud800"},
        {"name": 7},
        {"dtype": "I8"},
        {"dtype": "F7"},
        {"shape": (3 * MIB + 4,)},
        {"shape": (1, 3 * MIB + 5)},
        {"shape": (2**40, 2**40)},
        {"shape": [3 * MIB + 5]},
        {"shape": (-1,)},
        {"shape": (0,)},
        {"chunk_index": 1},
        {"chunk_index": 4},
        {"chunk_index": -1},
        {"chunk_index": 2.0},
        {"chunk_path": PROOF.chunk_path[:-1]},
        {"chunk_path": (*PROOF.chunk_path, bytes(32))},
        {"chunk_path": PROOF.chunk_path[::-1]},
        {"chunk_path": ("x", "y")},
        {"tensor_index": PROOF.tensor_index - 1},
        {"tensor_index": 99},
        {"tensor_count": 2**70},
        {"tensor_path": PROOF.tensor_path[:-1]},
        {"tensor_path": PROOF.tensor_path[::-1]},
    ],
)
def test_spoilt_chunk_proofs(change: dict[str, Any]) -> None:
    d.verify_chunk(ROOT, PROOF, chunk_of("w", 2))
    with pytest.raises(ProofError):
        d.verify_chunk(ROOT, replace(PROOF, **change), chunk_of("w", 2))


def test_spoilt_chunks() -> None:
    good = chunk_of("w", 2)
    for bad in (good[:-1], good + b"x", b"", np.zeros(2 * MIB, "u1")[::2]):
        with pytest.raises(ProofError, match="has 1048576 contiguous bytes"):
            d.verify_chunk(ROOT, PROOF, bad)
    for bad in (bytes([good[0] ^ 1]) + good[1:], chunk_of("w", 1)):
        with pytest.raises(ProofError, match="root"):
            d.verify_chunk(ROOT, PROOF, bad)
    with pytest.raises(ProofError, match="root"):
        d.verify_chunk(d.state_digest({"w": STATE["w"]}).root, PROOF, good)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_digest_text_round_trip(raw: bytes) -> None:
    text = d.format_digest(d.STATE_FORMAT, raw)
    assert d.parse_digest(d.STATE_FORMAT, text) == raw
    with pytest.raises(VersionError, match=r"found|wanted"):
        d.parse_digest(d.TENSOR_FORMAT, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 64,
        ":" + "0" * 64,
        f"{d.STATE_FORMAT}:",
        f"{d.STATE_FORMAT}:{'0' * 63}",
        f"{d.STATE_FORMAT}:{'0' * 65}",
        f"{d.STATE_FORMAT}:{'A' * 64}",
        f"{d.STATE_FORMAT}:{'0' * 64}\n",
        f" {d.STATE_FORMAT}:{'0' * 64}",
        f"{d.STATE_FORMAT}:{chr(0x660) * 64}",
        f"{'x' * 101}:{'0' * 64}",
        None,
    ],
)
def test_bad_digest_text(text: str) -> None:
    with pytest.raises(MalformedRunError, match="is no digest"):
        d.parse_digest(d.STATE_FORMAT, text)


def test_bad_digest_format() -> None:
    with pytest.raises(UsageError, match="no digest format"):
        d.format_digest("a:b", bytes(32))
    with pytest.raises(UsageError, match="32 bytes"):
        d.format_digest(d.STATE_FORMAT, bytes(31))
