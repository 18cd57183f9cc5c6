"""Digests of tensors and of whole states (protocol §4).

A state's digest is the root of three levels of RFC 6962 trees, so that one chunk can be proved alone::

    state root    <- leaves {"format", "name", "tensor"}, one a tensor, by name in the order of its UTF-8 bytes
    tensor digest =  leaf hash of the header {"bytes", "chunk_bytes", "chunks", "dtype", "format", "shape"},
                     a newline, and the chunk root
    chunk root    <- leaves of 1 MiB of the tensor's bytes, the last one shorter

Leaves and headers are RFC 8785 JSON. Bytes are C-order and little-endian; every NaN is first replaced by the positive
quiet NaN without payload (numerics §7), so a digest tells no NaN from another. It tells -0 from 0.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import rfc8785

from vtrain.commit import merkle
from vtrain.errors import MalformedRunError, ProofError, StateError, StorageError, UsageError, VersionError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    # Before Python 3.12 the type system does not know that an array is a buffer.
    Bytes = Buffer | np.ndarray[Any, Any]

CHUNK_BYTES = 1 << 20
# A digest's name carries every parameter that changes it; layout, order and the canonical NaN are in the version.
TENSOR_FORMAT = "vtrain-tensor-v1-sha256-1MiB"
STATE_FORMAT = "vtrain-state-v1-sha256-1MiB"

# One task of a hashing thread: enough that handing it over costs nothing against hashing it (about 2 ms).
_BATCH_BYTES = 4 * CHUNK_BYTES
# Integers above this are not exact in JSON (RFC 8785 §3.2.2.3).
_MAX_INTEGER = 2**53 - 1
# torch's and numpy's own limit.
_MAX_RANK = 64
# Buffer formats (of Python's struct module) of plain numbers.
_NUMBER_FORMATS = frozenset("?cbBhHiIlLqQefd")
_FORMAT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,99}")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


class _DType(NamedTuple):
    """Width in bytes; for IEEE formats the bits of +infinity and of the canonical NaN."""

    width: int
    infinity: int = 0
    nan: int = 0


DTYPES: dict[str, _DType] = {
    "F64": _DType(8, 0x7FF0_0000_0000_0000, 0x7FF8_0000_0000_0000),
    "F32": _DType(4, 0x7F80_0000, 0x7FC0_0000),
    "F16": _DType(2, 0x7C00, 0x7E00),
    "BF16": _DType(2, 0x7F80, 0x7FC0),
    "I64": _DType(8),
    "I32": _DType(4),
    "I16": _DType(2),
    "I8": _DType(1),
    "U8": _DType(1),
    "BOOL": _DType(1),
}


@dataclass(frozen=True)
class TensorBytes:
    """A tensor as the digest sees it.

    Args:
        dtype: a safetensors name, one of :data:`DTYPES`.
        shape: the extents; ``()`` is a scalar.
        data: the elements' bytes, C-contiguous and little-endian. Referred to, not copied: leave them unchanged while
            they are hashed.

    Attributes:
        view: ``data`` as flat bytes.

    Raises:
        StateError: the dtype is unknown, an extent is no integer or out of range, or the bytes are not contiguous or
            not as many as dtype and shape call for.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes = field(repr=False)
    view: memoryview = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        wanted = byte_count(self.dtype, self.shape)
        view = memoryview(cast("Buffer", self.data))
        if not view.c_contiguous:
            raise StateError(f"{self.dtype} of shape {self.shape}: the bytes are not C-contiguous")
        if view.nbytes != wanted:
            raise StateError(f"{self.dtype} of shape {self.shape} has {wanted} bytes, found {view.nbytes}")
        object.__setattr__(self, "view", _flat(view))


@dataclass(frozen=True)
class StateDigest:
    """Digest of a state.

    Attributes:
        root: the state root, 32 bytes.
        tensors: hex tensor digest by name, in leaf order.
    """

    root: bytes
    tensors: dict[str, str]

    @property
    def text(self) -> str:
        """The root as text, ``vtrain-state-v1-sha256-1MiB:<hex>``."""
        return format_digest(STATE_FORMAT, self.root)


@dataclass(frozen=True)
class ChunkProof:
    """What it takes to check one chunk against a state root; all of it hostile until :func:`verify_chunk` accepts it.

    Attributes:
        name, dtype, shape: of the tensor.
        chunk_index: number of the 1 MiB chunk in the tensor.
        chunk_path: inclusion proof of the chunk in the tensor.
        tensor_index: number of the tensor in the state.
        tensor_count: number of tensors in the state.
        tensor_path: inclusion proof of the tensor in the state.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunk_index: int
    chunk_path: tuple[bytes, ...]
    tensor_index: int
    tensor_count: int
    tensor_path: tuple[bytes, ...]


def format_digest(digest_format: str, digest: bytes) -> str:
    """``<format>:<hex>``; the format names everything that the digest depends on.

    Raises:
        UsageError: the format is no such name (letters, digits, ``.`` and ``-``), or the digest not 32 bytes.
    """
    if not _FORMAT_NAME.fullmatch(digest_format):
        raise UsageError(f"{digest_format!r} is no digest format")
    if len(digest) != merkle.HASH_BYTES:
        raise UsageError(f"a digest is {merkle.HASH_BYTES} bytes, found {len(digest)}")
    return f"{digest_format}:{digest.hex()}"


def parse_digest(digest_format: str, text: str) -> bytes:
    """The inverse of :func:`format_digest`: 32 bytes.

    Raises:
        VersionError: a digest in another format.
        MalformedRunError: not a digest as :func:`format_digest` writes it.
    """
    found, colon, digest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not _FORMAT_NAME.fullmatch(found) or not _HEX_DIGEST.fullmatch(digest):
        raise MalformedRunError(f"{str(text)[:200]!r} is no digest, wanted {digest_format}:<64 hex digits>")
    if found != digest_format:
        raise VersionError(f"digest in format {found}, wanted {digest_format}")
    return bytes.fromhex(digest)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        StorageError: it can't be read.
    """
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{os.fspath(path)}: {error.strerror}") from error


def files_digest(files: Mapping[str, Mapping[str, TensorBytes]]) -> StateDigest:
    """State digest over the tensors of a checkpoint's files, named ``file/name``."""
    return state_digest({f"{file}/{name}": t for file, tensors in files.items() for name, t in tensors.items()})


def tensor_digest(tensor: TensorBytes) -> bytes:
    """Digest of one tensor: dtype, shape and elements; 32 bytes."""
    return _tensor_digest(tensor, merkle.root(_chunk_hashes([tensor])[0]))


def named_digests(tensors: Mapping[str, TensorBytes]) -> dict[str, str]:
    """Hex digest of each tensor, by name in leaf order. Hashes in parallel.

    Raises:
        StateError: a name is not a string or not valid Unicode.
    """
    return state_digest(tensors).tensors


def state_digest(tensors: Mapping[str, TensorBytes]) -> StateDigest:
    """Digest of a state, given as its tensors by name. Hashes in parallel, without copying the tensors.

    Raises:
        StateError: a name is not a string or not valid Unicode.
    """
    names = leaf_order(tensors)
    hashes = _chunk_hashes([tensors[name] for name in names])
    digests = {n: _tensor_digest(tensors[n], merkle.root(h)) for n, h in zip(names, hashes, strict=True)}
    leaves = [state_leaf(name, digest) for name, digest in digests.items()]
    return StateDigest(merkle.root(leaves), {name: digest.hex() for name, digest in digests.items()})


def chunk_proof(tensors: Mapping[str, TensorBytes], name: str, chunk_index: int) -> ChunkProof:
    """Proof that a chunk belongs to the state. Hashes the whole state.

    Raises:
        UsageError: no such tensor or chunk.
        StateError: as for :func:`state_digest`.
    """
    names = leaf_order(tensors)
    if name not in tensors:
        raise UsageError(f"no tensor {name!r} in the state")
    tensor = tensors[name]
    if not 0 <= chunk_index < _chunk_count(tensor.view.nbytes):
        raise UsageError(f"no chunk {chunk_index} in {name!r}, it has {_chunk_count(tensor.view.nbytes)}")
    hashes = dict(zip(names, _chunk_hashes([tensors[n] for n in names]), strict=True))
    leaves = [state_leaf(n, _tensor_digest(tensors[n], merkle.root(hashes[n]))) for n in names]
    index = names.index(name)
    return ChunkProof(
        name=name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        chunk_index=chunk_index,
        chunk_path=tuple(merkle.Tree(hashes[name]).inclusion_proof(chunk_index)),
        tensor_index=index,
        tensor_count=len(names),
        tensor_path=tuple(merkle.Tree(leaves).inclusion_proof(index)),
    )


def verify_chunk(state_root: bytes, proof: ChunkProof, chunk: Bytes) -> None:
    """Check that the state has a tensor of the proof's name, dtype and shape with this chunk at the proof's place.

    The root does not fix ``tensor_index`` and ``tensor_count``; they only say how to walk the path.
    What is not checked: that no other tensor of the state has the same name.

    Args:
        state_root: the trusted root, 32 bytes.
        proof: from an untrusted source.
        chunk: the chunk's bytes, with any NaN.

    Raises:
        ProofError: it does not hold, or the chunk has another length than the shape calls for.
    """
    try:
        total = byte_count(proof.dtype, proof.shape)
        leaf_order([proof.name])
    except StateError as e:
        raise ProofError(f"chunk proof: {e}") from e
    count = _chunk_count(total)
    if type(proof.chunk_index) is not int or not 0 <= proof.chunk_index < count:
        raise ProofError(f"chunk proof: no chunk {proof.chunk_index!r} in {total} bytes")
    view = memoryview(cast("Buffer", chunk))
    wanted = min(CHUNK_BYTES, total - proof.chunk_index * CHUNK_BYTES)
    if not view.c_contiguous or view.nbytes != wanted:
        raise ProofError(f"chunk proof: chunk {proof.chunk_index} has {wanted} contiguous bytes, found {view.nbytes}")
    leaf = merkle.leaf_hash(canonical_bytes(proof.dtype, view.cast("B")))
    chunk_root = merkle.root_from_inclusion(proof.chunk_index, count, leaf, proof.chunk_path)
    leaf = state_leaf(proof.name, header_digest(proof.dtype, proof.shape, total, chunk_root))
    merkle.verify_inclusion(proof.tensor_index, proof.tensor_count, leaf, proof.tensor_path, state_root)


def byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, bounded so that they can be written in JSON."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise StateError(f"dtype {dtype!r:.100} can't be digested, wanted one of {', '.join(DTYPES)}")
    if not isinstance(shape, tuple):
        raise StateError(f"a shape is a tuple, found {type(shape).__name__}")
    if len(shape) > _MAX_RANK:  # before the product, which a long shape makes huge
        raise StateError(f"a shape has at most {_MAX_RANK} extents, found {len(shape)}")
    total = DTYPES[dtype].width
    for extent in shape:
        if type(extent) is not int or not 0 <= extent <= _MAX_INTEGER:
            raise StateError(f"an extent is an integer of 0 to 2^53 - 1, found {extent!r}")
        total *= extent
    if total > _MAX_INTEGER:
        raise StateError(f"{dtype} of shape {shape} has more than 2^53 - 1 bytes")
    return total


def _flat(view: memoryview) -> memoryview:
    """The view as bytes; refuses big-endian elements and elements that are no numbers."""
    if view.format.lstrip("@=<") not in _NUMBER_FORMATS:
        raise StateError(f"the elements are not little-endian numbers: buffer format {view.format!r}")
    # An empty view of several dimensions can't be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def leaf_order(names: Iterable[str]) -> list[str]:
    """The names by their UTF-8 bytes; refuses what has none."""
    try:
        return sorted(names, key=lambda name: name.encode("utf-8"))
    except (AttributeError, UnicodeEncodeError) as e:
        raise StateError(f"tensor names are strings of valid Unicode: {e}") from e


def state_leaf(name: str, digest: bytes) -> bytes:
    return merkle.leaf_hash(rfc8785.dumps({"format": STATE_FORMAT, "name": name, "tensor": digest.hex()}))


def _tensor_digest(tensor: TensorBytes, chunk_root: bytes) -> bytes:
    return header_digest(tensor.dtype, tensor.shape, tensor.view.nbytes, chunk_root)


def header_digest(dtype: str, shape: tuple[int, ...], total: int, chunk_root: bytes) -> bytes:
    header: dict[str, int | str | list[int]] = {
        "bytes": total,
        "chunk_bytes": CHUNK_BYTES,
        "chunks": _chunk_count(total),
        "dtype": dtype,
        "format": TENSOR_FORMAT,
        "shape": list(shape),
    }
    return merkle.leaf_hash(rfc8785.dumps(header) + b"\n" + chunk_root)


def _chunk_count(total: int) -> int:
    return -(-total // CHUNK_BYTES)


def _chunk_hashes(tensors: Sequence[TensorBytes]) -> list[list[bytes]]:
    """Leaf hashes of each tensor's chunks; hashlib and numpy let go of the interpreter lock, so threads help."""
    jobs = [(t.dtype, t.view[i : i + CHUNK_BYTES]) for t in tensors for i in range(0, t.view.nbytes, CHUNK_BYTES)]
    batches: list[list[tuple[str, memoryview]]] = []
    room = 0
    for job in jobs:
        if room <= 0:
            batches.append([])
            room = _BATCH_BYTES
        batches[-1].append(job)
        room -= job[1].nbytes
    if len(batches) <= 1:
        done = [_hash_batch(batch) for batch in batches]
    else:
        with ThreadPoolExecutor(min(len(batches), os.cpu_count() or 1)) as pool:
            done = list(pool.map(_hash_batch, batches))
    hashes = iter([h for batch in done for h in batch])
    return [[next(hashes) for _ in range(_chunk_count(t.view.nbytes))] for t in tensors]


def _hash_batch(batch: list[tuple[str, memoryview]]) -> list[bytes]:
    return [merkle.leaf_hash(canonical_bytes(dtype, chunk)) for dtype, chunk in batch]


def canonical_bytes(dtype: str, chunk: memoryview) -> memoryview:
    """The chunk with canonical NaNs; the chunk itself, not a copy, when it has none.

    Above an IEEE format's infinity there are only NaNs: as signed integers the positive ones, as unsigned ones the
    negative ones. Two maxima need no memory, unlike a mask.
    """
    width, infinity, nan = DTYPES[dtype]
    if not infinity:
        return chunk
    bits = np.frombuffer(chunk, f"<u{width}")
    negative_infinity = infinity | 1 << (8 * width - 1)
    if bits.view(f"<i{width}").max() <= infinity and bits.max() <= negative_infinity:
        return chunk
    bits = bits.copy()
    bits[(bits & bits.dtype.type((1 << (8 * width - 1)) - 1)) > infinity] = nan
    return bits.view(np.uint8).data
