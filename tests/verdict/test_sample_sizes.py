"""How many segments are drawn, how likely they meet a cheat, and that anyone can repeat the draw (protocol §7)."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from run_helpers import KEY, audited, copied, finding, forging, job, make

from auditor.audit.plan import Confidence, share, size_for_budget, size_for_confidence
from auditor.evidence import open_run
from auditor.evidence.segments import Segment, segments
from auditor.verdict.draw import bad_segments, caught, check_draw, drawn
from auditor.verdict.verdict import detection
from vtrain.commit.heads import head_digest
from vtrain.demo.forger import one_ulp
from vtrain.errors import MalformedRunError, UsageError

RUNS = 4000
# A test with this chance of a false alarm; seeds are fixed, so it is thrown once.
ALARM = 1e-6


def binomial_tail(hits: int, runs: int, p: float) -> float:
    """Chance of a number of hits at least as far on its side of the mean: the smaller of the two tails."""

    def chance(k: int) -> float:
        logs = math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1)
        return math.exp(logs + k * math.log(p) + (runs - k) * math.log1p(-p))

    return min(sum(map(chance, range(hits + 1))), sum(map(chance, range(hits, runs + 1))))


def simulated(total: int, count: int, bad: int) -> int:
    """In how many synthetic runs a draw meets a bad segment; each has its own head, nonce and bad segments."""
    choose = random.Random(f"{total} {count} {bad}")
    hits = 0
    for number in range(RUNS):
        cheated = set(choose.sample(range(total), bad))
        hits += not cheated.isdisjoint(drawn(total, count, f"head {number}", f"nonce {total} {number}"))
    return hits


@pytest.mark.parametrize(
    ("total", "count", "bad"),
    [(20, 8, 5), (20, 1, 1), (40, 10, 2), (100, 20, 5), (13, 4, 1), (60, 6, 30), (50, 25, 3), (200, 30, 10)],
)
def test_cheats_are_met_as_often_as_the_formula_says(total: int, count: int, bad: int) -> None:
    hits = simulated(total, count, bad)
    assert binomial_tail(hits, RUNS, float(caught(total, count, bad))) > ALARM
    assert caught(total, count, bad) >= 1 - (1 - Fraction(bad, total)) ** count


def test_the_simulation_tells_the_formula_from_the_bound() -> None:
    """Otherwise the test above would say nothing: with replacement, fewer are met."""
    hits = simulated(20, 8, 5)
    assert binomial_tail(hits, RUNS, detection(8, 0.25)) < ALARM
    assert binomial_tail(hits, RUNS, float(caught(20, 7, 5))) < ALARM


def test_a_trainer_can_hide_nowhere() -> None:
    """The same for any place of the cheat, under one head: only the nonce varies."""
    hits = Counter(n for number in range(RUNS) for n in drawn(12, 3, "head", f"{number}"))
    assert sorted(hits) == list(range(12))
    for count in hits.values():
        assert binomial_tail(count, RUNS, 3 / 12) > ALARM / 12


def test_every_set_of_segments_is_as_likely() -> None:
    sets = Counter(tuple(drawn(6, 3, "head", f"{number}")) for number in range(RUNS))
    assert sorted(sets) == sorted(combinations(range(6), 3))
    for count in sets.values():
        assert binomial_tail(count, RUNS, 1 / 20) > ALARM / 20


def test_draws_cannot_be_foreseen_from_the_head() -> None:
    draws = [tuple(drawn(60, 10, "one head", f"{number}")) for number in range(500)]
    assert len(set(draws)) == 500
    assert drawn(60, 10, "another head", "0") != list(draws[0])
    assert [list(draws[7])] * 2 == [drawn(60, 10, "one head", "7") for _ in range(2)]
    # The best guess from the head, the segment drawn most often, is no better than any.
    most = Counter(n for d in draws for n in d).most_common(1)[0][1]
    assert binomial_tail(most, 500, 10 / 60) > ALARM / 60


@pytest.mark.parametrize("nonce", ["a\nb", "\x1b[2J", "x" * 4097])
def test_nonces_are_one_line_of_text(nonce: str) -> None:
    """The note begins after it, and reports print it."""
    with pytest.raises(UsageError, match="want at most 4096, printable, in one line"):
        drawn(5, 2, "head", nonce)


def naive_caught(total: int, count: int, bad: int) -> Fraction:
    """One draw after the other."""
    missed = Fraction(1)
    for done in range(count):
        missed *= Fraction(max(0, total - bad - done), total - done)
    return 1 - missed


def test_probability_is_exact() -> None:
    for total in range(1, 14):
        for count in range(total + 1):
            for bad in range(total + 1):
                assert caught(total, count, bad) == naive_caught(total, count, bad)
    with pytest.raises(UsageError, match="4 drawn and 1 bad of 3"):
        caught(3, 4, 1)
    with pytest.raises(UsageError, match="want each to be at most all"):
        caught(3, 1, 4)


@pytest.mark.parametrize("sure", ["0.5", "0.9", "0.99", "0.999999", "1"])
@pytest.mark.parametrize("cheated", ["0.01", "0.05", "0.3", "0.5", "1"])
def test_size_for_confidence_is_the_smallest(sure: str, cheated: str) -> None:
    wanted = Confidence(Fraction(sure), Fraction(cheated))
    for total in (*range(1, 30), 100, 997):
        bad = bad_segments(total, wanted.cheated)
        count = size_for_confidence(total, wanted)
        assert Fraction(bad, total) >= wanted.cheated > Fraction(bad - 1, total)
        assert 1 <= count <= total
        assert caught(total, count, bad) >= wanted.caught
        assert count == 1 or caught(total, count - 1, bad) < wanted.caught


def test_size_for_confidence_of_large_runs() -> None:
    wanted = Confidence(Fraction("0.99"), Fraction("0.05"))
    assert size_for_confidence(10**6, wanted) == 90 == math.ceil(math.log(0.01) / math.log(0.95))
    assert size_for_confidence(100, wanted) == 59  # without replacement: 31 segments fewer than 1-(1-q)^n asks for
    assert size_for_confidence(10**5, Confidence(Fraction("0.99"), Fraction(1, 10**5))) == 99_000


def test_size_for_budget_is_the_largest_that_always_fits() -> None:
    choose = random.Random(7)
    for _ in range(200):
        lengths = [1, *(choose.randint(1, 9) for _ in range(choose.randint(1, 9)))]
        made = [Segment(0, 0, n - 1) for n in lengths]
        budget = Fraction(choose.randint(1, 100), 100)
        count = size_for_budget(made, budget)
        worst = {n: max(sum(c) for c in combinations(lengths, n)) for n in range(1, len(lengths) + 1)}
        fits = [n for n, steps in worst.items() if steps <= budget * sum(lengths)]
        assert count == max(fits, default=1)


def test_size_for_budget_of_a_whole_run() -> None:
    made = [Segment(-1, 0, 0), *(Segment(s, s + 1, s + 10) for s in range(0, 1000, 10))]
    assert size_for_budget(made, Fraction(5, 100)) == 5 and size_for_budget(made, Fraction(1, 10**6)) == 1
    assert size_for_budget(made, Fraction(1)) == 101


@pytest.mark.parametrize(
    ("text", "value"), [("5%", "1/20"), ("0.05", "1/20"), (".5", "1/2"), ("100%", "1"), ("1", "1")]
)
def test_shares(text: str, value: str) -> None:
    assert share(text, "--budget") == Fraction(value)


@pytest.mark.parametrize(
    "text", ["0", "0%", "101%", "1.5", "-1", "", "%", "5 %", "nan", "1e-3", "0.", "1/2", "\u0665%", "0" * 99]
)
def test_no_shares(text: str) -> None:
    with pytest.raises(UsageError, match=r"--budget .*want a number above 0 and at most 1"):
        share(text, "--budget")


# ---- in verdicts ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps with a checkpoint each: thirteen segments."""
    return make(tmp_path_factory.mktemp("sizes") / "run", job(train={"steps": 12, "checkpoint_every": 1}))


@pytest.fixture(scope="module")
def predicate(long_run: Path) -> dict[str, Any]:
    """Of a verified sample."""
    return audited(long_run, sampled=4, nonce="mine").predicate()


def test_verdict_names_its_draw(long_run: Path, predicate: dict[str, Any]) -> None:
    evidence = open_run(long_run)
    wanted = drawn(13, 4, evidence.head_digest, "mine")
    assert predicate["draw"] == {"nonce": "mine", "segments": wanted}
    assert check_draw(predicate) == check_draw(predicate, nonce="mine", evidence=evidence) == wanted
    assert predicate["detectionExact"] == {
        f"{q:.2f}": f"{float(naive_caught(13, 4, math.ceil(q * 13))):.6f}" for q in (0.01, 0.05, 0.1, 0.5)
    }
    assert all(float(predicate["detectionExact"][q]) >= float(p) for q, p in predicate["detection"].items())
    assert audited(long_run, steps=(0, 1)).predicate()["draw"] is None


def test_budget_and_confidence_choose_the_sample(long_run: Path) -> None:
    verdict = audited(long_run, budget=Fraction(16, 100), nonce="x")
    assert (verdict.sampled, verdict.drawn) == (2, drawn(13, 2, head_digest(verdict.head), "x"))
    assert audited(long_run, budget=Fraction(1, 1000), nonce="x").sampled == 1
    verdict = audited(long_run, confidence=Confidence(Fraction("0.9"), Fraction("0.5")), nonce="x")
    assert (verdict.sampled, verdict.nonce) == (3, "x")
    assert float(verdict.detection["0.50"]) < 0.9 <= float(verdict.detection_exact["0.50"])
    assert f"87.5% if 50% of segments were bad ({float(naive_caught(13, 3, 7)):.1%} exactly)" in str(verdict)


BREAKS: dict[str, Any] = {
    "another nonce": lambda p: p["draw"].update(nonce="yours"),
    "another segment": lambda p: p["draw"]["segments"].__setitem__(0, (p["draw"]["segments"][0] + 1) % 13),
    "one segment fewer": lambda p: p["draw"]["segments"].pop(),
    "another count": lambda p: p["segments"].update(sampled=3),
    "another number of all": lambda p: p["segments"].update(all=13_000),  # a few more may draw the same
    "another head": lambda p: p.update(head=p["head"] + "x"),
    "more than all": lambda p: p["segments"].update(sampled=14),
    "a huge number": lambda p: p["segments"].update(all=10**9),
    "no numbers": lambda p: p["segments"].update(all="13"),
    "a truth value": lambda p: p["segments"].update(sampled=True),
    "none sampled": lambda p: p["segments"].update(sampled=0),
    "no draw": lambda p: p.update(draw=None),
    "a draw of something else": lambda p: p["draw"].update(more=1),
    "no list": lambda p: p["draw"].update(segments="0123"),
    "a line more": lambda p: p["draw"].update(nonce="mine\n"),
    "no segments": lambda p: p.pop("segments"),
    "no head": lambda p: p.pop("head"),
}


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_another_draw_is_found(predicate: dict[str, Any], name: str) -> None:
    changed = copy.deepcopy(predicate)
    BREAKS[name](changed)
    with pytest.raises(MalformedRunError, match="verdict: "):
        check_draw(changed)


def test_draw_of_another_run_or_nonce(long_run: Path, predicate: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nonce is 'mine'; want 'yours'"):
        check_draw(predicate, nonce="yours")
    with pytest.raises(UsageError, match="chosen, not drawn"):
        check_draw(audited(long_run, steps=(0, 1)).predicate())
    other = make(tmp_path / "run", job(train={"steps": 3, "checkpoint_every": 1, "seed": "4"}))
    with pytest.raises(MalformedRunError, match="not the run's last one"):
        check_draw(predicate, evidence=open_run(other))


def test_steps_that_were_not_drawn(long_run: Path, predicate: dict[str, Any]) -> None:
    evidence = open_run(long_run)
    for replayed in ([[0, 12]], predicate["replayed"][:-1], []):
        with pytest.raises(MalformedRunError, match="replayed; the draw gives"):
            check_draw({**predicate, "replayed": replayed}, evidence=evidence)


def test_draws_of_refuted_runs(long_run: Path, tmp_path: Path) -> None:
    """What was replayed ends with the first bad step, be it in a segment or the checkpoint before."""
    run = copied(long_run, tmp_path / "run")
    with forging(run) as forger:
        forger.change_checkpoint(7, lambda files: files["model"].update({"1.bias": one_ulp(files["model"]["1.bias"])}))
        forger.change_checkpoint(4, lambda files: files["model"].pop("1.bias"))
    evidence, seen = open_run(run, KEY.public_key()), set()
    for nonce in map(str, range(300)):  # a run's own nonce decides the draws too, so that no few of them are sure
        if {(4, "state"), (7, "state")} <= seen:
            break
        verdict = audited(run, sampled=4, nonce=nonce)
        seen.add(finding(verdict))
        assert check_draw(verdict.predicate(), nonce=nonce, evidence=evidence) == verdict.drawn
    assert {(4, "state"), (7, "state")} <= seen


@pytest.mark.parametrize(
    "request_",
    [{"steps": (0, 1), "sampled": 1}, {"sampled": 1, "budget": Fraction(1)}, {"nonce": "a\nb"}, {"nonce": "x" * 5000},
     {"budget": Fraction(1), "confidence": Confidence(Fraction(1), Fraction(1))}, {"threads": -1}, {"jobs": 0}],
)  # fmt: skip
def test_requests_that_make_no_sense(long_run: Path, request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        audited(long_run, **request_)


def test_segments_of_a_run(long_run: Path) -> None:
    assert sum(s.steps for s in segments(open_run(long_run))) == 13
