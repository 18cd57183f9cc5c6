"""Safetensors files: written atomically; read as hostile input, without mapping them.

The format is that of https://huggingface.co/docs/safetensors: header length (uint64, little-endian), JSON header, data.
Reading is ours, so that every rule is checked before a byte of data is used, and without torch. A mapped file that
somebody cuts short ends the process (SIGBUS), and one that somebody rewrites is no longer what was hashed: so each byte
is read once, and hashed and used from memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vtrain.commit.chunks import TensorChunks, chunk_hash
from vtrain.commit.digest import CHUNK_BYTES, DTYPES, TensorBytes, byte_count
from vtrain.errors import CheckpointError, StateError, UsageError
from vtrain.store import canonical
from vtrain.store.atomic import replacing, storage_errors
from vtrain.store.layout import safe_open

MAX_HEADER_BYTES = 16 * 1024 * 1024
# Only a guard against nonsense where the caller knows no better bound; a scan reads a chunk at a time.
MAX_FILE_BYTES = 2**44
_METADATA_KEY = "__metadata__"
_LENGTH = struct.Struct("<Q")
# Chunks that are read before they are hashed together.
_BATCH = 16


@dataclass(frozen=True)
class Scanned:
    """What a file holds, without its data.

    Attributes:
        tensors: dtype, shape and chunk hashes by name, in the order of the file.
        sha256: of the whole file, hex, if it was wanted; of the very bytes that the chunk hashes are of.
    """

    tensors: dict[str, TensorChunks]
    sha256: str


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write_safetensors(path: Path, tensors: Mapping[str, TensorBytes]) -> None:
    """Write `path` atomically; equal tensors give equal bytes. The widest dtypes come first, so that all are aligned.

    Raises:
        UsageError: a name that safetensors can't carry.
        StorageError: the disk is full, read-only or failing; `path` is then as it was.
    """
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].width, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.view.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: a tensor's name is not Unicode: {error}") from error
    text += b" " * (-len(text) % 8)
    if _METADATA_KEY in tensors or len(text) > MAX_HEADER_BYTES:
        raise UsageError(f"{path}: a tensor is called {_METADATA_KEY}, or the header exceeds {MAX_HEADER_BYTES} bytes")
    with replacing(path) as handle:
        handle.write(_LENGTH.pack(len(text)) + text)
        for name in order:
            handle.write(tensors[name].view)


def read_safetensors(path: Path, max_bytes: int = MAX_FILE_BYTES) -> dict[str, TensorBytes]:
    """Read a safetensors file and check it entirely, but for the values of its elements (BOOL bytes are 0 or 1).

    Metadata of the standard format (strings by string) is accepted and ignored.

    Args:
        path: the file, in a directory that is trusted to be one.
        max_bytes: bound on its size, and so on the memory that the result takes.

    Returns:
        Tensors by name, in the order of the file; in memory, so that they stay what they are.

    Raises:
        CheckpointError: the file is truncated or breaks a rule of the format: repeated keys, unknown fields or dtypes,
            sizes that do not fit, overlaps, holes. Or it does not fit into memory.
        PathError: it is missing, a link, a special file, or larger than `max_bytes`.
        StorageError: the disk fails.
    """
    return read_below(path.parent, path.name, max_bytes)


def read_below(root: Path, relative: str, max_bytes: int) -> dict[str, TensorBytes]:
    """:func:`read_safetensors` of a path below a run, no part of which may be a link."""
    path = root / relative
    with safe_open(root, relative, max_bytes=max_bytes) as handle, storage_errors(path):
        entries, _ = _read_header(handle, f"{path}")
        result = {}
        for entry in entries:
            try:
                data = bytearray(entry.stop - entry.start)
            except MemoryError as error:
                raise CheckpointError(f"{path}: {entry.stop - entry.start} bytes do not fit into memory") from error
            _fill(handle, memoryview(data), f"{path}")
            _check_bool(entry.dtype, memoryview(data), f"{path}: tensor {entry.name!r}")
            result[entry.name] = TensorBytes(entry.dtype, entry.shape, memoryview(data).toreadonly())
    return result


def scan_below(root: Path, relative: str, max_bytes: int, *, whole: bool = False) -> Scanned:
    """Check a file as :func:`read_safetensors` does and hash it, in a few MiB of memory whatever its size.

    Args:
        root: the run.
        relative: path below it, no part of which may be a link.
        max_bytes: bound on the file's size.
        whole: whether the whole file's SHA-256 is wanted too.

    Raises:
        CheckpointError, PathError, StorageError: as :func:`read_safetensors`.
    """
    path = root / relative
    with safe_open(root, relative, max_bytes=max_bytes) as handle, storage_errors(path):
        entries, start = _read_header(handle, f"{path}")
        digest = hashlib.sha256(start)
        hashes: dict[str, list[bytes]] = {entry.name: [] for entry in entries}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for batch in _batches(handle, entries, f"{path}"):
                found = pool.map(_chunk_hash, batch)  # hashing lets go of the interpreter lock
                for _, data in batch if whole else ():
                    digest.update(data)
                for (entry, _), chunk in zip(batch, found, strict=True):
                    hashes[entry.name].append(chunk)
    tensors = {e.name: TensorChunks(e.dtype, e.shape, tuple(hashes[e.name])) for e in entries}
    return Scanned(tensors, digest.hexdigest() if whole else "")


def _chunk_hash(part: tuple[_Entry, bytearray]) -> bytes:
    return chunk_hash(part[0].dtype, memoryview(part[1]))


def _batches(handle: BinaryIO, entries: list[_Entry], where: str) -> Iterator[list[tuple[_Entry, bytearray]]]:
    """The file's chunks in order, a bounded number at a time."""
    batch: list[tuple[_Entry, bytearray]] = []
    for entry in entries:
        for start in range(entry.start, entry.stop, CHUNK_BYTES):
            data = bytearray(min(CHUNK_BYTES, entry.stop - start))
            _fill(handle, memoryview(data), where)
            _check_bool(entry.dtype, memoryview(data), f"{where}: tensor {entry.name!r}")
            batch.append((entry, data))
            if len(batch) == _BATCH:
                yield batch
                batch = []
    yield batch


def _fill(handle: BinaryIO, view: memoryview, where: str) -> None:
    done = 0
    while done < len(view):
        count = handle.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{where}: was cut short while it was read")
        done += count


def _check_bool(dtype: str, data: memoryview, where: str) -> None:
    # Any other byte means something else on each machine.
    if dtype == "BOOL" and data.nbytes and np.frombuffer(data, np.uint8).max() > 1:
        raise CheckpointError(f"{where}: a BOOL byte is neither 0 nor 1")


def _read_header(handle: BinaryIO, where: str) -> tuple[list[_Entry], bytes]:
    """The tensors in the order of their bytes, which the file is then at, and the bytes before."""
    size = os.fstat(handle.fileno()).st_size
    prefix = handle.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        raise CheckpointError(f"{where}: {size} bytes; expected a header's length in the first {_LENGTH.size}")
    (length,) = _LENGTH.unpack(prefix)
    if length > min(MAX_HEADER_BYTES, size - _LENGTH.size):
        raise CheckpointError(f"{where}: a header of {length} bytes; expected at most {MAX_HEADER_BYTES} of {size}")
    text = handle.read(length)
    if len(text) != length:
        raise CheckpointError(f"{where}: was cut short while it was read")
    header = _parse_header(text, where)
    _check_ranges(header, size - _LENGTH.size - length, where)
    return sorted((_entry(*item, where) for item in header.items()), key=lambda e: (e.start, e.stop)), prefix + text


def _parse_header(text: bytes, where: str) -> dict[str, dict[str, Any]]:
    """The header's tensors, each with exactly the three fields of the right types."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=canonical.unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: header: {error}") from error
    if not text.startswith(b"{") or not isinstance(header, dict):
        raise CheckpointError(f"{where}: header: expected a JSON object")
    metadata = header.pop(_METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where}: header: {_METADATA_KEY} is not strings by string")
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{where}: tensor {name!r:.200}: expected dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            found = str(entry["dtype"])[:32]
            raise CheckpointError(f"{where}: tensor {name!r:.200}: dtype {found!r}; expected one of {list(DTYPES)}")
        if not _sizes(entry["shape"]) or not _sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise CheckpointError(f"{where}: tensor {name!r:.200}: shape or data_offsets are not sizes")
    return header


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_ranges(header: dict[str, dict[str, Any]], size: int, where: str) -> None:
    """The tensors' ranges follow each other without overlap or hole, and fill the data."""
    end = 0
    for start, stop, name in sorted((*entry["data_offsets"], name) for name, entry in header.items()):
        if start != end or stop < start:
            raise CheckpointError(
                f"{where}: tensor {name!r:.200} is at [{start}, {stop}]; expected it to begin at {end}"
            )
        end = stop
    if end != size:
        raise CheckpointError(f"{where}: {size} bytes of data; the header says {end}")


def _entry(name: str, entry: dict[str, Any], where: str) -> _Entry:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    try:
        wanted = byte_count(entry["dtype"], shape)
    except StateError as error:
        raise CheckpointError(f"{where}: tensor {name!r:.200}: {error}") from error
    if stop - start != wanted:
        found = f"{entry['dtype']} of shape {str(shape)[:100]} has {wanted} bytes, found {stop - start}"
        raise CheckpointError(f"{where}: tensor {name!r:.200}: {found}")
    return _Entry(name, entry["dtype"], shape, start, stop)
