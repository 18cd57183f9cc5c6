"""Data sets that need no download: map-style, of numpy arrays, and the same at every look.

What they hold is fixed by their digest (protocol §2), not by their name: the installed Python or scikit-learn may have
another text or other pictures than the trainer's, and then the digest says so.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from vtrain.errors import JobError, UnsupportedError, UsageError
from vtrain.random import StreamKey, randint, uniform24, words

Sample: TypeAlias = dict[str, Any]


class Dataset(Protocol):
    """A map from 0..len-1 to samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def _integer(dataset: str, key: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise JobError(f"data set {dataset!r}: {key} is {value!r}; wanted an integer from {low} to {high}")
    return value


def _key(dataset: str, seed: int | str) -> StreamKey:
    try:
        return StreamKey(seed, dataset)
    except UsageError as error:
        raise JobError(f"data set {dataset!r}: {error}") from error


def _checked_index(index: int, n: int) -> int:
    """The index, or the error that ends an iteration; negative indices are not the map's."""
    position = operator.index(index)
    if not 0 <= position < n:
        raise IndexError(f"sample {position} of {n}")
    return position


@lru_cache(maxsize=1)
def _topics_text() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))


class Topics:
    """The help texts of Python's own documentation, cut into blocks that do not overlap; real English.

    They come with Python (``pydoc_data.topics``) and differ between its versions: hence the content digest (protocol
    §2). Sample i is ``{"input_ids", "labels"}``: the same tokens twice, int64 (block,). A last, incomplete block is
    left out.

    Args:
        block: tokens a sample.
        vocab: what a token is: ``"bytes"`` of the UTF-8 text, or ``"chars"``, numbered in the order of code points.

    Attributes:
        vocab_size: one more than the largest token.

    Raises:
        JobError: a value is not one of these, or the block is longer than the text.
    """

    def __init__(self, block: int = 64, vocab: str = "bytes") -> None:
        text = _topics_text()
        if vocab == "bytes":
            self._tokens = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
            self.vocab_size = 256
        elif vocab == "chars":
            points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
            alphabet, tokens = np.unique(points, return_inverse=True)
            self._tokens, self.vocab_size = tokens.astype(np.int64), len(alphabet)
        else:
            raise JobError(f"data set 'topics': vocab is {vocab!r}; wanted 'bytes' or 'chars'")
        self.block = _integer("topics", "block", block, 1, len(self._tokens))

    def __len__(self) -> int:
        return len(self._tokens) // self.block

    def __getitem__(self, index: int) -> Sample:
        first = _checked_index(index, len(self)) * self.block
        tokens = self._tokens[first : first + self.block]
        return {"input_ids": tokens.copy(), "labels": tokens.copy()}


class Digits:
    """1,797 handwritten digits that come with scikit-learn, enlarged from 8x8 to 3x32x32.

    Sample i is ``{"image", "label"}``: float32 (3, 32, 32), the sixteenths k/16 in [0, 1] that the pixels are, each
    repeated in a 4x4 square and in three channels, so exact; and an int64 in 0..9.

    Raises:
        UnsupportedError: scikit-learn is not installed.
    """

    classes = 10

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UnsupportedError("data set 'digits' comes with scikit-learn, which is not installed") from error
        data = load_digits()
        self._images: npt.NDArray[np.float32] = (data.images / 16).astype(np.float32)
        self._labels: npt.NDArray[np.int64] = data.target.astype(np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        position = _checked_index(index, len(self))
        large = self._images[position].repeat(4, axis=0).repeat(4, axis=1)
        return {"image": np.stack([large] * 3), "label": self._labels[position]}


class RandomImages:
    """Noise with random labels, for tests and timings.

    Sample i is ``{"image", "label"}``: ``uniform24`` of the words of (step i, site 0), float32 of the given shape, in
    [0, 1); and ``randint`` of (step i, site 1), int64. The stream is ``random-images``.

    Args:
        n: the number of samples.
        classes: labels are below this.
        shape: of an image.
        seed: in [0, 2^128), as an integer or in decimal digits.

    Raises:
        JobError: a value is not of this form.
    """

    def __init__(
        self, n: int = 1024, classes: int = 10, shape: Sequence[int] = (3, 32, 32), seed: int | str = 0
    ) -> None:
        name = "random-images"
        if not isinstance(shape, (list, tuple)) or not shape:
            raise JobError(f"data set {name!r}: shape is {shape!r}; wanted a list of integers")
        self._n = _integer(name, "n", n, 1, 2**53)
        self.classes = _integer(name, "classes", classes, 1, 2**53)
        self.shape = tuple(_integer(name, "shape", extent, 1, 2**20) for extent in shape)
        self._size = _integer(name, "the number of pixels", int(np.prod(self.shape, dtype=object)), 1, 2**30)
        self._key = _key(name, seed)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Sample:
        position = _checked_index(index, self._n)
        image = uniform24(words(self._key, position, 0, self._size)).reshape(self.shape)
        return {"image": image, "label": randint(words(self._key, position, 1, 2), 0, self.classes)[0]}


class RandomTokens:
    """Random tokens, for tests and timings.

    Sample i is ``{"input_ids", "labels"}``: the same ``randint`` of the words of (step i, site 0) twice, int64
    (block,). The stream is ``random-tokens``.

    Args:
        n: the number of samples.
        block: tokens a sample.
        vocab: tokens are below this.
        seed: in [0, 2^128), as an integer or in decimal digits.

    Raises:
        JobError: a value is not of this form.
    """

    def __init__(self, n: int = 1024, block: int = 64, vocab: int = 256, seed: int | str = 0) -> None:
        name = "random-tokens"
        self._n = _integer(name, "n", n, 1, 2**53)
        self.block = _integer(name, "block", block, 1, 2**30)
        self.vocab_size = _integer(name, "vocab", vocab, 1, 2**53)
        self._key = _key(name, seed)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Sample:
        drawn = words(self._key, _checked_index(index, self._n), 0, 2 * self.block)
        tokens = randint(drawn, 0, self.vocab_size)
        return {"input_ids": tokens, "labels": tokens.copy()}


BUILTIN: dict[str, Callable[..., Dataset]] = {
    "digits": Digits,
    "random-images": RandomImages,
    "random-tokens": RandomTokens,
    "topics": Topics,
}
"""The built-in data sets by the name that a job gives (protocol §1)."""


def load(name: str, **config: Any) -> Dataset:
    """A built-in data set.

    Args:
        name: a key of ``BUILTIN``.
        config: arguments of that class.

    Raises:
        JobError: an unknown name, an unknown key, or an impossible value.
        UnsupportedError: a package that it comes with is not installed.
    """
    factory = BUILTIN.get(name)
    if factory is None:
        built_in = ", ".join(sorted(BUILTIN))
        raise JobError(f"data set {name!r} is unknown; wanted {built_in}, or 'program' for vtrain.Program(data=...)")
    known = list(inspect.signature(factory).parameters)
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise JobError(f"data set {name!r}: unknown key {unknown[0]!r}; known are {', '.join(known) or 'none'}")
    return factory(**config)
