"""A trainer who writes whatever he likes and signs it correctly: each test breaks one rule and no other."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from google_crc32c import value as crc32c
from run_helpers import KEY

from vtrain.commit import heads, keys, merkle, statement
from vtrain.commit.chunks import TensorChunks, chunk_hash, chunks_digest
from vtrain.commit.digest import CHUNK_BYTES
from vtrain.demo.forger import Forger
from vtrain.job import job_digest
from vtrain.store import canonical
from vtrain.store.checkpoint import scan_checkpoint
from vtrain.store.layout import step_name
from vtrain.store.logformat import COLUMN_SPECS, OFFSETS, ArraySpec, array_metadata, columns_digest
from vtrain.store.logread import read_segment
from vtrain.store.steplog import COLUMNS

_CODEC = numcodecs.Zstd(level=3, checksum=True)


class Enemy(Forger):
    """A run to be spoilt; ``sign`` (or leaving the ``with``) makes every digest, proof and signature right again."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, KEY)
        self.run = run

    def __enter__(self) -> Enemy:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.sign()

    # ---- words --------------------------------------------------------------------------------------------------
    def program(self, step: int, text: bytes) -> None:
        """Let a step name a program file of this text."""
        name = hashlib.sha256(text).hexdigest()
        (self.run / "programs" / f"{name}.json").write_bytes(text)
        self.leaves[step]["sites"] = name

    def sites(self, step: int, sites: list[str]) -> None:
        """Let a step claim these sites."""
        self.program(step, json.dumps({"format": "vtrain-sites-v1", "sites": sites}).encode())

    def meta(self, step: int, data: bytes) -> None:
        """Notes for resuming."""
        (self.layout.checkpoint(step) / "meta.json").write_bytes(data)

    def attest(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the signed statement, after ``sign``."""
        envelope = json.loads(self.layout.attestation.read_bytes())
        made = json.loads(keys.decode_base64(envelope["payload"]))
        change(made)
        self.layout.attestation.write_bytes(statement.sign_statement(made, KEY))

    def lines(self) -> list[bytes]:
        """The transcript's lines."""
        return self.layout.transcript.read_bytes().splitlines()

    def note(self, size: int, leaves: list[dict[str, Any]] | None = None) -> str:
        """A signed head over the first ``size`` of these leaves, the run's own by default."""
        tree = merkle.Tree(merkle.leaf_hash(canonical.dumps(x)) for x in (leaves or self.leaves)[:size])
        digest = job_digest(self.layout.job.read_bytes())
        run = hashlib.sha256(self.layout.identity.read_bytes()).digest()
        return heads.sign_head(heads.Head(size, tree.root(), digest, run), KEY, heads.KEY_NAME)

    # ---- numbers ------------------------------------------------------------------------------------------------
    def file(self, step: int, name: str, data: bytes) -> None:
        """A checkpoint's file, and the state digest if it has one."""
        (self.layout.checkpoint(step) / f"{name}.safetensors").write_bytes(data)
        self._commit_state(step, scan_checkpoint(self.layout, step))

    def sparse(self, step: int, name: str, size: int) -> None:
        """A checkpoint's file of one tensor of zeros that takes no room on the disk."""
        scanned = scan_checkpoint(self.layout, step)
        header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        path = self.layout.checkpoint(step) / f"{name}.safetensors"
        with path.open("wb") as handle:
            handle.write(struct.pack("<Q", len(header)) + header)
            handle.truncate(8 + len(header) + size)
        assert size % CHUNK_BYTES == 0
        zeros = (chunk_hash("U8", memoryview(bytes(CHUNK_BYTES))),) * (size // CHUNK_BYTES)
        files = {n: file.tensors for n, file in scanned.items()}
        self.leaves[step]["state"] = chunks_digest({**files, name: {"x": TensorChunks("U8", (size,), zeros)}}).text

    def _commit_state(self, step: int, scanned: Any) -> None:
        self.leaves[step]["state"] = chunks_digest({name: file.tensors for name, file in scanned.items()}).text

    def zeros(self, last: int, step: int, sizes: dict[str, int], site: tuple[int, ...] = ()) -> None:
        """Let a step's log be columns of zeros of these sizes, in a segment of its own shape on the disk.

        Args:
            last: the segment.
            step: the step in it; it must be the segment's last.
            sizes: elements by column; ``sites`` is one row, ``site``, where that is given.
        """
        assert step == last
        segment = read_segment(self.layout.log, last, max_bytes=1 << 40)
        kept = {name: segment._columns[name].read(0, int(segment._ends[-2][i])) for i, name in enumerate(COLUMNS)}
        folder = self.layout.log / step_name(last)
        row = np.array(site, "<u8")
        for name, spec in COLUMN_SPECS.items():
            shutil.rmtree(folder / name)
            _write_zeros(folder / name, spec, np.concatenate([kept[name], row if name == "sites" else row[:0]]).astype(
                spec.dtype), sizes.get(name, 0))  # fmt: skip
        offsets = np.array([[s, *segment._ends[s - segment.first + 1]] for s in range(segment.first, last + 1)], "<u8")
        offsets[-1, 1:] = [len(kept[n]) + (len(row) if n == "sites" else 0) + sizes.get(n, 0) for n in COLUMNS]
        shutil.rmtree(folder / "offsets")
        _write_zeros(folder / "offsets", OFFSETS, offsets, 0)
        own = {n: (row.tobytes() if n == "sites" else b"", sizes.get(n, 0), COLUMN_SPECS[n].row_bytes) for n in COLUMNS}
        self.leaves[step]["log"] = columns_digest(
            (n, len(head) // width + count, _parts(head, count * width)) for n, (head, count, width) in own.items()
        ).hex()


def _parts(head: bytes, zeros: int) -> Any:
    yield head
    for start in range(0, zeros, 1 << 24):
        yield bytes(min(1 << 24, zeros - start))


def shard(spec: ArraySpec, frames: list[bytes]) -> bytes:
    """A shard of these frames, whose index and checksum are right."""
    index = np.full((spec.shard // spec.chunk, 2), 2**64 - 1, "<u8")
    start = 0
    for number, frame in enumerate(frames):
        index[number] = (start, len(frame))
        start += len(frame)
    return b"".join(frames) + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")


def _write_zeros(folder: Path, spec: ArraySpec, head: np.ndarray, zeros: int) -> None:
    """An array that begins with ``head``, zeros after it: a few hundred bytes a shard of 4 MiB."""
    rows = len(head) + zeros
    folder.mkdir()
    (folder / "zarr.json").write_text(json.dumps(array_metadata(spec, rows)))
    size = spec.chunk * spec.row_bytes
    empty, data = _CODEC.encode(bytes(size)), head.tobytes()
    for number in range(spec.shards(rows)):
        chunks = -(-min(spec.shard, rows - number * spec.shard) // spec.chunk)
        frames = []
        for _ in range(chunks):
            part, data = data[:size], data[size:]
            frames.append(_CODEC.encode(part.ljust(size, b"\0")) if part else empty)
        path = folder / spec.shard_key(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shard(spec, frames))
