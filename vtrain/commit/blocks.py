"""Digests of tensors of which small parts can be shown: what the trace of a step is made of (protocol §8).

A tensor's bytes (C order, little-endian, canonical NaN) are cut into blocks of 4 KiB, the last one shorter; their leaf
hashes are the leaves of an RFC 6962 tree. The digest is the leaf hash of a header {"dtype", "format", "shape"} in
RFC 8785 JSON, a newline, and the tree's root. A row of a matrix is in few neighbouring blocks, so that it can be shown
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import rfc8785

from vtrain.commit.digest import DTYPES, TensorBytes, canonical_bytes
from vtrain.commit.merkle import EMPTY_ROOT, Tree, leaf_hash
from vtrain.commit.multiproof import multiproof, root_from_multiproof
from vtrain.errors import ProofError

BLOCK_BYTES = 4096
BLOCKS_FORMAT = "vtrain-blocks-v1-sha256-4KiB"
MAX_BYTES = 1 << 36


@dataclass(frozen=True)
class Header:
    """What a digest says beside the bytes.

    Attributes:
        dtype: a safetensors name.
        shape: the extents.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].width

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        total = self.width
        for extent in self.shape:
            total *= extent
        return total

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.nbytes // BLOCK_BYTES)

    def block_size(self, index: int) -> int:
        """Bytes of a block: all but the last one are whole."""
        return min(BLOCK_BYTES, self.nbytes - index * BLOCK_BYTES)

    def digest(self, root: bytes) -> str:
        """The tensor's digest, hex, from the root over its blocks."""
        text = rfc8785.dumps({"dtype": self.dtype, "format": BLOCKS_FORMAT, "shape": list(self.shape)})
        return leaf_hash(text + b"\n" + root).hex()


def header(dtype: object, shape: object) -> Header:
    """A header from an untrusted source.

    Raises:
        ProofError: an unknown dtype, extents that are no sizes, or more than 64 GiB.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ProofError(f"blocks: dtype {str(dtype)[:40]!r}; want one of {', '.join(DTYPES)}")
    if not isinstance(shape, list | tuple) or len(shape) > 16:
        raise ProofError(f"blocks: shape {str(shape)[:80]}; want at most 16 extents")
    if not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
        raise ProofError(f"blocks: shape {str(shape)[:80]}; want sizes")
    found = Header(dtype, tuple(shape))
    if found.nbytes > MAX_BYTES:
        raise ProofError(f"blocks: {found.nbytes} bytes; want at most {MAX_BYTES}")
    return found


class Blocks:
    """A tensor's tree of blocks, able to show some of them.

    Args:
        tensor: referred to, not copied.

    Attributes:
        header: dtype and shape.
        digest: hex.
    """

    def __init__(self, tensor: TensorBytes) -> None:
        self.header = Header(tensor.dtype, tuple(tensor.shape))
        self._view = canonical_bytes(tensor.dtype, tensor.view) if tensor.view.nbytes else tensor.view
        self.hashes = [leaf_hash(self._view[i : i + BLOCK_BYTES]) for i in range(0, self._view.nbytes, BLOCK_BYTES)]
        self._tree = Tree(self.hashes)
        self.digest = self.header.digest(self._tree.root() if self.hashes else EMPTY_ROOT)

    def block(self, index: int) -> bytes:
        """Bytes of a block, NaNs canonical."""
        at = index * BLOCK_BYTES
        return bytes(self._view[at : at + BLOCK_BYTES])

    def show(self, indices: Sequence[int]) -> Shown:
        """Some blocks with their proof; ascending indices.

        Raises:
            UsageError: no such blocks.
        """
        proof = multiproof(self._tree, indices)
        return Shown(self.header, {i: self.block(i) for i in indices}, proof)


@dataclass(frozen=True)
class Shown:
    """Blocks of a tensor with the proof that they are its; hostile until ``check`` accepts it.

    Attributes:
        header: dtype and shape.
        blocks: bytes by number of the block.
        proof: hashes of the rest of the tree.
    """

    header: Header
    blocks: Mapping[int, bytes]
    proof: Sequence[bytes]

    def check(self, digest: str, what: str) -> None:
        """Check against a tensor's digest.

        Raises:
            ProofError: the blocks are not that tensor's.
        """
        for index, data in self.blocks.items():
            want = self.header.block_size(index)
            if len(data) != want:
                raise ProofError(f"{what}: block {index} of {len(data)} bytes; want {want}")
        hashes = {i: leaf_hash(data) for i, data in self.blocks.items()}
        found = self.header.digest(root_from_multiproof(self.header.count, hashes, self.proof))
        if found != digest:
            raise ProofError(f"{what}: the blocks lead to digest {found}; the trace has {digest}")

    def bytes_at(self, at: int, size: int) -> bytes:
        """``size`` bytes from byte ``at`` on.

        Raises:
            ProofError: a block that is needed was not shown.
        """
        out = bytearray()
        for index in range(at // BLOCK_BYTES, -(-(at + size) // BLOCK_BYTES)):
            if index not in self.blocks:
                raise ProofError(f"block {index} is needed and not shown")
            out += self.blocks[index]
        begin = at % BLOCK_BYTES
        return bytes(out[begin : begin + size])


def blocks_of(elements: Iterable[int], width: int) -> list[int]:
    """Numbers of the blocks that hold flat elements of ``width`` bytes, ascending."""
    return sorted({i * width // BLOCK_BYTES for i in elements})
