from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import flip, tree_bytes

from vtrain.commit.digest import DTYPES, TensorBytes
from vtrain.errors import CheckpointError, MalformedRunError, PathError, StorageError, UsageError, VersionError
from vtrain.store import checkpoint
from vtrain.store.checkpoint import (
    list_checkpoints,
    read_checkpoint,
    read_safetensors,
    write_checkpoint,
    write_safetensors,
)
from vtrain.store.layout import Layout, create


def tensors(seed: int = 0) -> dict[str, TensorBytes]:
    rng = np.random.default_rng(seed)
    return {
        "weight": TensorBytes("F32", (3, 5), rng.standard_normal((3, 5)).astype("<f4")),
        "half": TensorBytes("BF16", (7,), rng.bytes(14)),
        "mask": TensorBytes("BOOL", (3,), b"\0\1\1"),
        "count": TensorBytes("I64", (), np.array(2**40 + seed)),
        "empty": TensorBytes("F64", (0, 4), b""),
    }


def equal(left: dict[str, TensorBytes], right: dict[str, TensorBytes]) -> bool:
    def bits(group: dict[str, TensorBytes]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        return {name: (tensor.dtype, tensor.shape, bytes(tensor.view)) for name, tensor in group.items()}

    return bits(left) == bits(right)


@st.composite
def any_tensor(draw: st.DrawFn) -> TensorBytes:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = DTYPES[dtype].width * int(np.prod(shape, dtype=np.int64))
    data = draw(st.binary(min_size=size, max_size=size))
    return TensorBytes(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "BOOL" else data)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(group=st.dictionaries(NAMES, any_tensor(), max_size=5))
def test_safetensors_round_trip(tmp_path: Path, group: dict[str, TensorBytes]) -> None:
    path = tmp_path / "file.safetensors"
    write_safetensors(path, group)
    assert equal(read_safetensors(path), group)
    first = path.read_bytes()
    write_safetensors(path, dict(reversed(group.items())))
    assert path.read_bytes() == first
    # The reference implementation agrees.
    loaded = dict(safetensors.deserialize(first))
    assert {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in loaded.items()} == {
        name: (tensor.dtype, tensor.shape, bytes(tensor.view)) for name, tensor in group.items()
    }


def test_reads_files_of_safetensors(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([True, False])}
    path = tmp_path / "file.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    found = read_safetensors(path)
    assert {name: (tensor.dtype, tensor.shape, bytes(tensor.view)) for name, tensor in found.items()} == {
        "a": ("BOOL", (2,), arrays["a"].tobytes()),
        "b": ("F32", (2, 3), arrays["b"].tobytes()),
    }


def raw(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: Any) -> str:
    return json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}})


def two(first: list[int], second: list[int]) -> str:
    entry = {"dtype": "U8"}
    return json.dumps(
        {
            "x": {**entry, "shape": [first[1] - first[0]], "data_offsets": first},
            "y": {**entry, "shape": [second[1] - second[0]], "data_offsets": second},
        }
    )


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "short": (b"1234567", "7 bytes"),
    "long header": (raw("{}", length=3), "a header of 3 bytes"),
    "header bomb": (raw("{}", length=2**62), "a header of"),
    "no object": (raw("[]"), "expected a JSON object"),
    "no JSON": (raw("{"), "header"),
    "leading space": (raw(" {}"), "expected a JSON object"),
    "no UTF-8": (raw(b'{"\xff":1}'), "header"),
    "deep": (raw('{"x":' + "[" * 100_000), "header"),
    "repeated key": (raw('{"x":' + one()[6:-1] + ',"x":' + one()[6:], b"8" * 8), "occurs twice"),
    "repeated field": (raw('{"x":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "occurs twice"),
    "unknown field": (raw(one(strides=[1]), bytes(8)), "expected dtype, shape"),
    "missing field": (raw('{"x":{"dtype":"U8","shape":[0]}}'), "expected dtype, shape"),
    "entry": (raw('{"x":1}'), "expected dtype, shape"),
    "dtype": (raw(one(dtype="F8_E4M3"), bytes(8)), "dtype 'F8_E4M3'"),
    "dtype of another type": (raw(one(dtype=["F32"]), bytes(8)), "dtype"),
    "negative shape": (raw(one(shape=[-2]), bytes(8)), "are not sizes"),
    "float shape": (raw(one(shape=[2.0]), bytes(8)), "are not sizes"),
    "bool shape": (raw(one(shape=[True, 2]), bytes(8)), "are not sizes"),
    "shape bomb": (raw(one(shape=[2**50]), bytes(8)), "bytes"),
    "shape that wraps": (raw(one(shape=[2**32, 2**32, 2]), bytes(8)), "bytes"),
    "shape": (raw(one(shape=[3]), bytes(8)), "12 bytes"),
    "beyond the file": (raw(one(), bytes(7)), "7 bytes of data"),
    "after the data": (raw(one(), bytes(9)), "9 bytes of data"),
    "backwards": (raw(one(data_offsets=[8, 0]), bytes(8)), "expected it to begin"),
    "three offsets": (raw(one(data_offsets=[0, 8, 8]), bytes(8)), "are not sizes"),
    "overlap": (raw(two([0, 5], [4, 8]), bytes(8)), "begin at 5"),
    "the same": (raw(two([0, 8], [0, 8]), bytes(8)), "begin at 8"),
    "hole": (raw(two([0, 3], [4, 8]), bytes(8)), "begin at 3"),
    "metadata": (raw('{"__metadata__":{"a":1}}'), "strings by string"),
    "BOOL": (raw('{"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}', b"\1\2"), "neither 0 nor 1"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_safetensors(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(tmp_path / "file")


def test_hostile_cases_are_near_misses(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(raw(one(), bytes(8)))
    assert read_safetensors(tmp_path / "file", 8 + len(one()) + 8)["x"].shape == (2,)
    with pytest.raises(PathError, match="expected at most"):
        read_safetensors(tmp_path / "file", 8 + len(one()) + 7)
    (tmp_path / "file").write_bytes(raw(two([0, 4], [4, 8]), bytes(8)))
    assert len(read_safetensors(tmp_path / "file")) == 2


def test_oversized_header(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as handle:
        handle.write(raw("{", length=checkpoint.MAX_HEADER_BYTES + 1))
        handle.truncate(checkpoint.MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match="expected at most"):
        read_safetensors(tmp_path / "file")


@pytest.mark.parametrize("name", ["__metadata__", "\udcff"])
def test_names_that_cannot_be_stored(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        write_safetensors(tmp_path / "file", {name: TensorBytes("U8", (0,), b"")})
    assert os.listdir(tmp_path) == []


META = {"step": 7, "learning_rate": "0x1.999999999999ap-4", "groups": [{"params": ["weight"], "nesterov": False}]}


@pytest.fixture
def run(tmp_path: Path) -> Layout:
    return create(tmp_path / "run")


def test_checkpoint_round_trip(run: Layout) -> None:
    for step in (0, 7, 10**7):
        write_checkpoint(run, step, {"model": tensors(step), "optimizer": {}}, META)
    assert list_checkpoints(run) == [0, 7, 10**7]
    files, meta = read_checkpoint(run, 7)
    assert list(files) == ["model", "optimizer"] and files["optimizer"] == {}
    assert equal(files["model"], tensors(7)) and meta == META
    before = tree_bytes(run.checkpoint(7))
    write_checkpoint(run, 7, {"model": tensors(7), "optimizer": {}}, META)
    assert tree_bytes(run.checkpoint(7)) == before
    write_checkpoint(run, 7, {"model": tensors(8)}, {})
    assert equal(read_checkpoint(run, 7)[0]["model"], tensors(8))
    assert sorted(os.listdir(run.checkpoints)) == ["000000", "000007", "10000000"]


@pytest.mark.parametrize(
    ("step", "name", "meta"), [(-1, "model", {}), (1, "../model", {}), (1, "", {}), (1, "model", {"lr": 0.1})]
)
def test_checkpoint_that_cannot_be_stored(run: Layout, step: int, name: str, meta: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        write_checkpoint(run, step, {name: tensors()}, meta)
    assert os.listdir(run.checkpoints) == []


@pytest.mark.parametrize("target", ["os.replace", "os.rename", "os.fsync", "pathlib.Path.mkdir"])
def test_disk_full(run: Layout, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    write_checkpoint(run, 1, {"model": tensors(1)}, META)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target, full)
    with pytest.raises(StorageError, match="No space left"):
        write_checkpoint(run, 2, {"model": tensors(2)}, META)
    monkeypatch.undo()
    assert list_checkpoints(run) == [1]
    assert equal(read_checkpoint(run, 1)[0]["model"], tensors(1))


def _edit(path: Path, **changes: object) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


DAMAGE: dict[str, tuple[Callable[[Path], object], type[MalformedRunError]]] = {
    "no directory": (lambda path: shutil.rmtree(path), CheckpointError),
    "no meta": (lambda path: (path / "meta.json").unlink(), CheckpointError),
    "no file": (lambda path: (path / "model.safetensors").unlink(), CheckpointError),
    "extra file": (lambda path: (path / "evil.pt").touch(), CheckpointError),
    "many files": (lambda path: [(path / f"{number}").touch() for number in range(80)], CheckpointError),
    "truncated": (lambda path: os.truncate(path / "model.safetensors", 300), CheckpointError),
    "truncated meta": (lambda path: os.truncate(path / "meta.json", 30), CheckpointError),
    "flipped meta": (lambda path: flip(path / "meta.json", 0), CheckpointError),
    "flipped header": (lambda path: flip(path / "model.safetensors", 70), CheckpointError),
    "version": (lambda path: _edit(path / "meta.json", version=2), VersionError),
    "version of another type": (lambda path: _edit(path / "meta.json", version=True), VersionError),
    "format": (lambda path: _edit(path / "meta.json", format="x"), CheckpointError),
    "step": (lambda path: _edit(path / "meta.json", step=6), CheckpointError),
    "unknown key": (lambda path: _edit(path / "meta.json", extra=6), CheckpointError),
    "meta": (lambda path: _edit(path / "meta.json", meta=[]), CheckpointError),
    "names": (lambda path: _edit(path / "meta.json", files=["../../job"]), CheckpointError),
    "repeated names": (lambda path: _edit(path / "meta.json", files=["model", "model"]), CheckpointError),
    "names of another type": (lambda path: _edit(path / "meta.json", files=[1]), CheckpointError),
    "link": (lambda path: _relink(path / "model.safetensors"), PathError),
    "linked meta": (lambda path: _relink(path / "meta.json"), PathError),
    "linked directory": (lambda path: _relink(path), PathError),
}


def _relink(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    path.rename(elsewhere)
    os.symlink(elsewhere, path)


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_checkpoint(run: Layout, case: str) -> None:
    damage, error = DAMAGE[case]
    write_checkpoint(run, 7, {"model": tensors()}, META)
    _edit(run.checkpoint(7) / "meta.json")
    read_checkpoint(run, 7)
    damage(run.checkpoint(7))
    with pytest.raises(error, match="000007"):
        read_checkpoint(run, 7)


def test_list_checkpoints(run: Layout) -> None:
    (run.checkpoints / "000001").mkdir()
    (run.checkpoints / "000002.tmp-1-ab").mkdir()
    assert list_checkpoints(run) == []
    (run.checkpoints / "latest").mkdir()
    with pytest.raises(CheckpointError, match="unexpected name 'latest'"):
        list_checkpoints(run)


WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store_checkpoint import tensors
from vtrain.store.checkpoint import write_checkpoint
from vtrain.store.layout import Layout
step = 0
while True:
    step += 1
    write_checkpoint(Layout(Path(sys.argv[1])), step, {"model": tensors(step)}, {})
    os.write(1, b"%d\\n" % step)
"""


@pytest.mark.parametrize("delay", [0.003, 0.01, 0.031])
def test_killed_at_any_time(run: Layout, delay: float) -> None:
    command = [sys.executable, "-c", WRITER, str(run.root), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = [int(line) for line in (first + process.stdout.read()).splitlines()]
    found = list_checkpoints(run)
    assert acknowledged and found[: len(acknowledged)] == acknowledged and len(found) <= len(acknowledged) + 1
    assert all(equal(read_checkpoint(run, step)[0]["model"], tensors(step)) for step in found)
