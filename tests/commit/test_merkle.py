"""The tree against published vectors, against a transcription of the RFC, and its verifiers against hostile proofs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vtrain.commit import merkle
from vtrain.errors import ProofError, UsageError

# Inputs, roots and proofs of the certificate-transparency reference tests.
CT_INPUTS = [
    bytes.fromhex(x)
    for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CT_INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
CT_CONSISTENCY = {
    (1, 1): [],
    (1, 8): CT_INCLUSION[0, 8],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
SIZES = range(1, 41)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def k_of(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(d: list[bytes]) -> bytes:
    """RFC 6962 §2.1, over leaf *data*."""
    if not d:
        return sha256(b"")
    if len(d) == 1:
        return sha256(b"\x00" + d[0])
    k = k_of(len(d))
    return sha256(b"\x01" + mth(d[:k]) + mth(d[k:]))


def path(m: int, d: list[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1."""
    if len(d) == 1:
        return []
    k = k_of(len(d))
    return [*path(m, d[:k]), mth(d[k:])] if m < k else [*path(m - k, d[k:]), mth(d[:k])]


def subproof(m: int, d: list[bytes], b: bool) -> list[bytes]:
    """RFC 6962 §2.1.2."""
    if m == len(d):
        return [] if b else [mth(d)]
    k = k_of(len(d))
    return [*subproof(m, d[:k], b), mth(d[k:])] if m <= k else [*subproof(m - k, d[k:], False), mth(d[:k])]


DATA = [bytes([i]) * i for i in range(41)]
TREE = merkle.Tree(merkle.leaf_hash(d) for d in DATA)


def test_ct_roots() -> None:
    leaves = [merkle.leaf_hash(d) for d in CT_INPUTS]
    tree = merkle.Tree(leaves)
    for size, wanted in enumerate(CT_ROOTS):
        assert merkle.root(leaves[:size]).hex() == wanted
        assert tree.root(size).hex() == wanted
        assert merkle.Tree(leaves[:size]).root().hex() == wanted


def test_ct_proofs() -> None:
    leaves = [merkle.leaf_hash(d) for d in CT_INPUTS]
    tree = merkle.Tree(leaves)
    for (index, size), wanted in CT_INCLUSION.items():
        proof = tree.inclusion_proof(index, size)
        assert [h.hex() for h in proof] == wanted
        merkle.verify_inclusion(index, size, leaves[index], proof, bytes.fromhex(CT_ROOTS[size]))
    for (old, new), wanted in CT_CONSISTENCY.items():
        proof = tree.consistency_proof(old, new)
        assert [h.hex() for h in proof] == wanted
        merkle.verify_consistency(old, new, bytes.fromhex(CT_ROOTS[old]), bytes.fromhex(CT_ROOTS[new]), proof)


def test_every_root_and_proof_is_the_rfc_s() -> None:
    for size in SIZES:
        data = DATA[:size]
        assert TREE.root(size) == merkle.root([merkle.leaf_hash(d) for d in data]) == mth(data)
        for index in range(size):
            proof = TREE.inclusion_proof(index, size)
            assert proof == path(index, data)
            merkle.verify_inclusion(index, size, merkle.leaf_hash(data[index]), proof, mth(data))
        for old in range(1, size + 1):
            proof = TREE.consistency_proof(old, size)
            assert proof == subproof(old, data, True)
            merkle.verify_consistency(old, size, mth(data[:old]), mth(data), proof)


def test_empty_tree() -> None:
    empty = merkle.Tree()
    assert len(empty) == 0 and empty.root() == merkle.EMPTY_ROOT == sha256(b"")
    assert TREE.consistency_proof(0, 5) == []
    merkle.verify_consistency(0, 0, merkle.EMPTY_ROOT, merkle.EMPTY_ROOT, [])
    merkle.verify_consistency(0, 5, merkle.EMPTY_ROOT, TREE.root(5), [])
    with pytest.raises(ProofError, match="empty"):
        merkle.verify_consistency(0, 5, TREE.root(1), TREE.root(5), [])
    with pytest.raises(ProofError, match="empty"):
        merkle.verify_consistency(0, 0, TREE.root(1), TREE.root(1), [])


def test_append_hashes_once_a_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    node = merkle.node_hash

    def counting(left: bytes, right: bytes) -> bytes:
        nonlocal count
        count += 1
        return node(left, right)

    monkeypatch.setattr(merkle, "node_hash", counting)
    tree = merkle.Tree()
    for _ in range(1024):
        tree.append(bytes(32))
    assert count == 1023
    tree.root(1000)
    assert count <= 1023 + 10


@pytest.mark.parametrize("leaf", [b"", bytes(31), bytes(33), bytearray(32), "0" * 32])
def test_append_takes_hashes_only(leaf: bytes) -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        merkle.Tree().append(leaf)


def test_tree_refuses_what_it_does_not_have() -> None:
    for call in (
        lambda: TREE.root(42),
        lambda: TREE.root(-1),
        lambda: TREE.inclusion_proof(5, 5),
        lambda: TREE.inclusion_proof(-1, 5),
        lambda: TREE.inclusion_proof(0, 0),
        lambda: TREE.consistency_proof(6, 5),
        lambda: TREE.consistency_proof(-1, 5),
        lambda: TREE.consistency_proof(1, 42),
    ):
        with pytest.raises(UsageError):
            call()


MUTATIONS = ("truncate", "extend", "repeat", "flip", "swap", "drop_first")


def mutate(draw: st.DrawFn, proof: list[bytes]) -> list[bytes]:
    """One of the ways to spoil a list of hashes; the result always differs."""
    kind = draw(st.sampled_from(MUTATIONS))
    if kind == "extend" or not proof:
        return [*proof, draw(st.binary(min_size=32, max_size=32))]
    if kind == "truncate":
        return proof[:-1]
    if kind == "drop_first":
        return proof[1:]
    if kind == "repeat":
        return [*proof, proof[-1]]
    i = draw(st.integers(0, len(proof) - 1))
    if kind == "flip":
        bit = draw(st.integers(0, 255))
        spoilt = bytearray(proof[i])
        spoilt[bit // 8] ^= 1 << bit % 8
        return [*proof[:i], bytes(spoilt), *proof[i + 1 :]]
    j = draw(st.integers(0, len(proof) - 1))
    assume(i != j)
    swapped = list(proof)
    swapped[i], swapped[j] = proof[j], proof[i]
    return swapped


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_spoilt_inclusion_proofs_are_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 41))
    index = data.draw(st.integers(0, size - 1))
    proof = TREE.inclusion_proof(index, size)
    leaf, root = merkle.leaf_hash(DATA[index]), TREE.root(size)
    spoilt = mutate(data.draw, proof)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(index, size, leaf, spoilt, root)
    other = data.draw(st.integers(0, size + 1).filter(lambda i: i != index))
    with pytest.raises(ProofError):
        merkle.verify_inclusion(other, size, leaf, proof, root)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(index, size, merkle.leaf_hash(b"forged"), proof, root)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(index, size, leaf, proof, merkle.leaf_hash(b"forged"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_spoilt_consistency_proofs_are_refused(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 41))
    old = data.draw(st.integers(1, new))
    proof, old_root, new_root = TREE.consistency_proof(old, new), TREE.root(old), TREE.root(new)
    with pytest.raises(ProofError):
        merkle.verify_consistency(old, new, old_root, new_root, mutate(data.draw, proof))
    other = merkle.leaf_hash(b"forged")
    with pytest.raises(ProofError):
        merkle.verify_consistency(old, new, other, new_root, proof)
    with pytest.raises(ProofError):
        merkle.verify_consistency(old, new, old_root, other, proof)
    if old != new:
        with pytest.raises(ProofError):
            merkle.verify_consistency(new, old, new_root, old_root, proof)


def test_a_rewritten_history_has_no_proof() -> None:
    """The old tree differs from the new one's prefix in one leaf: no generated proof helps."""
    for old, new in ((4, 7), (5, 8), (8, 21)):
        forged = merkle.Tree(merkle.leaf_hash(b"x" if i == 2 else d) for i, d in enumerate(DATA))
        for proof in (TREE.consistency_proof(old, new), forged.consistency_proof(old, new)):
            with pytest.raises(ProofError, match="root"):
                merkle.verify_consistency(old, new, TREE.root(old), forged.root(new), proof)


def test_proofs_that_lead_to_the_right_root_for_another_size() -> None:
    """The hashes fit; only the length of the path tells that index and size were made up."""
    leaf = merkle.leaf_hash(DATA[1])
    with pytest.raises(ProofError, match="too long for leaf 0 of 1"):
        merkle.verify_inclusion(0, 1, leaf, TREE.inclusion_proof(1, 2), TREE.root(2))
    leaf = merkle.leaf_hash(DATA[0])
    with pytest.raises(ProofError, match="too short for leaf 0 of 3"):
        merkle.verify_inclusion(0, 3, leaf, TREE.inclusion_proof(0, 2), TREE.root(2))
    with pytest.raises(ProofError, match="too short for 1 to 3"):
        merkle.verify_consistency(1, 3, TREE.root(1), TREE.root(2), TREE.consistency_proof(1, 2))
    with pytest.raises(ProofError, match="too long for 1 to 2"):
        merkle.verify_consistency(1, 2, TREE.root(1), TREE.root(4), TREE.consistency_proof(1, 4))
    with pytest.raises(ProofError, match="old size 5 is above"):
        merkle.verify_consistency(5, 4, TREE.root(5), TREE.root(4), [])


@pytest.mark.parametrize("size", [-1, 2**63, True, 1.0, None])
def test_sizes_are_guarded(size: int) -> None:
    h = bytes(32)
    with pytest.raises(ProofError, match="size"):
        merkle.verify_inclusion(0, size, h, [], h)
    with pytest.raises(ProofError, match="size"):
        merkle.verify_consistency(size, 5, h, h, [])
    with pytest.raises(ProofError, match="size"):
        merkle.verify_consistency(0, size, h, h, [])


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), "0" * 32, None])
def test_hashes_are_guarded(bad: bytes) -> None:
    h = bytes(32)
    for call in (
        lambda: merkle.verify_inclusion(0, 2, bad, [h], h),
        lambda: merkle.verify_inclusion(0, 2, h, [bad], h),
        lambda: merkle.verify_inclusion(0, 2, h, [h], bad),
        lambda: merkle.verify_consistency(1, 2, bad, h, [h]),
        lambda: merkle.verify_consistency(1, 2, h, bad, [h]),
        lambda: merkle.verify_consistency(1, 2, h, h, [bad]),
    ):
        with pytest.raises(ProofError, match="32 bytes"):
            call()


def test_proof_form_is_guarded() -> None:
    h = bytes(32)
    with pytest.raises(ProofError, match="at most 64"):
        merkle.verify_inclusion(0, 2, h, [h] * 65, h)
    with pytest.raises(ProofError, match="at most 64"):
        merkle.verify_consistency(1, 2, h, h, [h] * 65)
    with pytest.raises(ProofError, match="list"):
        merkle.verify_inclusion(0, 2, h, h, h)  # type: ignore[arg-type]
    with pytest.raises(ProofError, match="wanted none"):
        merkle.verify_consistency(3, 3, h, h, [h])
    with pytest.raises(ProofError, match="no leaf"):
        merkle.verify_inclusion(True, 2, h, [h], h)
