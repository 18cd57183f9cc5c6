"""What cards can do by their makers' word: dense rates in TFLOP/s (TOP/s of bytes), and GB/s of memory.

NVIDIA H100 Tensor Core GPU datasheet (2023), NVIDIA H200 Tensor Core GPU datasheet (2024), NVIDIA A100 Tensor Core GPU
datasheet (2021). Where a datasheet gives a rate "with sparsity", half of it stands here. ``float64 units`` are the
matrix units.
"""

from __future__ import annotations

Peak = dict[str, float]
_SXM = {"float32": 67.0, "float64": 34.0, "float64 units": 67.0, "bfloat16": 989.0, "int8": 1979.0}
_A100 = {"float32": 19.5, "float64": 9.7, "float64 units": 19.5, "bfloat16": 312.0, "int8": 624.0}
# by a part of the name that torch gives a card; the first that fits
PEAKS: dict[str, Peak] = {
    "H200": {**_SXM, "memory": 4800.0},
    "H100 PCIe": {
        "float32": 51.0, "float64": 26.0, "float64 units": 51.0, "bfloat16": 756.0, "int8": 1513.0, "memory": 2000.0,
    },
    "H100 80GB HBM3": {**_SXM, "memory": 3350.0},
    "A100-SXM4-80GB": {**_A100, "memory": 2039.0},
    "A100-SXM4-40GB": {**_A100, "memory": 1555.0},
}  # fmt: skip


def peak(name: str) -> Peak:
    """Of the card that torch calls so; empty if it isn't known."""
    return next((found for part, found in PEAKS.items() if part in name), {})


def share(value: float, most: float | None) -> float | None:
    """value as a share of the most there is; None where that isn't known."""
    return None if most is None else value / most
