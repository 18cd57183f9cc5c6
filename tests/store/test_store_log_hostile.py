from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import flip, same, sample

from vtrain.errors import LogError, MalformedRunError, PathError, VersionError
from vtrain.store.log import LogWriter, read_segment, segments
from vtrain.store.logformat import COLUMN_SPECS, SPECS, check_step
from vtrain.store.steplog import StepLog

MAX = 1 << 28
STEPS = range(1, 4)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "log.zarr"
    with LogWriter(root) as writer:
        for step in STEPS:
            writer.append(step, sample(step))
        writer.end_segment(STEPS[-1])
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "log.zarr"))


def read_all(root: Path) -> list[StepLog]:
    segment = read_segment(root, 3, max_bytes=MAX)
    return [segment.step(step) for step in STEPS]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_copy_reads(root: Path) -> None:
    assert all(same(log, sample(step)) for log, step in zip(read_all(root), STEPS, strict=True))


def _sharding(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata["codecs"][0]["configuration"]


METADATA: dict[str, Callable[[dict[str, Any]], object]] = {
    "bomb": lambda m: m.update(shape=[2**50]),
    "beyond 53 bits": lambda m: m.update(shape=[2**63]),
    "negative": lambda m: m.update(shape=[-1]),
    "longer": lambda m: m.update(shape=[m["shape"][0] + 6]),
    "shorter": lambda m: m.update(shape=[m["shape"][0] - 6]),
    "float": lambda m: m.update(shape=[float(m["shape"][0])]),
    "bool": lambda m: m.update(shape=[True]),
    "no dimension": lambda m: m.update(shape=[]),
    "two dimensions": lambda m: m.update(shape=[1, m["shape"][0]]),
    "dtype": lambda m: m.update(data_type="int64"),
    "object dtype": lambda m: m.update(data_type="string"),
    "fill value": lambda m: m.update(fill_value=1),
    "unlisted codec": lambda m: m["codecs"].append({"name": "gzip", "configuration": {"level": 5}}),
    "pickle codec": lambda m: m.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
    "inner codec": lambda m: _sharding(m)["codecs"][1].update(name="blosc"),
    "no compression": lambda m: _sharding(m)["codecs"].pop(),
    "codec setting": lambda m: _sharding(m)["codecs"][1]["configuration"].update(checksum=False),
    "setting of another type": lambda m: _sharding(m)["codecs"][1]["configuration"].update(checksum=1),
    "index without checksum": lambda m: _sharding(m)["index_codecs"].pop(),
    "index at start": lambda m: _sharding(m).update(index_location="start"),
    "chunk bomb": lambda m: _sharding(m).update(chunk_shape=[2**40]),
    "shard bomb": lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[2**40]),
    "transformer": lambda m: m.update(storage_transformers=[{"name": "x"}]),
    "attributes": lambda m: m.update(attributes={"x": 1}),
    "unknown key": lambda m: m.update(must_understand=False),
    "missing key": lambda m: m.pop("fill_value"),
    "version 2": lambda m: m.update(zarr_format=2),
    "group": lambda m: m.update(node_type="group"),
}


@pytest.mark.parametrize("case", METADATA)
def test_array_metadata(root: Path, case: str) -> None:
    edit(root / "000003" / "sites" / "zarr.json", METADATA[case])
    with pytest.raises(LogError, match=r"sites|offsets|before compression"):
        read_all(root)


def test_neutral_metadata_of_other_releases(root: Path) -> None:
    metadata = root / "000003" / "sites" / "zarr.json"
    edit(metadata, lambda m: (m.pop("storage_transformers"), m.update(dimension_names=None)))
    assert same(read_all(root)[0], sample(1))


GROUP: dict[str, tuple[Callable[[dict[str, Any]], object], type[MalformedRunError]]] = {
    "format": (lambda m: m["attributes"].update(vtrain_log=2), VersionError),
    "format of another type": (lambda m: m["attributes"].update(vtrain_log=True), VersionError),
    "encoding": (lambda m: m["attributes"].update(encoding_version=2), VersionError),
    "no version": (lambda m: m["attributes"].pop("vtrain_log"), VersionError),
    "no attributes": (lambda m: m.pop("attributes"), LogError),
    "unknown attribute": (lambda m: m["attributes"].update(x=1), LogError),
    "first": (lambda m: m["attributes"].update(first_step=2), LogError),
    "first too far": (lambda m: m["attributes"].update(first_step=4), LogError),
    "first zero": (lambda m: m["attributes"].update(first_step=0), LogError),
    "last": (lambda m: m["attributes"].update(last_step=4), LogError),
    "consolidated": (lambda m: m.update(consolidated_metadata={}), LogError),
    "version of another type": (lambda m: m.update(zarr_format=3.0), LogError),
}


@pytest.mark.parametrize("case", GROUP)
def test_group_metadata(root: Path, case: str) -> None:
    change, error = GROUP[case]
    edit(root / "000003" / "zarr.json", change)
    with pytest.raises(error, match="000003"):
        read_all(root)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":1,"a":1}', "[" * 10000, "\udcff"])
def test_metadata_text(root: Path, text: str) -> None:
    (root / "000003" / "gaps" / "zarr.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LogError, match="gaps"):
        read_all(root)


def test_huge_metadata(root: Path) -> None:
    (root / "000003" / "gaps" / "zarr.json").write_text(" " * 20_000)
    with pytest.raises(PathError, match="at most 16384"):
        read_all(root)


def test_bound(root: Path) -> None:
    logs = [sample(step) for step in STEPS]
    total = sum(array.nbytes for log in logs for array in vars(log).values()) + 48 * len(STEPS)
    read_segment(root, 3, max_bytes=total)
    with pytest.raises(LogError, match=f"{total} bytes before compression"):
        read_segment(root, 3, max_bytes=total - 1)


@pytest.mark.parametrize("name", SPECS)
def test_missing_and_extra_files(root: Path, name: str) -> None:
    segment = root / "000003"
    shard = segment / name / SPECS[name].shard_key(0)
    for extra in (segment / "x", segment / name / "x", segment / name / "c" / "1", segment / name / "c" / "00"):
        extra.touch()
        with pytest.raises(LogError, match=r"unexpected|names"):
            read_all(root)
        extra.unlink()
    shard.unlink()
    with pytest.raises(LogError, match="missing"):
        read_all(root)
    shutil.rmtree(segment / name)
    with pytest.raises(LogError, match="missing"):
        read_all(root)


def test_missing_segment(root: Path) -> None:
    with pytest.raises(LogError, match="missing or incomplete"):
        read_segment(root, 4, max_bytes=MAX)
    (root / "readme").touch()
    with pytest.raises(LogError, match="unexpected name"):
        segments(root)
    with pytest.raises(LogError, match="missing"):
        segments(root / "nothing")


def test_links_and_pipes(root: Path, tmp_path: Path) -> None:
    shard = root / "000003" / "gaps" / "c" / "0"
    shard.rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", shard)
    with pytest.raises(PathError):
        read_all(root)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(PathError):
        read_all(root)
    shard.unlink()
    (tmp_path / "elsewhere").rename(shard)
    for directory in (root / "000003" / "gaps", root / "000003", root):
        directory.rename(tmp_path / "moved")
        os.symlink(tmp_path / "moved", directory)
        with pytest.raises(PathError):
            read_all(root)
        directory.unlink()
        (tmp_path / "moved").rename(directory)
    assert same(read_all(root)[0], sample(1))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SPECS)), where=st.floats(0, 1, exclude_max=True))
def test_flipped_bits(template: Path, tmp_path_factory: pytest.TempPathFactory, name: str, where: float) -> None:
    root = Path(shutil.copytree(template, tmp_path_factory.mktemp("flip") / "log.zarr"))
    shard = root / "000003" / name / SPECS[name].shard_key(0)
    flip(shard, int(where * shard.stat().st_size * 8))
    with pytest.raises(LogError, match=f"000003/{name}/c/0"):
        read_all(root)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(SPECS)), share=st.floats(0, 1, exclude_max=True))
def test_truncated_shards(template: Path, tmp_path_factory: pytest.TempPathFactory, name: str, share: float) -> None:
    root = Path(shutil.copytree(template, tmp_path_factory.mktemp("cut") / "log.zarr"))
    shard = root / "000003" / name / SPECS[name].shard_key(0)
    os.truncate(shard, int(share * shard.stat().st_size))
    with pytest.raises(LogError, match=f"000003/{name}/c/0"):
        read_all(root)


def make_shard(frames: list[bytes], missing_first: bool = False) -> bytes:
    """A shard of the given frames whose index and checksum are right."""
    index = np.full((32, 2), 2**64 - 1, "<u8")
    start = 0
    for number, frame in enumerate(frames):
        index[number] = (start, len(frame))
        start += len(frame)
    if missing_first:
        index[0] = 2**64 - 1
    return b"".join(frames) + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")


def test_forged_chunks(root: Path) -> None:
    spec = COLUMN_SPECS["gaps"]
    shard = root / "000003" / "gaps" / "c" / "0"
    packed = numcodecs.Zstd(level=3, checksum=True)
    right = packed.encode(bytes(spec.chunk))
    shard.write_bytes(make_shard([right]))
    assert not read_all(root)[0].gaps.any()
    bomb = bytearray(packed.encode(bytes(1 << 28)))
    assert len(bomb) < spec.max_shard_bytes
    cases = {
        "chunk 0 holds 268435456 bytes": make_shard([bytes(bomb)]),
        "chunk 0 at 18446744073709551615": make_shard([right], missing_first=True),
        "chunk 1 lies beyond": make_shard([right, right]),
        "chunk 0 holds None": make_shard([right[:4]]),
        "after the last chunk": b"".join([right, b"hidden", make_shard([right])[len(right) :]]),
        "chunk 0 at 0, 9999": make_shard([b"x" * 9999])[9998:],
    }
    # A bomb that declares the right size: the decoder's buffer is of that size.
    assert not bomb[4] & 0x20  # not a single segment: the size comes after the window's
    bomb[6:10] = spec.chunk.to_bytes(4, "little")
    cases["corrupt"] = make_shard([bytes(bomb)])
    for message, data in cases.items():
        shard.write_bytes(data)
        with pytest.raises(LogError, match=message):
            read_all(root)


def change_offsets(root: Path, change: Callable[[np.ndarray], object]) -> None:
    shard = root / "000003" / "offsets" / "c" / "0" / "0"
    codec = numcodecs.Zstd(level=3, checksum=True)
    data = shard.read_bytes()
    table = np.frombuffer(codec.decode(data[: -16 * 16 - 4]), "<u8").reshape(-1, 6).copy()
    change(table)
    frame = codec.encode(table.tobytes())
    index = np.full((16, 2), 2**64 - 1, "<u8")
    index[0] = (0, len(frame))
    shard.write_bytes(frame + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little"))


OFFSETS: dict[str, tuple[int, int, int]] = {
    "other steps": (0, 0, 2),
    "sites divided": (0, 1, 5),
    "decreasing": (1, 2, 0),
    "end": (2, 3, 10**6),
    "bomb": (0, 4, 2**63),
    "moved": (0, 5, 4),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets(root: Path, case: str) -> None:
    row, column, value = OFFSETS[case]
    change_offsets(root, lambda table: None)
    assert same(read_all(root)[1], sample(2))
    change_offsets(root, lambda table: table.__setitem__((row, column), value))
    if case == "moved":  # one step's last scalar becomes the next one's first: only the leaf's digest can tell
        assert not same(read_all(root)[0], sample(1))
        return
    with pytest.raises(LogError, match="000003"):
        read_all(root)


SITES: dict[str, tuple[int, int, int]] = {
    "order": (1, 0, 0),
    "repeated": (1, 0, 1),
    "numel": (0, 1, 2**50),
    "encoding": (0, 2, 2),
    "another encoding": (0, 2, 1),
    "narrow": (0, 3, 2**64 - 1),
    "wide": (0, 4, 4),
    "sum that wraps": (0, 4, 2**64 - 50),
    "gap bytes": (0, 5, 2**64 - 1),
    "fewer gap bytes": (0, 5, 1),
}


@pytest.mark.parametrize("case", SITES)
def test_site_rows(case: str) -> None:
    row, column, value = SITES[case]
    log = sample(1)
    check_step(log, "fine")
    log.sites[row, column] = value
    with pytest.raises(LogError, match="bad"):
        check_step(log, "bad")


def test_site_without_entries() -> None:
    empty = np.zeros(0, np.uint8)
    log = StepLog(np.array([[1, 4, 0, 0, 0, 0]], "<u8"), empty, empty, np.zeros(0, "<u4"), np.zeros(0, "<u8"))
    with pytest.raises(LogError, match="no entries"):
        check_step(log, "bad")


def test_gap_bytes_that_wrap_to_the_right_sum() -> None:
    """Sites whose sizes only fit modulo 2**64."""
    log = sample(1, sites=4)
    log.sites[:, 5] += np.uint64(2**62)
    with pytest.raises(LogError):
        check_step(log, "bad")
