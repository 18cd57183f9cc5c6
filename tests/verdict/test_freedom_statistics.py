"""The statistics of freedom: exact tails, edges, indices, and p-values of honest and of chosen decisions."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from auditor.audit.statistics import edges, scale_at
from auditor.verdict.freedom import BINS, EXCESS, Freedom, combined, excess, histogram, poisson_tail
from vtrain import kernels
from vtrain.engine.decisions import Decisions
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from vtrain.rounding.naive import from_ordered, infinity_position, round_fraction
from vtrain.rounding.scale import Scale
from vtrain.store.steplog import StepLog


@pytest.mark.parametrize("mean", [1e-9, 0.3, 4.0, 250.0, 1e6])
def test_poisson_tail(mean: float) -> None:
    for count in {0, 1, 2, round(mean), round(mean + 5 * math.sqrt(mean)) + 1, round(3 * mean) + 2}:
        exact = float(mpmath.gammainc(count, 0, mean, regularized=True)) if count else 1.0
        assert poisson_tail(count, mean) == pytest.approx(exact, rel=1e-7, abs=1e-300)


@pytest.mark.parametrize("fmt", [FLOAT32, BFLOAT16, FLOAT16], ids=lambda f: f.name)
def test_edges_are_where_rounding_changes(fmt: Format) -> None:
    top = infinity_position(fmt)
    places = [0, 1, 2, (1 << (fmt.p - 1)), (1 << (fmt.p - 1)) + 1, 5 << (fmt.p - 1), top // 2 + 3, top - 2]
    values = [from_ordered(k, fmt) for place in places for k in (place, -1 - place)]
    low, high = edges(np.array(values), fmt)
    for value, a, b in zip(values, low, high, strict=True):
        for end, into in ((float(a), float(b)), (float(b), float(a))):
            inside, outside = math.nextafter(end, into), math.nextafter(end, 2 * end - into)
            assert round_fraction(inside, fmt) == value
            assert round_fraction(outside, fmt) != value


def test_scale_of_a_few_elements() -> None:
    random = torch.Generator().manual_seed(1)
    row, col, bias = (torch.rand(n, generator=random, dtype=torch.float64) for n in (6, 10, 5))
    y = torch.rand(30, generator=random, dtype=torch.float64)
    where = torch.tensor([0, 4, 7, 15, 29])
    for s in (
        Scale("mm", 4, 4.0, (2, 3, 5), row=row, col=col, bias=bias),
        Scale("mm", 4, 4.0, (2, 3, 5), full=y + 1),
        Scale("function", 1, 16.0, (1, 1, 30), relative=True),
    ):
        assert torch.equal(scale_at(s, where, y[where]), s.dense(y).reshape(-1)[where])


@pytest.mark.parametrize("encoding", ["sparse", "ternary"])
@pytest.mark.parametrize("share", [0.5, 0.003])
def test_indices_of_the_decisions(encoding: str, share: float) -> None:
    from vtrain.engine.listener import Site
    from vtrain.rounding import generic

    random = torch.Generator().manual_seed(2)
    y = torch.randn(40_000, generator=random, dtype=torch.float32)
    y[::1000] = 1e-12  # whole values: the doubt is many values wide
    s = Scale("mm", 8, 64.0, (1, 1, y.numel()), full=torch.full_like(y, 1.0, dtype=torch.float64))
    tau = share * 2.0**-9
    sink, out = kernels.Sink(kernels.ENCODINGS[encoding]), torch.empty(y.shape, dtype=torch.bfloat16)
    sink.settle(0, kernels.geometry(y, out, s.shape), BFLOAT16.key, kernels.scale_key(s, tau, 0.0), False)
    sites, gaps, codes, values = sink.take()
    log = StepLog(
        np.frombuffer(sites, "<u8").reshape(-1, 6), np.frombuffer(gaps, np.uint8), np.frombuffer(codes, np.uint8),
        np.frombuffer(values, "<u4"), np.empty(0, "<u8"),
    )  # fmt: skip
    decisions = Decisions(log)
    decisions.settle(Site(1, 0, "mm", tuple(y.shape), BFLOAT16), y, lambda: s)
    wanted = generic.in_doubt(y, s, tau, 0.0, BFLOAT16)[0].numpy()
    assert 100 < wanted.size < y.numel()
    assert np.array_equal(np.sort(decisions.taken()), wanted)


def counted(seed: int, n: int, width: float, wider: float, chosen: float) -> Freedom:
    """Decisions whose doubt is ``width``; hardware ``wider`` times as far off as measured; a share chosen."""
    random = np.random.default_rng(seed)
    distance = random.uniform(0, width, n)
    other = np.abs(random.normal(0, wider, n))
    departs = ((other >= distance) & (random.integers(2, size=n) == 1)) | (random.uniform(size=n) < chosen)
    freedom = Freedom()
    tally = freedom.at("mm:2^8")
    tally.differences = histogram(np.abs(random.normal(0, 1.0, 20_000)))
    tally.sides = histogram(np.concatenate([distance, np.full(n, np.inf)]))
    tally.extents = histogram(distance[departs])
    tally.entries, tally.departures, tally.unit = n, int(departs.sum()), 4.0
    return freedom


@pytest.mark.parametrize("seed", range(8))
def test_honest_p_values_are_not_small(seed: int) -> None:
    for wider in (0.3, 1.0, 3.0):
        found = counted(seed, 30_000, 50.0, wider, 0.0)
        by = found.kinds()
        assert combined(by) > 0.01 and excess(by) == ""
        if wider == 1.0:
            assert by[0].departures / by[0].expected == pytest.approx(1.0, abs=0.25)


def test_hardware_beyond_the_safety_factor_is_noted() -> None:
    assert combined(counted(0, 30_000, 50.0, 12.0, 0.0).kinds()) < EXCESS


@pytest.mark.parametrize("seed", range(4))
def test_one_choice_in_five_hundred_is_noted(seed: int) -> None:
    found = counted(seed, 30_000, 50.0, 1.0, 0.002)
    assert "mm" in excess(found.kinds())
    assert found.to_json()["pValue"] < EXCESS


def test_padding_with_decisions_beyond_doubt_allows_for_nothing() -> None:
    found = counted(1, 30_000, 50.0, 1.0, 0.002)
    before = found.kinds()[0]
    padding = Freedom()
    padding.at("mm:2^8").sides = histogram(np.full(40_000, 1e3))
    padding.at("mm:2^8").entries = 20_000
    found.add(padding)
    after = found.kinds()[0]
    assert after.entries == before.entries + 20_000
    assert after.allowed - before.allowed < 1.1
    assert combined([after]) < EXCESS


def test_results_that_agree_cross_no_edge() -> None:
    """A value on an edge departs only if another order gives another value."""
    freedom = Freedom()
    tally = freedom.at("mm:2^8")
    tally.differences, tally.sides = histogram(np.zeros(10_000)), histogram(np.zeros(100))
    tally.entries = tally.departures = 50
    tally.extents = histogram(np.zeros(50))
    assert freedom.kinds()[0].allowed < 0.01
    assert freedom.to_json()["pValue"] < EXCESS


def test_nothing_measured() -> None:
    freedom = Freedom()
    tally = freedom.at("function:2^0")
    tally.unit, tally.entries, tally.sides = 1.0, 100, histogram(np.full(200, 0.5))
    assert freedom.kinds()[0].allowed == pytest.approx(100.0)
    tally.sides = histogram(np.full(200, 8.5))
    assert freedom.kinds()[0].allowed < 1e-10
    assert freedom.tallies["function:2^0"].sides.size == BINS
    assert Freedom().to_json() == {
        "inDoubt": 0, "departures": 0, "expected": 0, "allowed": 0, "pValue": 1.0, "by": []
    }  # fmt: skip
