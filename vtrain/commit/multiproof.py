"""One proof for several leaves of an RFC 6962 tree: the hashes that the leaves themselves don't give.

The tree is walked from its root, the left subtree first; a subtree without any of the leaves contributes its hash.
So a proof for a run of neighbouring leaves is no longer than that of one leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vtrain.commit.merkle import HASH_BYTES, Tree, node_hash, split
from vtrain.errors import ProofError, UsageError

MAX_LEAVES = 1 << 24


def multiproof(tree: Tree, indices: Sequence[int]) -> list[bytes]:
    """The hashes that prove leaves ``indices`` of the whole tree.

    Raises:
        UsageError: no indices, not ascending, or beyond the tree.
    """
    wanted = list(indices)
    if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= len(tree):
        raise UsageError(f"leaves {wanted[:10]} of a tree of {len(tree)}; want ascending indices below its size")
    return list(_siblings(tree, 0, len(tree), wanted))


def _siblings(tree: Tree, low: int, high: int, wanted: list[int]) -> Iterator[bytes]:
    if not wanted:
        yield tree.range_root(low, high)
    elif high - low > 1:
        middle = low + split(high - low)
        yield from _siblings(tree, low, middle, [i for i in wanted if i < middle])
        yield from _siblings(tree, middle, high, [i for i in wanted if i >= middle])


def root_from_multiproof(size: int, leaves: Mapping[int, bytes], proof: Sequence[bytes]) -> bytes:
    """The root to which leaf hashes by index and a proof lead; hostile input.

    Raises:
        ProofError: the proof has another form than the one that size and indices call for.
    """
    if not 0 < size <= MAX_LEAVES or not leaves or not all(0 <= i < size for i in leaves):
        raise ProofError(f"multiproof: leaves {sorted(leaves)[:10]} of a tree of {size}")
    if len(proof) > 64 * len(leaves) or not all(type(h) is bytes and len(h) == HASH_BYTES for h in proof):
        raise ProofError(f"multiproof: {len(proof)} hashes for {len(leaves)} leaves")
    rest = iter(proof)

    def walk(low: int, high: int, wanted: list[int]) -> bytes:
        if not wanted:
            found = next(rest, None)
            if found is None:
                raise ProofError(f"multiproof: {len(proof)} hashes are too few for {len(leaves)} leaves of {size}")
            return found
        if high - low == 1:
            return leaves[low]
        middle = low + split(high - low)
        left = walk(low, middle, [i for i in wanted if i < middle])
        return node_hash(left, walk(middle, high, [i for i in wanted if i >= middle]))

    root = walk(0, size, sorted(leaves))
    if next(rest, None) is not None:
        raise ProofError(f"multiproof: {len(proof)} hashes are too many for {len(leaves)} leaves of {size}")
    return root
