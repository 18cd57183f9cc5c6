"""Digests of samples, batches and data sets (protocol §2, §4).

A sample or a batch is a nest: mappings, lists, tuples and dataclasses of arrays, tensors, numbers, texts and None::

    leaf of a nest = RFC 6962 leaf hash of the RFC 8785 JSON {"dtype", "path", "shape"} of an array or tensor, or
                     {"path", "type"} of another value; a newline; and the value's bytes
    sample digest  = RFC 6962 root over the sample's leaves, in the order of their headers' bytes
    data set       = RFC 6962 leaf hash of the JSON {"format", "samples"}, a newline, and the RFC 6962 root over the
                     samples' digests

The number of samples is under the last hash because a Merkle root alone does not fix it. The bytes of arrays are in C
order and little-endian, so an array and a tensor of the same numbers have the same digest. Containers that are indexed
alike are alike: a tuple and a list, a mapping and a dataclass. Of Python's values, texts are in UTF-8, integers in
decimal digits, numbers in little-endian float64, booleans one byte, and None and empty containers nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import rfc8785

from vtrain.commit import merkle
from vtrain.commit.digest import format_digest, parse_digest
from vtrain.errors import BatchError, ProofError, UsageError

DATA_FORMAT = "vtrain-data-v1-sha256"
_MAX_DEPTH = 32

Key: TypeAlias = str | int | tuple[str, ...]
Path: TypeAlias = tuple[Key, ...]
_Content: TypeAlias = bytes | memoryview

# The names of safetensors, as the digests of states have them.
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclasses.dataclass(frozen=True)
class SampleProof:
    """What it takes to check one sample against a data set's digest; hostile until ``verify_sample`` accepts it.

    Attributes:
        index: of the sample.
        samples: how many samples the data set has.
        path: the inclusion proof, hashes of 32 bytes.
    """

    index: int
    samples: int
    path: tuple[bytes, ...]


def _name(path: Path) -> str:
    return ".".join(f"({', '.join(key)})" if isinstance(key, tuple) else str(key) for key in path)


def _where(path: Path) -> str:
    return f"batch leaf {_name(path)!r}" if path else "batch"


@lru_cache(maxsize=1024)  # the samples of a data set share their headers
def _header(path: Path, kind: str, shape: tuple[int, ...] | None) -> bytes:
    header: dict[str, Any] = {"path": list(path)}
    header |= {"type": kind} if shape is None else {"dtype": kind, "shape": list(shape)}
    try:
        return rfc8785.dumps(header) + b"\n"
    except ValueError as error:
        raise BatchError(f"{_where(path)}: the path can't be written as JSON: {error}") from error


def _array(path: Path, array: npt.NDArray[Any]) -> tuple[bytes, _Content]:
    dtype = _DTYPES.get(array.dtype.name)
    if dtype is None:
        raise BatchError(f"{_where(path)}: array of {array.dtype}; wanted one of {', '.join(_DTYPES)}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise BatchError(f"{_where(path)}: a NaN in an array of {array.dtype}")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return _header(path, dtype, array.shape), np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _tensor(path: Path, tensor: Any, torch: Any) -> tuple[bytes, _Content]:
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        found = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise BatchError(f"{_where(path)}: a {found}; wanted the plain tensors that it holds")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise BatchError(f"{_where(path)}: {tensor.layout} tensor on {tensor.device}; wanted plain memory")
    if tensor.dtype is torch.bfloat16:  # numpy has no such type: as bits
        bits = tensor.detach().resolve_neg().contiguous().view(torch.int16).numpy(force=True)
        if ((bits & 0x7FFF) > 0x7F80).any():
            raise BatchError(f"{_where(path)}: a NaN in a tensor of {tensor.dtype}")
        return _header(path, "BF16", tuple(tensor.shape)), _array(path, bits)[1]
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        raise BatchError(f"{_where(path)}: tensor of {tensor.dtype}; wanted bfloat16 or one of {', '.join(_DTYPES)}")
    return _array(path, tensor.numpy(force=True))


def _plain(path: Path, value: object) -> tuple[bytes, _Content]:
    """Numbers, texts and None."""
    match value:
        case None:
            return _header(path, "null", None), b""
        case bool():
            return _header(path, "boolean", None), b"\x01" if value else b"\x00"
        case float():
            if value != value:
                raise BatchError(f"{_where(path)}: a NaN")
            return _header(path, "number", None), struct.pack("<d", value)
        case int() | str():
            try:
                return _header(path, "text" if isinstance(value, str) else "integer", None), str(value).encode()
            except ValueError as error:  # half a surrogate pair, or too many digits
                raise BatchError(f"{_where(path)}: {error}") from error
    raise BatchError(
        f"{_where(path)}: {_kind(value).removeprefix('a ')} can't be committed to; wanted a mapping, list, tuple, "
        "dataclass or object with to_dict() of tensors, arrays, numbers, texts and None"
    )


def _children(path: Path, value: object) -> list[tuple[Key, object]] | None:
    """The keyed parts of a container; None if it is a leaf."""
    if isinstance(value, Mapping):
        for key in value:
            texts = isinstance(key, tuple) and all(isinstance(part, str) for part in key)  # a kind of edges in a graph
            if isinstance(key, bool) or not (texts or isinstance(key, (str, int))):
                raise BatchError(f"{_where(path)}: key {key!r}; wanted texts, integers or tuples of texts as keys")
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return _like_map(path, value)


def _like_map(path: Path, value: object) -> list[tuple[Key, object]] | None:
    """The parts of an object that says them: ``to_dict()``, as graphs' batches have it, or ``keys()`` and indexing."""
    if isinstance(value, (type, np.ndarray, np.generic)) or type(value).__module__.split(".")[0] == "torch":
        return None
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):
        found = to_dict()
    elif callable(getattr(value, "keys", None)) and hasattr(type(value), "__getitem__"):
        keys = value.keys()  # type: ignore[attr-defined]
        found = {key: value[key] for key in keys}  # type: ignore[index]
    else:
        return None
    if not isinstance(found, Mapping):
        raise BatchError(f"{_where(path)}: to_dict() of {_kind(value)} gives {_kind(found)}; wanted a mapping")
    return _children(path, found)


def _kind(value: object) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, bytes, _Content]]:
    """Path, header and content of each leaf, in the order in which a program would walk them."""
    if len(path) > _MAX_DEPTH:
        raise BatchError(f"{_where(path)}: nested more than {_MAX_DEPTH} deep")
    children = _children(path, value)
    torch = sys.modules.get("torch")  # not loaded: then this is no tensor
    if children:
        for key, child in children:
            yield from _leaves(child, (*path, key))
    elif children is not None:
        yield path, _header(path, "empty list" if isinstance(value, (list, tuple)) else "empty map", None), b""
    elif torch is not None and isinstance(value, torch.Tensor):
        yield path, *_tensor(path, value, torch)
    elif isinstance(value, (np.ndarray, np.generic)):
        yield path, *_array(path, np.asarray(value))
    else:
        yield path, *_plain(path, value)


def _leaf_hash(header: bytes, content: _Content) -> bytes:
    hasher = hashlib.sha256(merkle.LEAF_PREFIX)
    hasher.update(header)
    hasher.update(content)
    return hasher.digest()


def _hashes(nest: object) -> dict[str, tuple[bytes, bytes]]:
    """Header and hash of each leaf by the name of its path."""
    result: dict[str, tuple[bytes, bytes]] = {}
    for path, header, content in _leaves(nest):
        if _name(path) in result:
            raise BatchError(f"{_where(path)}: two leaves have this path")
        result[_name(path)] = (header, _leaf_hash(header, content))
    return result


def batch_digests(nest: object) -> dict[str, str]:
    """Digest of each leaf of a batch.

    Args:
        nest: mappings (Hugging Face's batches too), lists, tuples, dataclasses and objects with ``to_dict()`` or
            ``keys()`` (graphs' batches), of torch tensors on any device, numpy arrays, numbers, texts and None.

    Returns:
        64 hexadecimal digits by path, such as ``input_ids`` or ``0.labels``; the path is ``""`` if the batch is a leaf.

    Raises:
        BatchError: a leaf of an unknown type or dtype, or with a NaN, or a nest that can't be named; says the path.
    """
    return {name: leaf.hex() for name, (_, leaf) in _hashes(nest).items()}


def nest_bytes(nest: object) -> int:
    """Size of a sample's or batch's contents, in bytes; errors as ``batch_digests``."""
    return sum(len(content) for _, _, content in _leaves(nest))


def sample_digest(sample: object) -> bytes:
    """Digest of one sample, a nest as in ``batch_digests``: 32 bytes.

    Raises:
        BatchError: as ``batch_digests``.
    """
    return merkle.root([leaf for _, leaf in sorted(_hashes(sample).values())])


def sample_digests(dataset: Any, n: int | None = None) -> list[bytes]:
    """Digests of the first n samples of a map from index to sample, 32 bytes each.

    Draw random augmentation later (``vtrain.data.order.augmentation_key``), not in the map: its samples must be the
    same at every look.

    Args:
        dataset: has ``__getitem__``, and ``__len__`` if n is not given.
        n: the number of samples; all by default.

    Raises:
        BatchError: a sample can't be committed to; says which.
        UsageError: there are no samples.
    """
    count = len(dataset) if n is None else n
    if count < 1:
        raise UsageError(f"data set has {count} samples; wanted at least one")
    digests = []
    for index in range(count):
        try:
            digests.append(sample_digest(dataset[index]))
        except BatchError as error:
            raise BatchError(f"sample {index}: {error}") from error
    return digests


def _data_digest(samples: int, root: bytes) -> str:
    header = rfc8785.dumps({"format": DATA_FORMAT, "samples": samples})
    return format_digest(DATA_FORMAT, merkle.leaf_hash(header + b"\n" + root))


def data_digest(digests: Sequence[bytes]) -> str:
    """The digest of a data set from those of its samples in order: ``vtrain-data-v1-sha256:<hex>``."""
    return _data_digest(len(digests), merkle.root([merkle.leaf_hash(digest) for digest in digests]))


def dataset_digest(dataset: Any, n: int | None = None) -> str:
    """The digest of a data set: ``vtrain-data-v1-sha256:<hex>``. Reads all of it.

    Arguments and errors are those of ``sample_digests``.
    """
    return data_digest(sample_digests(dataset, n))


def sample_proof(digests: Sequence[bytes], index: int) -> SampleProof:
    """Proof that a sample is number ``index`` of the data set.

    Args:
        digests: of all samples, as by ``sample_digests``.

    Raises:
        UsageError: there is no such sample.
    """
    tree = merkle.Tree(merkle.leaf_hash(digest) for digest in digests)
    return SampleProof(index, len(digests), tuple(tree.inclusion_proof(index)))


def verify_sample(text: str, sample: object, proof: SampleProof) -> None:
    """Check that ``sample`` is number ``proof.index`` of the data set with digest ``text``.

    Raises:
        ProofError: it is not, or the proof is malformed.
        MalformedRunError: ``text`` is no digest of a data set.
        BatchError: the sample can't be committed to.
    """
    parse_digest(DATA_FORMAT, text)
    leaf = merkle.leaf_hash(sample_digest(sample))
    found = _data_digest(proof.samples, merkle.root_from_inclusion(proof.index, proof.samples, leaf, proof.path))
    if found != text:
        raise ProofError(f"sample {proof.index} of {proof.samples} leads to {found}, not {text}")


def verify_absent(text: str, digests: Sequence[bytes], sample: object) -> None:
    """Check that ``sample`` is nowhere in the data set with digest ``text``, given the digests of all its samples.

    Raises:
        ProofError: these are not the data set's digests, or the sample is among them.
        MalformedRunError: ``text`` is no digest of a data set.
        BatchError: the sample can't be committed to.
    """
    parse_digest(DATA_FORMAT, text)
    if any(not isinstance(digest, bytes) or len(digest) != merkle.HASH_BYTES for digest in digests):
        raise ProofError(f"digests of samples are {merkle.HASH_BYTES} bytes each")
    found, wanted = data_digest(digests), sample_digest(sample)
    if found != text:
        raise ProofError(f"the samples' digests lead to {found}, not {text}")
    if wanted in digests:
        raise ProofError(f"the sample is in the data set, at index {list(digests).index(wanted)}")
