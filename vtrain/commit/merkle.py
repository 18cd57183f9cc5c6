"""The append-only Merkle tree of RFC 6962 §2.1 with SHA-256, its proofs and their verification (RFC 9162 §2.1).

All hashes are 32 ``bytes``. A root says nothing about the size it belongs to: the same root, leaf and path can fit
more than one pair of index and size. So take the size from where the root comes from (the signed head), never from the
proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from vtrain.errors import ProofError, UsageError

HASH_BYTES = 32
LEAF_PREFIX = b"\x00"
NODE_PREFIX = b"\x01"
EMPTY_ROOT = hashlib.sha256(b"").digest()
# C2SP and RFC 9162 carry sizes as unsigned 64-bit numbers; one bit less leaves no room for sign errors elsewhere.
MAX_SIZE = 2**63 - 1


def leaf_hash(data: bytes | memoryview) -> bytes:
    """Hash of a leaf: SHA-256(0x00 || data) (RFC 6962 §2.1). ``data`` is not copied."""
    h = hashlib.sha256(LEAF_PREFIX)
    h.update(data)
    return h.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 || left || right) (RFC 6962 §2.1)."""
    return hashlib.sha256(NODE_PREFIX + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root over leaf hashes, level by level; for no leaves SHA-256 of nothing.

    Pairing from the left and promoting an odd last node gives the RFC's tree, whose left subtree is always the largest
    complete one.
    """
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    while len(level) > 1:
        pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) & ~1 :]
    return level[0]


def split(size: int) -> int:
    """Largest power of two smaller than ``size`` (>= 2): the leaves of the left subtree (RFC 6962 §2.1)."""
    return 1 << ((size - 1).bit_length() - 1)


class Tree:
    """An append-only tree that keeps the hash of every complete subtree.

    Appending costs one hash on average and O(log n) at worst; a root costs O(log n) hashes and a proof O(log² n).
    Memory is about two hashes a leaf.

    Args:
        leaf_hashes: leaves to begin with, as by :func:`leaf_hash`.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        # _levels[k][i] covers leaves [i * 2^k, (i + 1) * 2^k).
        self._levels: list[list[bytes]] = [[]]
        for h in leaf_hashes:
            self.append(h)

    def __len__(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Append one leaf, given by its hash.

        Raises:
            UsageError: not 32 bytes, such as raw data instead of its hash.
        """
        if not isinstance(leaf, bytes) or len(leaf) != HASH_BYTES:
            raise UsageError(f"a leaf hash is {HASH_BYTES} bytes, found {_describe(leaf)}")
        self._levels[0].append(leaf)
        k = 0
        while len(self._levels[k]) % 2 == 0:
            if k + 1 == len(self._levels):
                self._levels.append([])
            self._levels[k + 1].append(node_hash(*self._levels[k][-2:]))
            k += 1

    def root(self, size: int | None = None) -> bytes:
        """Root over the first ``size`` leaves (all by default).

        Raises:
            UsageError: the tree has no ``size`` leaves.
        """
        size = self._checked_size(size)
        return self.range_root(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """PATH(index, D[size]) of RFC 6962 §2.1.1: the siblings from the leaf up to the root.

        Raises:
            UsageError: the tree has no ``size`` leaves, or they have no ``index``.
        """
        size = self._checked_size(size)
        if not 0 <= index < size:
            raise UsageError(f"no leaf {index} in a tree of {size}")
        path: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + split(high - low)
            if index < middle:
                path.append(self.range_root(middle, high))
                high = middle
            else:
                path.append(self.range_root(low, middle))
                low = middle
        return path[::-1]

    def consistency_proof(self, old: int, new: int | None = None) -> list[bytes]:
        """PROOF(old, D[new]) of RFC 6962 §2.1.2: that the first ``old`` leaves are a prefix of the first ``new``.

        Raises:
            UsageError: not 0 <= old <= new <= len(tree).
        """
        new = self._checked_size(new)
        if not 0 <= old <= new:
            raise UsageError(f"no consistency proof from size {old} to {new}")
        path: list[bytes] = []
        low, high = 0, new
        while 0 < old < high:
            middle = low + split(high - low)
            if old <= middle:
                path.append(self.range_root(middle, high))
                high = middle
            else:
                path.append(self.range_root(low, middle))
                low = middle
        # A subtree that starts at leaf 0 is the old tree itself, whose root the verifier already has.
        if low > 0:
            path.append(self.range_root(low, high))
        return path[::-1]

    def _checked_size(self, size: int | None) -> int:
        if size is None:
            return len(self)
        if not 0 <= size <= len(self):
            raise UsageError(f"no size {size} in a tree of {len(self)} leaves")
        return size

    def range_root(self, low: int, high: int) -> bytes:
        """Root over leaves [low, high), where ``low`` is a multiple of the largest power of two in ``high - low``."""
        peaks: list[bytes] = []
        while low < high:
            k = (high - low).bit_length() - 1
            peaks.append(self._levels[k][low >> k])
            low += 1 << k
        result = peaks.pop()
        while peaks:
            result = node_hash(peaks.pop(), result)
        return result


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root to which an inclusion proof leads, for callers that commit to the root in turn (RFC 9162 §2.1.3.2).

    Raises:
        ProofError: the proof has another form than the one that ``index`` and ``size`` call for.
    """
    _check_size(size)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < size:
        raise ProofError(f"inclusion: no leaf {index!r} in a tree of {size}")
    _check_hashes("inclusion", [leaf, *_checked_proof("inclusion", proof)])

    fn, sn, r = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise ProofError(f"inclusion: proof of {len(proof)} hashes is too long for leaf {index} of {size}")
        if fn & 1 or fn == sn:
            r = node_hash(sibling, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise ProofError(f"inclusion: proof of {len(proof)} hashes is too short for leaf {index} of {size}")
    return r


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], expected_root: bytes) -> None:
    """Check that ``leaf`` (a leaf hash) is number ``index`` of the tree of ``size`` leaves (RFC 9162 §2.1.3.2).

    Raises:
        ProofError: it is not, or the proof has another form than the one that ``index`` and ``size`` call for.
    """
    _check_hashes("inclusion", [expected_root])
    found = root_from_inclusion(index, size, leaf, proof)
    if found != expected_root:
        raise ProofError(f"inclusion: leaf {index} of {size} leads to root {found.hex()}, not {expected_root.hex()}")


def verify_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of ``new_size`` leaves extends the one of ``old_size`` (RFC 9162 §2.1.4.2).

    Equal sizes need equal roots and no proof. The RFC leaves out the empty tree; every tree extends it, so it needs no
    proof either, only the right root.

    Raises:
        ProofError: it does not, or the proof has another form than the one that the sizes call for.
    """
    _check_size(old_size)
    _check_size(new_size)
    if old_size > new_size:
        raise ProofError(f"consistency: the old size {old_size} is above the new size {new_size}")
    _check_hashes("consistency", [old_root, new_root, *_checked_proof("consistency", proof)])
    if old_size in (0, new_size):
        _verify_trivial_consistency(old_size, new_size, old_root, new_root, proof)
        return
    if not proof:
        raise ProofError(f"consistency: no proof from size {old_size} to {new_size}")

    # The old root is left out of the proof when it is itself a subtree of the new tree.
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            raise ProofError(f"consistency: proof of {len(proof)} hashes is too long for {old_size} to {new_size}")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise ProofError(f"consistency: proof of {len(proof)} hashes is too short for {old_size} to {new_size}")
    for name, found, wanted in (("old", fr, old_root), ("new", sr, new_root)):
        if found != wanted:
            raise ProofError(f"consistency: the proof leads to {name} root {found.hex()}, not {wanted.hex()}")


def _verify_trivial_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """The cases without a path: from the empty tree, and from a size to itself."""
    if proof:
        raise ProofError(f"consistency: {len(proof)} hashes from size {old_size} to {new_size}, wanted none")
    for name, size, found in (("old", old_size, old_root), ("new", new_size, new_root)):
        if size == 0 and found != EMPTY_ROOT:
            raise ProofError(f"consistency: the {name} tree is empty and its root {found.hex()} is not")
    if old_size == new_size and old_root != new_root:
        raise ProofError(f"consistency: two roots of size {new_size}: {old_root.hex()} and {new_root.hex()}")


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
        raise ProofError(f"a tree size is an integer of 0 to {MAX_SIZE}, found {size!r}")


def _checked_proof(what: str, proof: Sequence[bytes]) -> Sequence[bytes]:
    """Bound a proof before any of it is hashed: no path in a tree of MAX_SIZE leaves has more than 64 hashes."""
    if not isinstance(proof, list | tuple):
        raise ProofError(f"{what}: a proof is a list of hashes, found {type(proof).__name__}")
    if len(proof) > 64:
        raise ProofError(f"{what}: a proof has at most 64 hashes, found {len(proof)}")
    return proof


def _check_hashes(what: str, hashes: Iterable[bytes]) -> None:
    for h in hashes:
        if not isinstance(h, bytes) or len(h) != HASH_BYTES:
            raise ProofError(f"{what}: a hash is {HASH_BYTES} bytes, found {_describe(h)}")


def _describe(value: object) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
