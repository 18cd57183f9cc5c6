"""Threshold policies, formats and scales: what each gives and what each refuses (numerics §1, §3)."""

from __future__ import annotations

import math

import pytest
import torch

from vtrain.errors import JobError
from vtrain.rounding.bounds import eta_certified, tau_certified
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format, target_in_float32
from vtrain.rounding.scale import Scale
from vtrain.rounding.threshold import LAMBDA, Threshold, calibration_key, parse_threshold

LONG = ("mm", 1000, 1001.0)


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_certified_is_what_the_proof_says(compute: str) -> None:
    want = tau_certified(1001.0, compute), eta_certified(1001.0, compute)
    assert Threshold("certified").width(*LONG, compute) == want


def test_underflow_counts_only_where_it_can_happen() -> None:
    assert Threshold("certified").width(*LONG, "float64") == (tau_certified(1001.0, "float64"), 0.0)
    assert Threshold("certified").width(*LONG, "float32")[1] == 2 * 1001 * 2.0**-149  # type: ignore[index]


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_statistical_is_narrower_where_sums_are_long(compute: str) -> None:
    tau, eta = Threshold("statistical").width(*LONG, compute)  # type: ignore[misc]
    certified = tau_certified(1001.0, compute)
    assert tau == pytest.approx(certified * LAMBDA / math.sqrt(1001.0), rel=1e-12) and tau < certified
    assert eta == eta_certified(1001.0, compute)


@pytest.mark.parametrize("kind", ["statistical", "adaptive"])
def test_no_policy_is_wider_than_the_proof(kind: str) -> None:
    """Short sums and elementwise functions: the certified width is the smaller one, or the only meaningful one."""
    table = {calibration_key("mm", n, "float32"): 1.0 for n in (1, 2, 3, 20)}
    for length, kappa in ((1, 16.0), (2, 3.0), (3, 4.0), (20, 21.0)):
        width = Threshold(kind, table=table).width("mm", length, kappa, "float32")
        assert width == (tau_certified(kappa, "float32"), eta_certified(kappa, "float32"))


def test_adaptive_uses_the_table_and_falls_back_to_statistical() -> None:
    table = {calibration_key("mm", 1000, "float32"): 2.0**-26}
    adaptive = Threshold("adaptive", table=table)
    assert adaptive.width(*LONG, "float32") == (2.0**-26, eta_certified(1001.0, "float32"))
    statistical = Threshold("statistical").width(*LONG, "float32")
    assert Threshold("adaptive").width(*LONG, "float32") == statistical
    assert adaptive.width("conv", 1000, 1001.0, "float32") == statistical
    assert adaptive.width("mm", 100, 1001.0, "float32") == statistical
    # seen in float64 alone, as where the first steps' operands were huge: nothing is known of float32
    other = Threshold("adaptive", table={calibration_key("mm", 1000, "float64"): 2.0**-55})
    assert other.width(*LONG, "float32") == statistical


def test_adaptive_never_narrows_a_function() -> None:
    """One rounding has no distribution to calibrate."""
    table = {calibration_key("function", 1, "float64"): 0.0}
    width = Threshold("adaptive", table=table).width("function", 1, 16.0, "float64")
    assert width == (tau_certified(16.0, "float64"), 0.0)


def test_calibration_keys_are_binades_of_the_length() -> None:
    keys = [calibration_key("mm", n, "float64") for n in (0, 1, 2, 3, 4, 5, 8, 9, 1024, 1025)]
    assert [k.split("^")[1].removesuffix(":float64") for k in keys] == "0 0 1 2 2 3 3 4 10 11".split()
    assert len({calibration_key(kind, 8, c) for kind in ("conv", "mm") for c in ("float32", "float64")}) == 4


def test_fixed_and_off() -> None:
    assert Threshold("fixed", 0.125).width(*LONG, "float32") == (0.125, 0.0)
    assert Threshold("fixed", 0.0).width(*LONG, "float32") == (0.0, 0.0)
    assert Threshold("off").width(*LONG, "float32") is None


def test_parsing() -> None:
    assert parse_threshold("certified") == Threshold("certified")
    assert parse_threshold("off") == Threshold("off")
    assert parse_threshold(0) == Threshold("fixed", 0.0)
    assert parse_threshold(1e-7) == Threshold("fixed", 1e-7)


@pytest.mark.parametrize(
    "value", ["fixed", "", "Certified", "1e-7", -1, -1e-9, math.nan, math.inf, True, False, None, [1], b"off"]
)
def test_what_is_no_threshold(value: object) -> None:
    with pytest.raises(JobError, match="threshold is"):
        parse_threshold(value)  # type: ignore[arg-type]


# ---- formats -------------------------------------------------------------------------------------------------------
def test_targets_in_float32() -> None:
    assert target_in_float32("float32", 24) is FLOAT32
    assert target_in_float32("float32", 18) == Format("float32p18", "float32", 18, -126, 127)
    assert target_in_float32("bfloat16", 24) == Format("bfloat16in32", "float32", 8, -126, 127)
    assert target_in_float32("float16", 24) == Format("float16in32", "float32", 11, -14, 15)
    assert [f.bits for f in (FLOAT32, BFLOAT16, FLOAT16)] == [32, 16, 16]
    assert [f.native for f in (FLOAT32, BFLOAT16, FLOAT16, target_in_float32("bfloat16", 24))] == [True] * 3 + [False]


def test_compute_type_has_the_bits_that_double_rounding_needs() -> None:
    """2p + 2 bits (Figueroa 1995): 24 bits carry 11, 53 carry 24 (numerics §2)."""
    for bits in range(8, 25):
        fmt = target_in_float32("float32", bits)
        assert 2 * bits + 2 <= {"float32": 24, "float64": 53}[fmt.product_compute]
    assert (FLOAT16.product_compute, BFLOAT16.product_compute) == ("float32", "float32")


@pytest.mark.parametrize(
    ("target", "bits", "found"),
    [("float64", 24, "float64"), ("fp32", 24, "fp32"), ("float32", 7, "7"), ("float32", 25, "25"), ("float16", 9, "9")],
)
def test_what_is_no_target(target: str, bits: int, found: str) -> None:
    with pytest.raises(JobError, match=found):
        target_in_float32(target, bits)


# ---- scales --------------------------------------------------------------------------------------------------------
def test_dense_scales() -> None:
    """s of (b, i, j) is row[b, i] * col[b, j] + bias[j]."""
    row, col, bias = torch.arange(1.0, 7), torch.arange(1.0, 9), torch.arange(0.0, 4)
    s = Scale("mm", 5, 6.0, (2, 3, 4), row=row.double(), col=col.double(), bias=bias.double())
    dense = s.dense(torch.zeros(2, 3, 4))
    for b, i, j in [(0, 0, 0), (0, 2, 3), (1, 0, 1), (1, 2, 3)]:
        assert dense[b, i, j] == row[3 * b + i] * col[4 * b + j] + bias[j]
    s = Scale("mm", 5, 6.0, (2, 3, 4))
    assert torch.equal(s.dense(torch.zeros(24)), torch.ones(2, 3, 4, dtype=torch.float64))
    y = torch.tensor([-3.0, 0.0, 2.0])
    assert Scale("function", 1, 16.0, (1, 1, 3), relative=True).dense(y).view(-1).tolist() == [3.0, 0.0, 2.0]
