"""State digests from the hashes of chunks, for whoever reads a state too large for memory (protocol §4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vtrain.commit import merkle
from vtrain.commit.digest import StateDigest, byte_count, canonical_bytes, header_digest, leaf_order, state_leaf


@dataclass(frozen=True)
class TensorChunks:
    """A tensor by the hashes of its chunks of 1 MiB.

    Attributes:
        dtype, shape: as in ``TensorBytes``.
        hashes: as by :func:`chunk_hash`, in order.
    """

    dtype: str
    shape: tuple[int, ...]
    hashes: tuple[bytes, ...]


def chunk_hash(dtype: str, chunk: memoryview) -> bytes:
    """Leaf hash of one chunk of a tensor: its flat bytes, with canonical NaNs; 32 bytes."""
    return merkle.leaf_hash(canonical_bytes(dtype, chunk))


def chunks_digest(files: Mapping[str, Mapping[str, TensorChunks]]) -> StateDigest:
    """What :func:`vtrain.commit.digest.files_digest` gives for the tensors that these chunks are of.

    Raises:
        StateError: a name is not valid Unicode, or a dtype or shape is none.
    """
    named = {f"{file}/{name}": t for file, tensors in files.items() for name, t in tensors.items()}
    digests = {name: _tensor_digest(named[name]) for name in leaf_order(named)}
    leaves = [state_leaf(name, digest) for name, digest in digests.items()]
    return StateDigest(merkle.root(leaves), {name: digest.hex() for name, digest in digests.items()})


def _tensor_digest(t: TensorChunks) -> bytes:
    return header_digest(t.dtype, t.shape, byte_count(t.dtype, t.shape), merkle.root(t.hashes))
