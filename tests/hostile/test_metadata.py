"""Words that are too large, too deep, or cost more to read than to write; all signed correctly."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import limited, refused
from guard import GIB
from simulator import Enemy

from vtrain.commit import keys, statement
from vtrain.errors import (
    CheckpointError,
    LogError,
    MalformedRunError,
    PathError,
    TranscriptError,
    VtrainError,
)
from vtrain.job import MAX_BYTES as MAX_JOB_BYTES
from vtrain.store import canonical
from vtrain.store.checkpoint import MAX_HEADER_BYTES, MAX_META_BYTES, read_safetensors
from vtrain.store.layout import MAX_PROGRAM_BYTES
from vtrain.store.transcript import MAX_LINE_BYTES

DEEP = b"[" * 200_000
# Values that take twenty times their text in memory.
OBJECTS = b"{}," * 100


def many_keys(size: int) -> bytes:
    """An object of as many distinct keys as fit into ``size`` bytes, the last one twice."""
    items = [f'"{i:07d}":0' for i in range(size // 12)]
    return ("{" + ",".join([*items, items[-1]]) + "}").encode()


JOBS: dict[str, tuple[bytes, type[VtrainError], str]] = {
    "oversized": (b" " * (MAX_JOB_BYTES + 1), PathError, f"expected at most {MAX_JOB_BYTES}"),
    "deep": (b'{"a":' + DEEP, MalformedRunError, "recursion"),
    "deeper than any": (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", MalformedRunError, "nested more than 32"),
    "many keys, one twice": (many_keys(MAX_JOB_BYTES - 20), MalformedRunError, "occurs twice"),
    "key twice": (b'{"format":1,"format":1}', MalformedRunError, "'format' occurs twice"),
    "not UTF-8": (b'{"a":"\xff"}', MalformedRunError, "utf-8"),
    "many unknown keys": (
        canonical.dumps({"format": 1, "kind": "job", **{f"{i:06d}": i for i in range(50_000)}}), MalformedRunError,
        "unknown key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", JOBS)
def test_job(run: Path, case: str) -> None:
    data, error, text = JOBS[case]
    (run / "job.json").write_bytes(data)
    refused(run, error, text)


LINES: dict[str, tuple[bytes, str]] = {
    "oversized": (b'{"a":"' + b"x" * MAX_LINE_BYTES + b'"}', "longer than"),
    "deep": (b'{"a":' + DEEP, "recursion"),
    "many keys, one twice": (many_keys(MAX_LINE_BYTES - 20), "occurs twice"),
    "not UTF-8": (b'{"type":"\xff"}', "utf-8"),
    "of another type": (canonical.dumps({"type": "root"}), "expected one of"),
    "head that is a list": (canonical.dumps({"type": "head", "note": ["x"]}), "expected a note"),
    "huge note": (canonical.dumps({"type": "head", "note": "x" * 500_000}), "at most 131072"),
}


@pytest.mark.parametrize("case", LINES)
def test_transcript(run: Path, case: str) -> None:
    line, text = LINES[case]
    path = run / "transcript.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    refused(run, TranscriptError, text)


def test_transcript_that_unfolds(run: Path) -> None:
    """100 MB of lines that are no leaves, each of which would take 8 MB: the first one ends it."""
    line = b'{"a":[' + b"{}," * 120_000 + b'{}],"type":"leaf"}\n'
    with (run / "transcript.jsonl").open("wb") as handle:
        handle.writelines(line for _ in range(280))
    limited("verify", run, code=3, text="leaf of step 0: fields", memory=GIB // 4)


def test_more_lines_than_the_job_has_steps(run: Path) -> None:
    """What follows the last head is no evidence, and still no reason to read without end."""
    last = Enemy(run).leaves[-1]
    lines = [canonical.dumps({**last, "step": step}) for step in range(7, 2000)]
    with (run / "transcript.jsonl").open("ab") as handle:
        handle.writelines(line + b"\n" for line in lines)
    refused(run, TranscriptError, "more than 1014 lines")


SITES: dict[str, tuple[list[str], str]] = {
    "no shape": (["aten.mm.default float32"], "has no shape"),
    "negative": (["aten.mm.default float32[-2, -3]"], "has no shape"),
    "with a sign": (["aten.mm.default float32[+2]"], "has no shape"),
    "underscores": (["aten.mm.default float32[1_0]"], "has no shape"),
    "digits of other scripts": (["aten.mm.default float32[\u0663]"], "not a list of sites"),
    "too many elements": ([f"aten.mm.default float32[{2**24}, {2**24}]"], "expected fewer than"),
    "overflowing": (["aten.mm.default float32[4294967296, 4294967296]"], "expected fewer than"),
    "many digits": ([f"aten.mm.default float32[{'9' * 900}]"], "has no shape"),
    "many extents": ([f"aten.mm.default float32[{', '.join(['9'] * 100)}]"], "has no shape"),
    "long": (["x" * 2000 + "[1]"], "not a list of sites"),
    "control characters": (["aten.\x1b[2J.default float32[1]"], "not a list of sites"),
}


@pytest.mark.parametrize("case", SITES)
def test_sites(run: Path, case: str) -> None:
    sites, text = SITES[case]
    with Enemy(run) as enemy:
        enemy.sites(4, sites)
    refused(run, MalformedRunError, text)


PROGRAMS: dict[str, tuple[bytes, type[VtrainError], str]] = {
    "oversized": (b'{"sites":[]}' + b" " * MAX_PROGRAM_BYTES, PathError, f"expected at most {MAX_PROGRAM_BYTES}"),
    "deep": (b'{"sites":' + DEEP, MalformedRunError, "not JSON"),
    "site of 4 MiB of extents": (
        b'{"sites":["x [' + b", ".join([b"999999999"] * 400_000) + b']"]}', MalformedRunError, "not a list of sites",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS)
def test_program(run: Path, case: str) -> None:
    text, error, message = PROGRAMS[case]
    with Enemy(run) as enemy:
        enemy.program(4, text)
    refused(run, error, message)


def test_program_that_unfolds(run: Path) -> None:
    """As many empty objects as a program's file has room for."""
    count = (MAX_PROGRAM_BYTES - 100) // 3
    with Enemy(run) as enemy:
        enemy.program(4, b'{"sites":[' + b"{}," * count + b"{}]}")
    limited("verify", run, code=3, text="not a list of sites", memory=GIB)


def test_attestation(run: Path) -> None:
    path = run / "attestation.json"
    data = path.read_bytes()
    path.write_bytes(data + b" " * (1 << 20))
    refused(run, PathError, "expected at most 1048576")
    payload = b'{"predicate":' + DEEP
    path.write_bytes(sealed(payload))
    refused(run, MalformedRunError, "not JSON")
    path.write_bytes(sealed(b'{"_type":"x","_type":"x"}'))
    refused(run, MalformedRunError, "twice")


def sealed(payload: bytes) -> bytes:
    """An envelope whose signature holds, around anything."""
    from run_helpers import KEY

    signature = statement._base64(KEY.sign(statement.pae(statement.PAYLOAD_TYPE, payload)))
    signatures = [{"keyid": keys.key_id(KEY.public_key()), "sig": signature}]
    fields = {"payload": statement._base64(payload), "payloadType": statement.PAYLOAD_TYPE, "signatures": signatures}
    return json.dumps(fields).encode()


def meta_of(files: list[str]) -> bytes:
    """Well-formed notes of step 2, but for the names of its files."""
    fields = {"files": files, "format": "vtrain-checkpoint", "meta": {}, "step": 2, "version": 1}
    return canonical.dumps(fields)


METAS: dict[str, tuple[bytes, type[VtrainError], str]] = {
    "oversized": (b" " * (MAX_META_BYTES + 1), PathError, f"expected at most {MAX_META_BYTES}"),
    "deep": (b'{"meta":' + DEEP, CheckpointError, "recursion"),
    "many keys, one twice": (many_keys(MAX_META_BYTES - 20), CheckpointError, "occurs twice"),
    "key twice": (b'{"meta":{},"meta":{}}', CheckpointError, "occurs twice"),
    "not UTF-8": (b'{"meta":"\xff"}', CheckpointError, "utf-8"),
    "path in it": (meta_of(["../../../secret"]), CheckpointError, "not names of files"),
    "absolute path in it": (meta_of(["/etc/passwd"]), CheckpointError, "not names of files"),
}  # fmt: skip


@pytest.mark.parametrize("case", METAS)
def test_meta(run: Path, case: str) -> None:
    data, error, text = METAS[case]
    with Enemy(run) as enemy:
        enemy.meta(2, data)
    refused(run, error, text)


def test_meta_that_unfolds(run: Path) -> None:
    """It is for resuming only, and no part of the evidence: what is well-formed passes, within bounds."""
    meta = json.loads((run / "checkpoints/000002/meta.json").read_bytes())
    meta["meta"]["extra"] = {"a": [{}] * 1_300_000}
    with Enemy(run) as enemy:
        enemy.meta(2, canonical.dumps(meta))
    limited("verify", run, code=0, memory=GIB)


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


HEADERS: dict[str, tuple[bytes, str]] = {
    "longer than the file": (struct.pack("<Q", 2**63) + b"{}", "a header of 9223372036854775808 bytes"),
    "many keys, one twice": (header(many_keys(4 << 20)), "occurs twice"),
    "shape of many extents": (
        header(b'{"x":{"dtype":"U8","shape":[' + b"9007199254740991," * 500_000 + b'1],"data_offsets":[0,0]}}'),
        "at most 64 extents",
    ),
    "shape of many zeros": (
        header(b'{"x":{"dtype":"U8","shape":[' + b"0," * 500_000 + b'1],"data_offsets":[0,0]}}'), "at most 64 extents",
    ),
    "negative extents": (
        header(b'{"x":{"dtype":"U8","shape":[-2,-2],"data_offsets":[0,4]}}', b"1234"), "are not sizes"
    ),
    "extents that wrap": (
        header(b'{"x":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'), "more than 2\\^53",
    ),
    "unfolds": (header(b'{"__metadata__":[' + b"{}," * 5_000_000 + b"{}]}"), "not strings by string"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_header(run: Path, case: str) -> None:
    data, text = HEADERS[case]
    (run / "checkpoints/000002/optimizer.safetensors").write_bytes(data)
    refused(run, CheckpointError, text)


def test_header_that_unfolds(run: Path) -> None:
    names = b",".join(b'"%06x":{}' % i for i in range(MAX_HEADER_BYTES // 12 - 10))
    (run / "checkpoints/000002/optimizer.safetensors").write_bytes(header(b"{" + names + b"}"))
    limited("verify", run, code=3, text="expected dtype, shape and data_offsets", memory=GIB)


SLOW: dict[str, Callable[[Path], object]] = {
    "keys": lambda path: canonical.loads(many_keys(4 << 20), where="x"),
    "header": lambda path: read_safetensors(path),
}


@pytest.mark.parametrize("case", SLOW)
def test_time_grows_with_length_only(tmp_path: Path, case: str) -> None:
    """Quadratic once: half a million keys took minutes."""
    path = tmp_path / "x"
    path.write_bytes(header(many_keys(8 << 20)))
    began = time.monotonic()
    with pytest.raises(MalformedRunError, match="occurs twice"):
        SLOW[case](path)
    assert time.monotonic() - began < 30


def test_zarr_metadata_in_a_signed_run(run: Path) -> None:
    """The rules are tested in tests/store; here, that both commands apply them."""
    path = run / "log.zarr/000004/gaps/zarr.json"
    value = json.loads(path.read_bytes())
    for change in ({"shape": [-1]}, {"shape": [2**63]}, {"codecs": [{"name": "numcodecs.pickle"}]}, {"x": "../../y"}):
        path.write_text(json.dumps({**value, **change}))
        refused(run, LogError)
    path.write_bytes(b'{"a":' + DEEP[:16_000])
    refused(run, LogError, "recursion|Expecting")
    path.write_bytes(b" " * 20_000)
    refused(run, PathError, "at most 16384")
