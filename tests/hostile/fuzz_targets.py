"""Everything that parses what a trainer wrote, each with valid inputs and a way to spoil them (used by test_fuzz)."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numcodecs
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google_crc32c import value as crc32c
from mutations import Step, spoil_bytes, spoil_json

from auditor.evidence import Evidence, open_run
from auditor.evidence.prove import check, prove
from auditor.evidence.sites import is_canonical, numel
from auditor.evidence.verify import verify
from vtrain.commit import heads, keys, merkle, statement
from vtrain.commit.chunks import chunks_digest
from vtrain.commit.digest import ChunkProof, TensorBytes, chunk_proof, files_digest, state_digest, verify_chunk
from vtrain.commit.leaf import leaf_from_json
from vtrain.errors import VtrainError
from vtrain.job import parse_canonical
from vtrain.store import canonical, transcript
from vtrain.store.checkpoint import read_checkpoint, read_safetensors
from vtrain.store.identity import LoopFacts, parse_identity
from vtrain.store.layout import Layout
from vtrain.store.logformat import SPECS, step_digest
from vtrain.store.logread import read_segment
from vtrain.store.tensorfile import scan_below

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
MAX = 1 << 24
Feed = Callable[[list[Step], float], None]


@dataclass
class Fuzz:
    """A small honest run and a scratch folder.

    Attributes:
        run: the run; never changed.
        scratch: where spoilt input is written.
    """

    run: Path
    scratch: Path

    def __post_init__(self) -> None:
        self.evidence: Evidence = open_run(self.run)
        self.lines = (self.run / "transcript.jsonl").read_bytes().splitlines(keepends=True)

    def file(self, name: str, data: bytes) -> Path:
        """A file in the scratch folder."""
        path = self.scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    # ---- the trainer's words ------------------------------------------------------------------------------------
    def job(self, plan: list[Step], pick: float) -> None:
        data = (spoil_json, spoil_bytes)[pick > 0.8]((self.run / "job.json").read_bytes(), plan, b"")
        parse_canonical(data, canonical.loads(data, where="job.json", floats=True), "job.json")

    def identity(self, plan: list[Step], pick: float) -> None:
        found = self.evidence.identity
        if pick < 0.5:
            found = replace(found, loop=LoopFacts({"": "Net", "0": "Linear"}, "SGD", "s", {"main.py": "0" * 64}))
        data = (spoil_json, spoil_bytes)[pick * 10 % 1 > 0.8](found.encode(), plan, b"")
        assert parse_identity(data, found.job).encode() == data

    def transcript(self, plan: list[Step], pick: float) -> None:
        data = spoil_bytes(b"".join(self.lines), plan, self.lines[int(pick * len(self.lines))])
        path = self.file("transcript.jsonl", data)
        assert list(transcript.walk(path)) == transcript.read(path).lines

    def leaf(self, plan: list[Step], pick: float) -> None:
        line = self.lines[int(pick * len(self.lines))].rstrip(b"\n")
        value = canonical.loads(spoil_json(line, plan, b""), where="leaf")
        step = value.get("step")
        leaf = leaf_from_json(value, step if type(step) is int else 0)
        assert leaf.to_json() == value

    def note(self, plan: list[Step], pick: float) -> None:
        note = self.evidence.notes[-1]
        if pick < 0.5:
            text = spoil_bytes(note.encode(), plan, note.encode()).decode("utf-8", "surrogateescape")
        else:  # well signed nonsense
            body = spoil_bytes(note.split("\n\n")[0].encode() + b"\n", plan, b"\n").decode("utf-8", "replace")
            signature = heads.note_key_id(heads.KEY_NAME, PUBLIC) + KEY.sign(body.encode())
            text = f"{body}\n\N{EM DASH} {heads.KEY_NAME} {statement._base64(signature)}\n"
        head = heads.open_head(text, PUBLIC, heads.KEY_NAME)
        assert head.text == text.rpartition("\n\n")[0] + "\n"

    def envelope(self, plan: list[Step], pick: float) -> None:
        data = (self.run / "attestation.json").read_bytes()
        if pick < 0.4:
            data = (spoil_json, spoil_bytes)[pick < 0.1](data, plan, data)
        else:
            payload = keys.decode_base64(json.loads(data)["payload"])
            payload = (spoil_json, spoil_bytes)[pick > 0.8](payload, plan, payload)
            signature = KEY.sign(statement.pae(statement.PAYLOAD_TYPE, payload))
            signed = {"keyid": keys.key_id(PUBLIC), "sig": statement._base64(signature)}
            fields = {"payload": statement._base64(payload), "payloadType": statement.PAYLOAD_TYPE}
            data = json.dumps({**fields, "signatures": [signed]}).encode()
        statement.open_statement(data, PUBLIC, statement.RUN_PREDICATE)

    def key(self, plan: list[Step], pick: float) -> None:
        own = self.scratch / "own.key"
        if not own.exists():
            keys.save_private(own, KEY)
        source, load = ((own, keys.load_private), (self.run / "trainer.pub", keys.load_public))[pick < 0.6]
        data = spoil_bytes(source.read_bytes(), plan, source.read_bytes())
        load(self.file("key.pem", data))
        if pick < 0.2:
            keys.load_public("-----BEGIN" + data.decode("utf-8", "surrogateescape"))

    def program(self, plan: list[Step], pick: float) -> None:
        name = self.evidence.leaves[-1].sites
        data = (self.run / "programs" / f"{name}.json").read_bytes()
        data = (spoil_json, spoil_bytes)[pick > 0.7](data, plan, data)
        new = __import__("hashlib").sha256(data).hexdigest()
        self.file(f"programs/{new}.json", data)
        leaves = [replace(self.evidence.leaves[0], sites=new)]
        evidence = replace(self.evidence, layout=Layout(self.scratch), leaves=leaves, _programs={}, _bounds={})
        try:
            for site in evidence.sites(0):
                assert 0 <= numel(site) < 2**48
                is_canonical(site)
        finally:
            (self.scratch / "programs" / f"{new}.json").unlink()

    # ---- numbers ------------------------------------------------------------------------------------------------
    def safetensors(self, plan: list[Step], pick: float) -> None:
        files = sorted(self.run.glob("checkpoints/*/*.safetensors"))
        data = files[int(pick * len(files))].read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        if pick * 97 % 1 < 0.7:
            text = spoil_json(data[8 : 8 + length], plan, b"")
            data = struct.pack("<Q", len(text)) + text + data[8 + length :]
        else:
            data = spoil_bytes(data, plan, data)
        path = self.file("x.safetensors", data)
        read: Exception | None = None
        try:
            tensors = read_safetensors(path, MAX)
        except VtrainError as error:
            read = error
        try:
            scanned = scan_below(self.scratch, path.name, MAX)
        except VtrainError as error:
            assert read is not None and str(read) == str(error)
            raise
        assert read is None and chunks_digest({"x": scanned.tensors}).text == files_digest({"x": tensors}).text

    def meta(self, plan: list[Step], pick: float) -> None:
        target = self.scratch / "meta" / "checkpoints" / "000002"
        if not target.exists():
            shutil.copytree(self.run / "checkpoints" / "000002", target)
        data = (self.run / "checkpoints" / "000002" / "meta.json").read_bytes()
        (target / "meta.json").write_bytes((spoil_json, spoil_bytes)[pick > 0.7](data, plan, data))
        read_checkpoint(Layout(self.scratch / "meta"), 2, max_bytes=MAX)

    def log(self, plan: list[Step], pick: float) -> None:
        segment = self.scratch / "log.zarr" / "000004"
        if not segment.exists():
            shutil.copytree(self.run / "log.zarr" / "000004", segment)
        files = sorted(p for p in (self.run / "log.zarr" / "000004").rglob("*") if p.is_file())
        source = files[int(pick * len(files))]
        path = segment / source.relative_to(self.run / "log.zarr" / "000004")
        data = source.read_bytes()
        if source.name == "zarr.json":
            data = spoil_json(data, plan, data)
        elif pick * 89 % 1 < 0.6:
            data = _spoil_frame(source, data, plan, self.run / "log.zarr" / "000004")
        else:
            data = spoil_bytes(data, plan, data)
        path.write_bytes(data)
        try:
            found = read_segment(self.scratch / "log.zarr", 4, max_bytes=MAX)
            for step in range(found.first, 5):
                log = found.step(step)
                assert found.measure(step)[0] == step_digest(log)
        finally:
            path.write_bytes(source.read_bytes())

    # ---- proofs -------------------------------------------------------------------------------------------------
    def merkle(self, plan: list[Step], pick: float) -> None:
        tree, size = self.evidence.tree, len(self.evidence.tree)
        index = int(pick * size)
        path = _spoil_path(tree.inclusion_proof(index), plan)
        leaf = merkle.leaf_hash(self.lines[0].rstrip(b"\n"))
        number = plan[0][3]
        if pick < 0.5:
            merkle.verify_inclusion(number if pick < 0.2 else index, size, leaf, path, tree.root())
        else:
            old = _spoil_path(tree.consistency_proof(index, size), plan)
            merkle.verify_consistency(number if pick > 0.8 else index, size, tree.root(index), tree.root(), old)

    def chunk(self, plan: list[Step], pick: float) -> None:
        data = np.arange(300_000, dtype="<f4")
        if not hasattr(self, "_state"):
            self._state = {"a": TensorBytes("F32", (300, 1000), data), "b": TensorBytes("BOOL", (1,), b"\1")}
            self._root, self._proof = state_digest(self._state).root, chunk_proof(self._state, "a", 1)
        fields = list(ChunkProof.__dataclass_fields__)
        changes = {}
        for _, a, _, value in plan:
            name = fields[int(a * len(fields))]
            old = getattr(self._proof, name)
            strange = tuple(value) if isinstance(value, list) else value
            changes[name] = tuple(_spoil_path(list(old), plan)) if name.endswith("path") and pick < 0.5 else strange
        proof = replace(self._proof, **changes)
        verify_chunk(self._root, proof, self._state["a"].view[1 << 20 :])

    def proof(self, plan: list[Step], pick: float) -> None:
        data = prove(self.evidence, int(pick * 7))
        check((spoil_json, spoil_bytes)[pick * 83 % 1 > 0.8](data, plan, data), PUBLIC)

    # ---- all together -------------------------------------------------------------------------------------------
    def whole(self, plan: list[Step], pick: float) -> None:
        copy = self.scratch / "run"
        if not copy.exists():
            shutil.copytree(self.run, copy)
        files = sorted(p for p in self.run.rglob("*") if p.is_file() and p.name not in (".lock", "metrics.jsonl"))
        source = files[int(pick * len(files))]
        data = source.read_bytes()
        spoil = spoil_json if source.suffix == ".json" and pick * 79 % 1 < 0.6 else spoil_bytes
        path = copy / source.relative_to(self.run)
        path.write_bytes(spoil(data, plan, data))
        try:
            verify(copy, PUBLIC, lambda step, last: None)
        finally:
            path.write_bytes(data)


TARGETS = [
    "job", "identity", "transcript", "leaf", "note", "envelope", "key", "program", "safetensors", "meta", "log",
    "merkle", "chunk", "proof", "whole",
]  # fmt: skip


def _spoil_path(path: list[bytes], plan: list[Step]) -> list[bytes]:
    joined = spoil_bytes(b"".join(path), plan, b"".join(path))
    return [joined[i : i + 32] for i in range(0, len(joined), 32)]


def _frames(data: bytes, count: int) -> Iterator[bytes]:
    index = np.frombuffer(data, "<u8", 2 * count, offset=len(data) - 16 * count - 4).reshape(-1, 2)
    for offset, size in index.tolist():
        if offset != 2**64 - 1:
            yield data[offset : offset + size]


def _spoil_frame(source: Path, data: bytes, plan: list[Step], segment: Path) -> bytes:
    """A shard whose index and checksum are right, around chunks that are not."""
    spec = SPECS[source.relative_to(segment).parts[0]]
    count = spec.shard // spec.chunk
    frames = list(_frames(data, count))
    codec = numcodecs.Zstd(level=3, checksum=True)
    if plan[0][0] < 5:
        frames[0] = spoil_bytes(frames[0], plan, frames[0])
    else:
        raw = spoil_bytes(codec.decode(frames[0])[:4096], plan, b"")
        frames[0] = codec.encode(raw[: spec.chunk * spec.row_bytes].ljust(spec.chunk * spec.row_bytes, b"\0"))
    index = np.full((count, 2), 2**64 - 1, "<u8")
    start = 0
    for number, frame in enumerate(frames):
        index[number] = (start, len(frame))
        start += len(frame)
    return b"".join(frames) + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")
