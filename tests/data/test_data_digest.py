"""Digests of samples, batches and data sets: they change on any change, and prove single samples."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import struct
import subprocess
import sys
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtrain.data.datasets import load
from vtrain.data.digest import (
    SampleProof,
    batch_digests,
    data_digest,
    dataset_digest,
    sample_digest,
    sample_digests,
    sample_proof,
    verify_absent,
    verify_sample,
)
from vtrain.errors import BatchError, MalformedRunError, ProofError, UsageError, VersionError


@dataclasses.dataclass
class Pair:
    image: Any
    label: Any


class Named(NamedTuple):
    first: Any
    second: Any


def leaf(header: dict[str, Any], content: bytes) -> str:
    """A leaf's digest from its definition alone."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return hashlib.sha256(b"\0" + text + b"\n" + content).hexdigest()


def test_leaves_are_what_the_documentation_says() -> None:
    batch = {
        "x": np.array([[1.5, -0.0]], dtype=np.float32),
        "more": [np.arange(3, dtype=np.int16), (torch.tensor(True),)],
        "é": Pair("ü", 10**30),
        "n": {"none": None, "yes": True, "half": 0.5, "list": [], "map": {}},
    }
    assert batch_digests(batch) == {
        "x": leaf({"dtype": "F32", "path": ["x"], "shape": [1, 2]}, struct.pack("<2f", 1.5, -0.0)),
        "more.0": leaf({"dtype": "I16", "path": ["more", 0], "shape": [3]}, struct.pack("<3h", 0, 1, 2)),
        "more.1.0": leaf({"dtype": "BOOL", "path": ["more", 1, 0], "shape": []}, b"\1"),
        "é.image": leaf({"path": ["é", "image"], "type": "text"}, "ü".encode()),
        "é.label": leaf({"path": ["é", "label"], "type": "integer"}, b"1" + b"0" * 30),
        "n.none": leaf({"path": ["n", "none"], "type": "null"}, b""),
        "n.yes": leaf({"path": ["n", "yes"], "type": "boolean"}, b"\1"),
        "n.half": leaf({"path": ["n", "half"], "type": "number"}, struct.pack("<d", 0.5)),
        "n.list": leaf({"path": ["n", "list"], "type": "empty list"}, b""),
        "n.map": leaf({"path": ["n", "map"], "type": "empty map"}, b""),
    }


def test_a_sample_is_a_tree_over_its_leaves() -> None:
    digests = batch_digests({"b": 1, "a": 2})
    a, b = bytes.fromhex(digests["a"]), bytes.fromhex(digests["b"])
    assert sample_digest({"b": 1, "a": 2}) == hashlib.sha256(b"\1" + a + b).digest()
    assert sample_digest({"a": 2, "b": 1}) == sample_digest({"b": 1, "a": 2})


def test_a_data_set_is_a_tree_over_its_samples() -> None:
    leaves = [hashlib.sha256(b"\0" + sample_digest(i)).digest() for i in range(3)]
    root = hashlib.sha256(b"\1" + hashlib.sha256(b"\1" + leaves[0] + leaves[1]).digest() + leaves[2]).digest()
    wanted = hashlib.sha256(b'\0{"format":"vtrain-data-v1-sha256","samples":3}\n' + root).hexdigest()
    assert dataset_digest(range(3)) == f"vtrain-data-v1-sha256:{wanted}"


VALUES: list[Any] = [[], [0, 1], [[1], [0]], 1, [[[]]]]
ARRAYS = [
    np.array(values, dtype=dtype)
    for dtype in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    for values in VALUES
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_array_and_tensor_are_alike(array: np.ndarray) -> None:
    assert batch_digests(torch.from_numpy(array)) == batch_digests(array)
    assert batch_digests(torch.from_numpy(array.copy())[..., None].transpose(0, -1)) == batch_digests(
        np.swapaxes(array[..., None], 0, -1)
    )


def test_all_these_differ() -> None:
    tensors = [torch.tensor(x, dtype=torch.bfloat16) for x in (0.0, -0.0, 1.0, math.inf)]
    leaves: list[Any] = [*ARRAYS, *tensors, None, False, True, 0, 1, -1, 0.0, -0.0, 1.0, math.inf, "", "0", "1", [], {}]
    nests = [*leaves, [1], {"0": 1}, [[1]], {"a": 1}, {"b": 1}, {"a": {"b": 1}}, {"a.b": 1}, [1, 2], [2, 1], [1, 2, []]]
    digests = [sample_digest(nest) for nest in nests]
    assert len(set(digests)) == len(nests)


def test_containers_that_are_indexed_alike_are_alike() -> None:
    wanted = batch_digests({"first": 1, "second": (2, 3)})
    for nest in (UserDict(first=1, second=[2, 3]), OrderedDict(second=(2, 3), first=1)):
        assert batch_digests(nest) == wanted
    assert batch_digests(Pair(1, 2)) == batch_digests({"image": 1, "label": 2})
    assert batch_digests(Named(1, 2)) == batch_digests([1, 2])


def test_layout_and_byte_order_do_not_matter() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = batch_digests({"x": array})
    for other in (np.asfortranarray(array), array.astype(">f4"), torch.from_numpy(array.T.copy()).T.requires_grad_()):
        assert batch_digests({"x": other}) == wanted
    assert batch_digests({"x": -torch._neg_view(torch.from_numpy(array))}) == wanted
    ones = torch.ones(2, dtype=torch.bfloat16)
    assert batch_digests(torch._neg_view(ones)) == batch_digests(-ones)


def test_bfloat16_is_its_bits() -> None:
    tensor = torch.tensor([[1.0, -2.0], [0.5, math.inf]]).bfloat16().T
    content = struct.pack("<4H", 0x3F80, 0x3F00, 0xC000, 0x7F80)
    assert batch_digests([tensor]) == {"0": leaf({"dtype": "BF16", "path": [0], "shape": [2, 2]}, content)}


@given(st.data())
def test_any_bit_of_an_array_counts(data: st.DataObject) -> None:
    sample: dict[str, Any] = {"x": np.arange(5, dtype=np.int64), "y": np.zeros((2, 3), dtype=np.uint8)}
    changed = copy.deepcopy(sample)
    raw = changed[data.draw(st.sampled_from(["x", "y"]))].reshape(-1).view(np.uint8)
    raw[data.draw(st.integers(0, raw.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert sample_digest(sample) != sample_digest(changed)
    differing = {k for k in sample if batch_digests(sample)[k] != batch_digests(changed)[k]}
    assert len(differing) == 1


NAN = float("nan")


@pytest.mark.parametrize(
    ("nest", "message"),
    [
        ({"a": [1, torch.tensor([0.0, NAN])]}, "'a.1'.*NaN"),
        ({"a": torch.tensor([NAN], dtype=torch.bfloat16)}, "'a'.*NaN"),
        ({"a": -torch.tensor([NAN], dtype=torch.bfloat16)}, "'a'.*NaN"),
        ({"a": np.array([NAN], dtype=np.float16)}, "'a'.*NaN"),
        ({"a": np.float64(NAN)}, "'a'.*NaN"),
        ({"a": NAN}, "'a'.*NaN"),
        ({"a": {1, 2}}, r"'a'.*builtins\.set"),
        ({"a": b"x"}, r"'a'.*builtins\.bytes"),
        ({"a": Pair}, r"'a'.*builtins\.type"),
        (iter([1]), "batch: .*list_iterator"),
        ({"a": np.array(["x"])}, "'a'.*<U1"),
        ({"a": np.array([None])}, "'a'.*object"),
        ({"a": np.zeros(1, np.complex64)}, "'a'.*complex64"),
        ({"a": np.zeros(1, np.uint32)}, "'a'.*uint32"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "'a'.*complex64"),
        ({"a": torch.zeros(1, dtype=torch.float8_e4m3fn)}, "'a'.*float8"),
        ({"a": torch.zeros(2).to_sparse()}, "'a'.*sparse"),
        ({"a": torch.zeros(2, device="meta")}, "'a'.*meta"),
        ({"a": {1.5: 0}}, "'a'.*key 1.5"),
        ({"a": {True: 0}}, "'a'.*key True"),
        ({"a": {2**60: 0}}, "JSON"),
        ({"a\ud800": 0}, "JSON"),
        ({"a": "\ud800"}, "'a'.*surrogates"),
        ({"a": 10**10_000}, "'a'.*digits"),
        ({"a.b": 1, "a": {"b": 1}}, "'a.b'.*two leaves"),
        ({"0": 1, 0: 1}, "'0'.*two leaves"),
    ],
    ids=lambda value: value if isinstance(value, str) else "nest",
)
def test_refused(nest: object, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        batch_digests(nest)


def test_a_nest_without_end_is_refused() -> None:
    nest: list[Any] = []
    nest.append(nest)
    with pytest.raises(BatchError, match="deep"):
        batch_digests(nest)


class Columns:
    """A data set that can be changed in one place."""

    def __init__(self, n: int) -> None:
        self.samples: list[dict[str, Any]] = [{"x": np.array([i, i * i], dtype=np.int64), "y": i % 3} for i in range(n)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def test_a_data_set_changes_with_any_sample() -> None:
    base = dataset_digest(Columns(9))
    digests = {base}
    for index in range(9):
        changed = Columns(9)
        changed.samples[index]["y"] += 1
        digests.add(dataset_digest(changed))
    swapped = Columns(9)
    swapped.samples[3:5] = swapped.samples[4], swapped.samples[3]
    digests |= {dataset_digest(swapped), dataset_digest(Columns(8)), dataset_digest(Columns(10))}
    assert len(digests) == 13
    assert dataset_digest(Columns(9)) == base
    assert dataset_digest(Columns(12), 9) == base


def test_the_number_of_samples_is_committed() -> None:
    """Leaf 0 has the same path in trees of 3 and 4 leaves with one root: the size must tell them apart."""
    columns = Columns(3)
    proof = sample_proof(sample_digests(columns), 0)
    with pytest.raises(ProofError, match="sample 0 of 4 leads to"):
        verify_sample(dataset_digest(columns), columns[0], dataclasses.replace(proof, samples=4))


def test_what_is_wrong_with_a_data_set_is_named() -> None:
    broken = Columns(4)
    broken.samples[2]["y"] = NAN
    with pytest.raises(BatchError, match=r"sample 2: .*'y'.*NaN"):
        dataset_digest(broken)
    with pytest.raises(UsageError, match="0 samples"):
        dataset_digest([])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 13])
def test_every_sample_can_be_proved(n: int) -> None:
    columns = Columns(n)
    digests, text = sample_digests(columns), dataset_digest(columns)
    assert text == data_digest(digests)
    for index in range(n):
        proof = sample_proof(digests, index)
        verify_sample(text, columns[index], proof)
        for other in (index - 1) % n, (index + 1) % n:
            if other != index:
                with pytest.raises(ProofError):
                    verify_sample(text, columns[other], proof)
                with pytest.raises(ProofError):
                    verify_sample(text, columns[index], dataclasses.replace(proof, index=other))
        for size in (n - 1, n + 1, 2 * n):
            with pytest.raises(ProofError):
                verify_sample(text, columns[index], dataclasses.replace(proof, samples=size))
        with pytest.raises(ProofError):
            verify_sample(text, columns[index], dataclasses.replace(proof, path=(*proof.path, bytes(32))))
        for level in range(len(proof.path)):
            path = (*proof.path[:level], bytes(32), *proof.path[level + 1 :])
            with pytest.raises(ProofError):
                verify_sample(text, columns[index], dataclasses.replace(proof, path=path))


def test_a_sample_can_be_proved_absent() -> None:
    columns = Columns(5)
    digests, text = sample_digests(columns), dataset_digest(columns)
    verify_absent(text, digests, {"x": np.array([5, 25]), "y": 2})
    with pytest.raises(ProofError, match="at index 3"):
        verify_absent(text, digests, columns[3])
    with pytest.raises(ProofError, match="lead to"):
        verify_absent(text, digests[:-1], columns[4])
    with pytest.raises(ProofError, match="32 bytes"):
        verify_absent(text, [*digests[:-1], digests[-1][:31]], columns[4])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("vtrain-data-v2-sha256:" + "0" * 64, VersionError),
        ("vtrain-data-v1-sha256:" + "0" * 63, MalformedRunError),
        ("0" * 64, MalformedRunError),
    ],
)
def test_other_texts_are_no_digests(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        verify_sample(text, 1, SampleProof(0, 1, ()))
    with pytest.raises(error):
        verify_absent(text, [sample_digest(1)], 2)


def test_hugging_face_batches() -> None:
    transformers = pytest.importorskip("transformers.tokenization_utils_base")
    batch = transformers.BatchEncoding({"input_ids": torch.arange(4).reshape(2, 2)})
    assert batch_digests(batch) == batch_digests({"input_ids": np.arange(4).reshape(2, 2)})


def test_built_in_data_can_be_digested_without_torch() -> None:
    code = (
        "import sys; from vtrain.data import load, dataset_digest;"
        "print(dataset_digest(load('random-images', n=3, seed=1)), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [dataset_digest(load("random-images", n=3, seed=1)), "False"]


class Graph:
    """An object that says its parts, as graph libraries' batches do."""

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def to_dict(self) -> dict[str, Any]:
        return self._parts


class Keyed:
    """One with keys and indexing, and no more."""

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def keys(self) -> list[str]:
        return list(self._parts)

    def __getitem__(self, key: str) -> Any:
        return self._parts[key]


def test_an_object_that_says_its_parts_is_a_map() -> None:
    parts = {"x": torch.ones(2, 3), "edge_index": torch.tensor([[0, 1], [1, 0]]), "none": None, "y": np.float32(0.5)}
    wanted = batch_digests(parts)
    assert batch_digests(Graph(**parts)) == batch_digests(Keyed(**parts)) == wanted
    nested = {"store": Graph(inner=Keyed(**parts)), "named": Named(1, Pair("a", None)), "n": np.int64(3)}
    assert "store.inner.edge_index" in batch_digests(nested)
    assert batch_digests(nested) == batch_digests({**nested, "store": {"inner": parts}})
    changed = Graph(inner=Keyed(**{**parts, "none": 0}))
    assert batch_digests(nested) != batch_digests({**nested, "store": changed})
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    assert set(batch_digests(packed)) == {"0", "1", "2", "3"}


def test_kinds_of_edges_are_keys() -> None:
    edges = torch.tensor([[0, 1], [1, 0]])
    graph = {"paper": {"x": torch.ones(2, 3)}, ("paper", "cites", "paper"): {"edge_index": edges}}
    digests = batch_digests(Graph(**{"g": graph}))
    assert set(digests) == {"g.paper.x", "g.(paper, cites, paper).edge_index"}
    other = {"paper": graph["paper"], ("paper", "cites, paper"): graph["paper", "cites", "paper"]}  # type: ignore[index]
    assert batch_digests({"g": other}) != digests, "the same name, and another path"
    with pytest.raises(BatchError, match=r"key \(1, 2\); wanted"):
        batch_digests({(1, 2): edges})
