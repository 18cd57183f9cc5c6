"""The rounding log's format, without zarr: arrays of a segment, rules of a step, its digest.

A *segment* is the Zarr v3 group ``log.zarr/NNNNNN``, where NNNNNN is the checkpoint step that ends it. It holds the
five columns of :class:`StepLog`, each over all its steps as one 1-D array (``sites`` flattened, six numbers a row), and
``offsets``, uint64 ``(steps, 6)``: the step's number, then where its part of each column ends, in elements. All arrays
are sharded, with zstd inside.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtrain.errors import LogError
from vtrain.store.steplog import COLUMNS, SITE_COLUMNS, StepLog

# Version of the arrays and attributes, and of what the columns mean (numerics §4). Both are in a segment's attributes.
FORMAT_VERSION = 1
ENCODING_VERSION = 1
# Bytes of an inner chunk and of a shard before compression.
CHUNK_BYTES = 128 * 1024
SHARD_BYTES = 4 * 1024 * 1024
ZSTD_LEVEL = 3
# Encodings of a site's entries, as in StepLog.
SPARSE, TERNARY = 0, 1
# No result has more elements; keeps sums within 64 bits.
_MAX_NUMEL = 2**48
# A LEB128 gap below 2**48 takes at most this many bytes.
_MAX_GAP_BYTES = 7
_DOMAIN = b"vtrain step log v1\n"
_MISSING_CHUNK = 2**64 - 1
_INDEX_ENTRY = np.dtype([("offset", "<u8"), ("size", "<u8")])
_CRC_BYTES = 4


@dataclass(frozen=True)
class ArraySpec:
    """One array of a segment.

    Attributes:
        name: its name within the segment.
        dtype: little-endian numpy type string.
        width: numbers in a row; 1 means a 1-D array.
        chunk: rows of an inner chunk.
        shard: rows of a shard, a multiple of `chunk`.
    """

    name: str
    dtype: str
    width: int
    chunk: int
    shard: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row before compression."""
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def max_shard_bytes(self) -> int:
        """No shard of this array is larger on disk: zstd's worst case for each chunk, and the index."""
        raw = self.chunk * self.row_bytes
        return (self.shard // self.chunk) * (raw + raw // 128 + 64 + _INDEX_ENTRY.itemsize) + _CRC_BYTES

    def extent(self, rows: int) -> tuple[int, ...]:
        """The shape of `rows` rows."""
        return (rows,) if self.width == 1 else (rows, self.width)

    def shards(self, rows: int) -> int:
        """How many shards `rows` rows take."""
        return -(-rows // self.shard)

    def shard_key(self, number: int) -> str:
        """The path of a shard within the array."""
        return f"c/{number}" if self.width == 1 else f"c/{number}/0"


def _column(name: str, dtype: str) -> ArraySpec:
    size = np.dtype(dtype).itemsize
    return ArraySpec(name, dtype, 1, CHUNK_BYTES // size, SHARD_BYTES // size)


OFFSETS = ArraySpec("offsets", "<u8", 1 + len(COLUMNS), 1024, 16 * 1024)
COLUMN_SPECS: dict[str, ArraySpec] = {name: _column(name, dtype) for name, dtype in COLUMNS.items()}
SPECS: dict[str, ArraySpec] = {**COLUMN_SPECS, OFFSETS.name: OFFSETS}


def array_metadata(spec: ArraySpec, rows: int) -> dict[str, Any]:
    """The ``zarr.json`` of an array of a segment: the only one that is accepted (Zarr v3, ``sharding_indexed``)."""
    plain: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    single = {"name": "bytes"}  # one byte has no order
    sharding = {
        "chunk_shape": list(spec.extent(spec.chunk)),
        "codecs": [
            single if np.dtype(spec.dtype).itemsize == 1 else plain,
            {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}},
        ],
        "index_codecs": [plain, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.extent(rows)),
        "data_type": np.dtype(spec.dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.extent(spec.shard))}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "storage_transformers": [],
    }


def group_metadata(first: int, last: int) -> dict[str, Any]:
    """The ``zarr.json`` of a segment of the steps `first` to `last`, both included."""
    attributes = {
        "vtrain_log": FORMAT_VERSION,
        "encoding_version": ENCODING_VERSION,
        "first_step": first,
        "last_step": last,
    }
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def check_shard(spec: ArraySpec, rows: int, data: bytes, where: str) -> None:
    """Check that a shard holds exactly the chunks of `rows` rows, each of which decompresses to one chunk's size.

    So no chunk is silently read as zeros, nothing is hidden between chunks, and no chunk is a decompression bomb. Not
    checked here: the index's CRC-32C and zstd's checksums; zarr does.

    Raises:
        LogError: otherwise.
    """
    count = spec.shard // spec.chunk
    index_bytes = count * _INDEX_ENTRY.itemsize + _CRC_BYTES
    if len(data) < index_bytes:
        raise LogError(f"{where}: {len(data)} bytes; expected at least {index_bytes} for the shard's index")
    body = len(data) - index_bytes
    index = np.frombuffer(data, _INDEX_ENTRY, count, offset=body)
    wanted = -(-rows // spec.chunk)
    end = 0
    for number, (offset, size) in enumerate(index.tolist()):
        if number >= wanted:
            if (offset, size) != (_MISSING_CHUNK, _MISSING_CHUNK):
                raise LogError(f"{where}: chunk {number} lies beyond the array; expected {wanted} chunks")
            continue
        if offset != end or size > body - end:
            raise LogError(f"{where}: chunk {number} at {offset}, {size} bytes; expected it at {end}, within {body}")
        end += size
        found = _zstd_content_size(data[offset:end])
        if found != spec.chunk * spec.row_bytes:
            raise LogError(f"{where}: chunk {number} holds {found} bytes; expected {spec.chunk * spec.row_bytes}")
    if end != body:
        raise LogError(f"{where}: {body - end} bytes after the last chunk; expected none")


def _zstd_content_size(frame: bytes) -> int | None:
    """The decompressed size that a zstd frame declares (RFC 8878 §3.1.1.1), or None where it declares none."""
    if len(frame) < 6 or frame[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = frame[4]
    single_segment, dictionary = bool(descriptor & 0x20), descriptor & 3
    width = {0: int(single_segment), 1: 2, 2: 4, 3: 8}[descriptor >> 6]
    start = 5 + (not single_segment) + (0, 1, 2, 4)[dictionary]
    field = frame[start : start + width]
    if not width or len(field) != width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)


def check_step(log: StepLog, where: str) -> None:
    """Check the types of a step's columns and that their sizes are what its sites say (see :class:`StepLog`).

    Not checked: the values of gaps, codes and scalars.

    Raises:
        LogError: otherwise.
    """
    for name, dtype in COLUMNS.items():
        column = getattr(log, name)
        if column.dtype != np.dtype(dtype) or column.ndim != (2 if name == "sites" else 1):
            raise LogError(f"{where}: {name} is {column.dtype} with {column.ndim} dimensions; expected {dtype}")
    if log.sites.shape[1] != SITE_COLUMNS:
        raise LogError(f"{where}: sites has {log.sites.shape[1]} columns; expected {SITE_COLUMNS}")
    seq, numel, encoding, narrow, wide, gap_bytes = log.sites.T
    _check_rows(seq, numel, encoding, narrow, wide, where)
    ternary = encoding == TERNARY
    gaps = np.where(ternary, 0, narrow) + wide
    if np.any(gap_bytes < gaps) or np.any(gap_bytes > _MAX_GAP_BYTES * gaps):
        raise LogError(f"{where}: a site's gap_bytes does not fit its entries, of 1 to {_MAX_GAP_BYTES} bytes each")
    codes = np.where(ternary, (numel + 4) // 5, (narrow + 3) // 4)
    for name, parts in (("gaps", gap_bytes), ("codes", codes), ("values", wide)):
        total, found = _total(parts), len(getattr(log, name))
        if total != found:
            raise LogError(f"{where}: {name} has {found} elements; its sites say {total}")


def _check_rows(
    seq: np.ndarray, numel: np.ndarray, encoding: np.ndarray, narrow: np.ndarray, wide: np.ndarray, where: str
) -> None:
    if np.any(seq[1:] <= seq[:-1]):
        raise LogError(f"{where}: sites are not in ascending order")
    if np.any(numel > _MAX_NUMEL):
        raise LogError(f"{where}: a site has {int(numel.max())} elements; expected at most 2**48")
    if np.any(encoding > TERNARY):
        raise LogError(f"{where}: encoding {int(encoding.max())}; expected {SPARSE} (sparse) or {TERNARY} (ternary)")
    # Compared one by one first, so that the sum cannot wrap.
    if np.any(narrow > numel) or np.any(wide > numel) or np.any(narrow + wide > numel):
        raise LogError(f"{where}: a site has more entries than elements")
    if np.any(narrow + wide == 0):
        raise LogError(f"{where}: a site has no entries; expected no row for it")


def _total(parts: np.ndarray) -> int:
    """The exact sum of at most 2**32 uint64 numbers, which numpy's own sum would wrap."""
    return (int((parts >> 32).sum()) << 32) + int((parts & 0xFFFFFFFF).sum())


def step_digest(log: StepLog) -> bytes:
    """SHA-256 of a step's rounding log, 32 bytes; what its leaf commits to (protocol §4). Independent of Zarr.

    Hashed: ``vtrain step log v1`` and a newline; then for each column in the order of :class:`StepLog` its name, a zero
    byte, its number of elements as uint64 (``sites`` counts single numbers) and its elements; all little-endian.

    Raises:
        LogError: a column has another dtype or shape than :class:`StepLog` says.
    """
    for name, dtype in COLUMNS.items():
        column = getattr(log, name)
        if column.dtype != np.dtype(dtype) or column.shape[1:] != ((SITE_COLUMNS,) if name == "sites" else ()):
            raise LogError(f"{name} is {column.dtype}{column.shape}; expected {dtype}")
    return columns_digest((name, getattr(log, name).size, (getattr(log, name).tobytes(),)) for name in COLUMNS)


def columns_digest(columns: Iterable[tuple[str, int, Iterable[bytes]]]) -> bytes:
    """What :func:`step_digest` hashes, from each column's name, number of elements, and bytes in any parts."""
    digest = hashlib.sha256(_DOMAIN)
    for name, size, parts in columns:
        digest.update(name.encode("ascii") + b"\0" + struct.pack("<Q", size))
        for part in parts:
            digest.update(part)
    return digest.digest()
