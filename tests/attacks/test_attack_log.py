"""A trainer who steers values by the rounding log, or by the host scalars, and signs it (numerics §2, §5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from log_helpers import SiteLog, entries_of, log_of
from run_helpers import KEY, audited, copied, finding, forging, honest, other_hardware

from auditor.evidence import open_run
from auditor.evidence.verify import verify
from auditor.verdict import Verdict
from vtrain.store.steplog import COLUMNS, StepLog

UNDECIDED = 1 + 3 + 9 + 27 + 81  # five ternary digits of 1
Change = Callable[[list[SiteLog]], object]


def forge(run: Path, step: int, change: Change) -> Verdict:
    """Change a step's entries, sign, and audit what ``verify`` still accepts."""

    def rewrite(log: StepLog) -> StepLog:
        sites = entries_of(log)
        change(sites)
        return log_of(sites, log.scalars)

    with forging(run) as forger:
        forger.change_log(step, rewrite)
    verify(run, KEY.public_key(), lambda at, last: None)
    return audited(run)


def refused(verdict: Verdict, step: int) -> str:
    """The detail of a verdict that found a bad log at ``step``."""
    assert finding(verdict) == (step, "log")
    assert verdict.violations == 1
    return verdict.detail


@pytest.fixture
def run16(tmp_path: Path) -> Path:
    """bfloat16, certified, sparse: nearly all entries narrow."""
    return copied(honest("certified16"), tmp_path / "run")


@pytest.fixture
def run32(tmp_path: Path) -> Path:
    """float32, far wider than certified: many whole values."""
    return copied(honest("generous32"), tmp_path / "run")


@pytest.mark.parametrize("policy", ["certified16", "generous32"])
def test_helpers_invert(policy: str) -> None:
    evidence = open_run(honest(policy))
    for step in range(evidence.last_step + 1):
        log = evidence.log(step)
        again = log_of(entries_of(log), log.scalars)
        assert all(getattr(log, c).tobytes() == getattr(again, c).tobytes() for c in COLUMNS)


@pytest.mark.parametrize("policy", ["certified16", "ternary16", "generous32", "adaptive16"])
def test_honest_logs(policy: str) -> None:
    verdict = audited(honest(policy))
    assert finding(verdict) == (None, "")
    assert verdict.entries > 100 and verdict.corrections == verdict.violations == 0


@pytest.mark.parametrize("policy", ["certified16", "ternary16"])
def test_other_hardware_is_corrected(policy: str) -> None:
    verdict = audited(other_hardware(policy))
    assert finding(verdict) == (None, "")
    assert verdict.corrections > 10 and verdict.violations == 0


def first_wide(sites: list[SiteLog]) -> SiteLog:
    return next(s for s in sites if s.wide)


@pytest.mark.parametrize("flip", [1 << 31, 1 << 23, 1 << 4, 1])
def test_whole_value_moved(run32: Path, flip: int) -> None:
    """By its sign, its exponent, 16 units and one unit in the last place: all far outside the certified bound."""

    def change(sites: list[SiteLog]) -> None:
        site = first_wide(sites)
        index, word = site.wide[5]
        site.wide[5] = (index, word ^ flip)

    site = first_wide(entries_of(open_run(run32).log(3)))
    detail = refused(forge(run32, 3, change), 3)
    assert f"result {site.seq} " in detail and f"element {site.wide[5][0]}: " in detail
    assert "outside the certified bound: logged " in detail and " computed " in detail and "+-" in detail


@pytest.mark.parametrize("word", [0x7FC00000, 0x7F800000, 0xFFFFFFFF])
def test_whole_value_is_not_finite(run32: Path, word: int) -> None:
    def change(sites: list[SiteLog]) -> None:
        site = first_wide(sites)
        site.wide[0] = (site.wide[0][0], word)

    refused(forge(run32, 3, change), 3)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_short_code_flipped_where_nothing_is_in_doubt(run32: Path, shift: int) -> None:
    def change(sites: list[SiteLog]) -> None:
        site = next(s for s in sites if s.narrow)
        index, code = site.narrow[-1]
        site.narrow[-1] = (index, (code + shift) % 4)

    refused(forge(run32, 4, change), 4)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_short_code_two_values_away(run16: Path, step: int) -> None:
    """In doubt between two neighbours at most, so the value two places away is out of bounds whatever was logged."""

    where = []

    def change(sites: list[SiteLog]) -> None:
        site = max(sites, key=lambda s: len(s.narrow))
        where.append(site.seq)
        index, code = site.narrow[0]
        site.narrow[0] = (index, (code + 2) % 4)

    detail = refused(forge(run16, step, change), step)
    assert f"result {where[0]} " in detail


def test_short_code_within_the_bound(tmp_path: Path) -> None:
    """An element in doubt has two honest values: the third and fourth code are refused, and claiming the value that
    the trainer did not train on makes what follows another training, unless a later rounding takes it up."""
    outcomes = []
    for number in range(4):
        found = []
        for shift in (1, 2, 3):
            run = copied(honest("certified16"), tmp_path / f"{number}-{shift}")

            def change(sites: list[SiteLog], number: int = number, shift: int = shift) -> None:
                index, code = sites[0].narrow[number]
                sites[0].narrow[number] = (index, (code + shift) % 4)

            found.append(finding(forge(run, 1, change)))
        found.remove((1, "log"))
        found.remove((1, "log"))
        outcomes += found
    assert any(what in ("loss", "state") for _, what in outcomes)
    assert all(what in ("", "loss", "state", "log") for _, what in outcomes)


def untouched(site: SiteLog) -> int:
    taken = {i for i, _ in site.narrow} | {i for i, _ in site.wide}
    return next(i for i in range(site.numel) if i not in taken)


def test_entry_invented(tmp_path: Path) -> None:
    """For an element not in doubt, all codes but the honest one are refused; that one changes nothing."""
    found = []
    for code in range(4):
        run = copied(honest("certified16"), tmp_path / f"{code}")

        def change(sites: list[SiteLog], code: int = code) -> None:
            site = sites[0]
            site.narrow = sorted([*site.narrow, (untouched(site), code)])

        verdict = forge(run, 3, change)
        found.append(finding(verdict))
        if verdict.verified:
            assert verdict.entries == audited(honest("certified16")).entries + 1 and verdict.corrections == 0
    assert sorted(found, key=str) == [(3, "log")] * 3 + [(None, "")]


def test_whole_value_invented(run16: Path) -> None:
    def change(sites: list[SiteLog]) -> None:
        site = sites[0]
        site.wide = sorted([*site.wide, (untouched(site), 0x3F80)])

    assert "outside the certified bound" in refused(forge(run16, 3, change), 3)


def test_entries_for_a_result_that_the_step_has_not(run16: Path) -> None:
    detail = refused(forge(run16, 3, lambda sites: sites.append(SiteLog(500, 8, [(0, 1)]))), 3)
    assert "500" in detail


def test_entries_of_another_result(run16: Path) -> None:
    def change(sites: list[SiteLog]) -> None:
        sites[-1].seq += 1

    refused(forge(run16, 3, change), 3)


def test_decision_removed(run16: Path) -> None:
    """A decision that the auditor would have taken itself is not missed; the log's commitment has changed with it."""

    def change(sites: list[SiteLog]) -> None:
        del sites[0].narrow[0]

    verdict = forge(run16, 3, change)
    assert finding(verdict) == (None, "")
    assert verdict.entries == audited(honest("certified16")).entries - 1


def test_decisions_removed_that_hardware_took_otherwise(tmp_path: Path) -> None:
    """Without the decisions that corrected the auditor, it gets another training."""
    run = copied(other_hardware("certified16"), tmp_path / "run")
    assert audited(run).corrections > 10
    step, what = finding(forge(run, 3, list.clear))
    assert (step, what) in [(3, "loss"), (4, "loss"), (4, "state")]


@pytest.mark.parametrize("digit", [0, 1, 2])
def test_ternary_digits_changed(tmp_path: Path, digit: int) -> None:
    """Every element of a result claimed to be rounded down, undecided, or up."""
    run = copied(honest("ternary16"), tmp_path / "run")

    def change(log: StepLog) -> StepLog:
        _, numel, encoding, narrow, _, _ = log.sites[0].tolist()
        assert encoding == 1 and narrow
        codes = log.codes.copy()
        decided = int(np.flatnonzero(codes[: numel // 5] != UNDECIDED)[0])
        codes[decided] = digit * UNDECIDED
        return StepLog(log.sites, log.gaps, codes, log.values, log.scalars)

    with forging(run) as forger:
        forger.change_log(3, change)
    verify(run, KEY.public_key(), lambda at, last: None)
    refused(audited(run), 3)


def test_ternary_byte_beyond_five_digits(tmp_path: Path) -> None:
    run = copied(honest("ternary16"), tmp_path / "run")

    def change(log: StepLog) -> StepLog:
        codes = log.codes.copy()
        codes[0] = 243
        return StepLog(log.sites, log.gaps, codes, log.values, log.scalars)

    with forging(run) as forger:
        forger.change_log(3, change)
    assert "above 242" in refused(audited(run), 3)


def move_scalar(run: Path, step: int, position: int, ulps: int) -> Verdict:
    def change(log: StepLog) -> StepLog:
        scalars = log.scalars.copy()
        scalars[position] = np.uint64(int(scalars[position]) + ulps)
        return StepLog(log.sites, log.gaps, log.codes, log.values, scalars)

    with forging(run) as forger:
        forger.change_log(step, change)
    verify(run, KEY.public_key(), lambda at, last: None)
    return audited(run)


@pytest.mark.parametrize("ulps", [1, -1, 4, -4])
def test_scalar_within_four_ulps(run: Path, ulps: int) -> None:
    """A factor that another library rounded otherwise, and that float32 does not tell from the auditor's: accepted."""
    assert finding(move_scalar(run, 3, 4, ulps)) == (None, "")


@pytest.mark.parametrize("ulps", [5, -5, 1 << 52, 1 << 62])
def test_scalar_beyond_four_ulps(run: Path, ulps: int) -> None:
    verdict = move_scalar(run, 3, 4, ulps)
    assert finding(verdict) == (3, "scalars")
    assert " in the run, " in verdict.detail and "torch/optim/" in verdict.detail and verdict.violations == 0


def test_scalar_that_is_no_factor(run: Path) -> None:
    """In each step of AdamW: the weight decay and the factors have a tolerance, the weight of a blend has none."""
    found = [finding(move_scalar(copied(run, run.with_name(f"at{at}")), 3, at, 1)) for at in range(8)]
    assert {(None, ""), (3, "scalars")} == set(found), found


@pytest.mark.parametrize("count", [-1, 1])
def test_scalar_left_out_or_added(run: Path, count: int) -> None:
    def change(log: StepLog) -> StepLog:
        scalars = log.scalars[:count] if count < 0 else np.append(log.scalars, log.scalars[:count])
        return StepLog(log.sites, log.gaps, log.codes, log.values, scalars)

    with forging(run) as forger:
        forger.change_log(3, change)
    assert finding(audited(run)) == (3, "scalars")
