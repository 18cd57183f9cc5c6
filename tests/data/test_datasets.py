"""Built-in data sets: what their samples are, and that a wrong configuration is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from vtrain.data.datasets import BUILTIN, Digits, RandomImages, RandomTokens, Topics, load
from vtrain.data.digest import dataset_digest, sample_digest
from vtrain.errors import JobError
from vtrain.random import StreamKey, words

SMALL: dict[str, dict[str, Any]] = {
    "topics": {"block": 1000},
    "digits": {},
    "random-images": {"n": 20, "shape": [1, 4, 4]},
    "random-tokens": {"n": 20, "block": 8},
}


def test_topics_is_the_text_in_blocks() -> None:
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    data = Topics(block=100)
    tokens = np.concatenate([data[i]["input_ids"] for i in range(len(data))])
    assert bytes(tokens.tolist()) == text.encode()[: len(data) * 100]
    assert 0 <= len(text.encode()) - len(tokens) < 100
    assert data.vocab_size == 256


def test_topics_in_characters() -> None:
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    alphabet = sorted(set(text))
    data = Topics(block=77, vocab="chars")
    assert data.vocab_size == len(alphabet)
    for index in (0, 5, len(data) - 1):
        block = data[index]["input_ids"]
        assert block.dtype == np.int64
        assert "".join(alphabet[t] for t in block) == text[index * 77 : index * 77 + 77]


@pytest.mark.parametrize("name", ["topics", "random-tokens"])
def test_labels_are_the_tokens_in_other_memory(name: str) -> None:
    data = load(name, **SMALL[name])
    sample = data[3]
    assert sample["labels"].tolist() == sample["input_ids"].tolist()
    sample["labels"][:] = -100
    assert sample["input_ids"].min() >= 0
    assert data[3]["labels"].min() >= 0


def test_digits_are_enlarged_exactly() -> None:
    from sklearn.datasets import load_digits

    raw, data = load_digits(), Digits()
    assert len(data) == len(raw.images) == 1797
    for index in (0, 7, 1796):
        sample = data[index]
        image = sample["image"]
        assert image.dtype == np.float32
        assert image.shape == (3, 32, 32)
        assert image.flags.c_contiguous
        for offset in (0, 1, 2, 3):
            assert (image[:, offset::4, 3 - offset :: 4] * 16 == raw.images[index]).all()
        assert sample["label"].dtype == np.int64
        assert sample["label"] == raw.target[index]
    assert {int(data[i]["label"]) for i in range(50)} == set(range(10))


def test_random_images_are_the_stream() -> None:
    data = RandomImages(n=5, classes=3, shape=(2, 3), seed="99")
    key = StreamKey(99, "random-images")
    for index in range(5):
        image, label = data[index]["image"], data[index]["label"]
        assert image.dtype == np.float32
        assert (image * 2**24).reshape(-1).tolist() == (words(key, index, 0, 6) >> 8).tolist()
        low, high = words(key, index, 1, 2).tolist()
        assert label.dtype == np.int64
        assert label == (low + 2**32 * high) * 3 // 2**64


def test_random_tokens_are_the_stream() -> None:
    data = RandomTokens(n=5, block=7, vocab=50, seed=3)
    drawn = words(StreamKey(3, "random-tokens"), 4, 0, 14).astype(object)
    tokens = data[4]["input_ids"]
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [(low + 2**32 * high) * 50 // 2**64 for low, high in drawn.reshape(7, 2)]


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_a_map_is_the_same_at_every_look(name: str) -> None:
    data, again = load(name, **SMALL[name]), load(name, **SMALL[name])
    assert [sample_digest(data[i]) for i in (3, 0, 3)] == [sample_digest(again[i]) for i in (3, 0, 3)]
    assert len({sample_digest(data[i]) for i in range(20)}) == 20
    for index in (-1, len(data)):
        with pytest.raises(IndexError):
            data[index]


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_they_collate(name: str) -> None:
    data: Any = load(name, **SMALL[name])
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert all(len(column) == 4 for column in batch.values())


def test_configuration_and_digest_go_together() -> None:
    variants: list[dict[str, Any]] = [{}, {"seed": 1}, {"block": 9}, {"vocab": 255}, {"n": 21}]
    digests = {dataset_digest(load("random-tokens", **(SMALL["random-tokens"] | v))) for v in variants}
    assert len(digests) == len(variants)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("cifar", {}, "'cifar' is unknown; wanted digits, random-images, random-tokens, topics, or 'program'"),
        ("topics", {"blok": 3}, "'topics': unknown key 'blok'; known are block, vocab"),
        ("digits", {"size": 3}, "'digits': unknown key 'size'; known are none"),
        ("topics", {"block": 0}, "block is 0"),
        ("topics", {"block": 10**9}, "block is 1000000000"),
        ("topics", {"block": "64"}, "block is '64'"),
        ("topics", {"block": True}, "block is True"),
        ("topics", {"vocab": "words"}, "vocab is 'words'"),
        ("random-images", {"n": 0}, "n is 0"),
        ("random-images", {"classes": 1.5}, "classes is 1.5"),
        ("random-images", {"shape": []}, r"shape is \[\]"),
        ("random-images", {"shape": 3}, "shape is 3"),
        ("random-images", {"shape": [3, -1]}, "shape is -1"),
        ("random-images", {"shape": [2**20, 2**20]}, "number of pixels is"),
        ("random-images", {"seed": -1}, "'random-images': seed is -1"),
        ("random-tokens", {"seed": "x"}, "'random-tokens': seed is 'x'"),
        ("random-tokens", {"vocab": 0}, "vocab is 0"),
        ("random-tokens", {"block": None}, "block is None"),
    ],
)
def test_bad_configurations(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        load(name, **config)
