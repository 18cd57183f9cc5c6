"""Data: the order of samples, digests of samples, batches and data sets, and built-in data sets (protocol §2)."""

from __future__ import annotations

from vtrain.data.datasets import BUILTIN, Dataset, load
from vtrain.data.digest import batch_digests, dataset_digest, sample_proof, verify_absent, verify_sample
from vtrain.data.order import augmentation_key, batch_indices, epoch_order

__all__ = [
    "BUILTIN",
    "Dataset",
    "augmentation_key",
    "batch_digests",
    "batch_indices",
    "dataset_digest",
    "epoch_order",
    "load",
    "sample_proof",
    "verify_absent",
    "verify_sample",
]
