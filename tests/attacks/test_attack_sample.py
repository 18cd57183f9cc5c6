"""Which steps an audit replays: drawn so that the trainer can't foresee them, or chosen (protocol §7.2)."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from run_helpers import KEY, audited, copied, finding, forging, honest, job, make

from auditor.audit.plan import chosen, sample
from auditor.evidence import open_run
from auditor.evidence.segments import Segment, segments
from auditor.verdict.draw import check_draw
from auditor.verdict.verdict import SHARES, detection
from vtrain.demo.forger import one_ulp
from vtrain.errors import Refuted, UsageError
from vtrain.random import StreamKey, permutation
from vtrain.store import canonical


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps with a checkpoint each: thirteen segments."""
    return make(tmp_path_factory.mktemp("long") / "run", job(train={"steps": 12, "checkpoint_every": 1}))


def draw(run: Path, count: int, nonce: str) -> list[tuple[int, int]]:
    evidence = open_run(run)
    return [(s.first, s.last) for s in sample(segments(evidence), count, evidence.head_digest, nonce)]


def test_draw_can_be_repeated_by_anybody(long_run: Path) -> None:
    head = hashlib.sha256(open_run(long_run).heads[-1].text.encode()).hexdigest()
    seed = hashlib.sha256(f"vtrain-sample-v2\nmine\n{head}".encode()).digest()[:16]
    order = permutation(StreamKey(int.from_bytes(seed, "little"), "audit-sample"), 0, 0, 13)
    expected = [(s, s) for s in sorted(order[:4].tolist())]
    assert draw(long_run, 4, "mine") == expected
    verdict = audited(long_run, sampled=4, nonce="mine")
    steps = [s for first, last in verdict.replayed for s in range(first, last + 1)]
    assert [(s, s) for s in steps] == expected
    assert finding(verdict) == (None, "") and verdict.sampled == 4
    assert "segments drawn with nonce mine" in verdict.notes
    assert verdict.to_json()["segments"] == {"all": 13, "sampled": 4}


def test_draw_depends_on_nonce_and_head(long_run: Path) -> None:
    draws = {tuple(draw(long_run, 4, f"{nonce}")) for nonce in range(40)}
    assert len(draws) > 30
    reached = {segment for drawn in draws for segment in drawn}
    assert reached == {(s, s) for s in range(13)}
    everything = segments(open_run(long_run))
    assert sample(everything, 4, "one head", "mine") != sample(everything, 4, "another head", "mine")


def test_draw_does_not_depend_on_signatures(long_run: Path, tmp_path: Path) -> None:
    """Whoever signed may sign the same head in any number of ways, and others may add lines: no other draw by that."""
    run = copied(long_run, tmp_path / "run")
    lines = (run / "transcript.jsonl").read_bytes().splitlines()
    note = json.loads(lines[-1])["note"]
    for number in range(3):
        witness = base64.b64encode(bytes([number]) * 68).decode()
        lines[-1] = canonical.dumps({"type": "head", "note": f"{note}\N{EM DASH} witness.example {witness}\n"})
        (run / "transcript.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        assert open_run(run).notes[-1] != note
        assert draw(run, 4, "mine") == draw(long_run, 4, "mine")
    verdict = audited(long_run, sampled=4, nonce="mine")
    assert check_draw(verdict.predicate(), nonce="mine", evidence=open_run(run)) == verdict.drawn


def test_draw_of_everything(long_run: Path) -> None:
    assert draw(long_run, 13, "x") == [(s, s) for s in range(13)]


def test_nonce_is_made_and_told(long_run: Path) -> None:
    notes = [audited(long_run, sampled=1).notes for _ in range(2)]
    nonces = [next(n for n in found if "nonce" in n).split()[-1] for found in notes]
    assert nonces[0] != nonces[1] and all(len(n) == 32 for n in nonces)


@pytest.mark.parametrize("count", [-1, 14, 1000])
def test_impossible_sample(long_run: Path, count: int) -> None:
    with pytest.raises(UsageError, match="want 1 to 13"):
        audited(long_run, sampled=count)


def test_forged_step_is_found_where_it_is_drawn(long_run: Path, tmp_path: Path) -> None:
    run = copied(long_run, tmp_path / "run")
    with forging(run) as forger:
        forger.change_checkpoint(7, lambda files: files["model"].update({"1.bias": one_ulp(files["model"]["1.bias"])}))
    outcomes = set()
    for nonce in map(str, range(8)):
        drawn = draw(run, 4, nonce)
        expected: tuple[int | None, str] = (None, "")
        if (8, 8) in drawn:
            expected = (8, "state")
        if (7, 7) in drawn:
            expected = (7, "state")
        found = finding(audited(run, sampled=4, nonce=nonce))
        assert found == expected or (found, expected) == ((8, "loss"), (8, "state"))
        outcomes.add(found)
    assert len(outcomes) > 1


def test_detection() -> None:
    assert detection(1, 0.5) == 0.5 and detection(3, 0.5) == 0.875 and detection(2, 0.1) == 1 - 0.9 * 0.9
    assert detection(0, 0.5) == 0.0 and detection(5, 0.0) == 0.0 and detection(1, 1.0) == 1.0


def test_verdict_says_the_odds(long_run: Path) -> None:
    verdict = audited(long_run, sampled=3, nonce="x")
    assert verdict.detection == {f"{q:.2f}": f"{1 - (1 - q) ** 3:.6f}" for q in SHARES}
    assert verdict.to_json()["detection"]["0.50"] == "0.875000"
    assert "87.5% if 50% of segments were bad" in str(verdict)
    assert audited(long_run).detection == {}


@pytest.mark.parametrize(
    ("steps", "replayed"),
    [((0, 0), [(0, 0)]), ((3, 3), [(3, 3)]), ((3, 4), [(3, 4)]), ((2, 5), [(2, 5)]), ((0, 6), [(0, 6)])],
)
def test_chosen_steps(steps: tuple[int, int], replayed: list[tuple[int, int]]) -> None:
    verdict = audited(honest(), steps=steps)
    assert finding(verdict) == (None, "")
    assert verdict.replayed == replayed


def test_chosen_segments_begin_at_the_checkpoint_before() -> None:
    everything = segments(open_run(honest()))
    assert everything == [Segment(-1, 0, 0), Segment(0, 1, 2), Segment(2, 3, 4), Segment(4, 5, 6)]
    assert chosen(everything, 4, 5) == [Segment(2, 4, 4), Segment(4, 5, 5)]


@pytest.mark.parametrize("steps", [(3, 2), (0, 7), (-1, 2), (7, 7)])
def test_impossible_steps(steps: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="want 0 <= A <= B <= 6"):
        audited(honest(), steps=steps)


def test_forged_step_outside_the_chosen_ones(run: Path) -> None:
    with forging(run) as forger:
        bits = forger.leaves[5]["metrics"]["loss"]
        forger.leaves[5]["metrics"]["loss"] = bits[:-1] + ("0" if bits[-1] != "0" else "1")
    assert finding(audited(run, steps=(0, 4))) == (None, "")
    assert finding(audited(run, steps=(4, 5))) == (5, "loss")


def test_difference_before_the_chosen_steps(run: Path) -> None:
    """On the way from the checkpoint to the steps chosen."""
    with forging(run) as forger:
        forger.leaves[3]["metrics"] = {}
    verdict = audited(run, steps=(4, 6))
    assert finding(verdict) == (3, "loss")
    assert verdict.replayed == [(3, 3)]


def test_processes_give_the_same_verdict(run: Path) -> None:
    one, two = (audited(honest(), jobs=jobs, key=KEY.public_key()).to_json() for jobs in (1, 2))
    assert one == two and one["result"] == "verified"
    with forging(run) as forger:
        forger.change_checkpoint(4, lambda files: files["model"].update({"1.bias": one_ulp(files["model"]["1.bias"])}))
        forger.leaves[6]["metrics"] = {}
    assert finding(audited(run, jobs=2)) == finding(audited(run)) == (4, "state")


def test_the_earliest_difference_stands() -> None:
    """Whatever the order in which segments are finished."""
    steps = {5: "loss", 2: "state", 4: "log"}
    verdict = audited(honest())
    for step, what in steps.items():
        verdict.refute(Refuted(step, what, "found"))
    assert finding(verdict) == (2, "state") and verdict.violations == 0
