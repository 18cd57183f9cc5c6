"""``vtrain calibrate JOB``: what policies cost, and the choice written into the job file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from trainer.costs import Cost, choice, integer_note, measure_costs, table, write_choice
from vtrain.errors import JobError, ProgramError
from vtrain.job import load, parse

JOB = """# mine
[program]
entry = "vtrain.programs.mlp:perceptron"
config = { inputs = 192, hidden = 16 }
[data]
name = "random-images"
config = { n = 64, shape = [3, 8, 8] }
[train]
steps = 6
batch_size = 8
[optimizer]
name = "sgd"
lr = 0.1
"""


def test_each_policy_is_measured() -> None:
    said: list[str] = []
    found = measure_costs(parse(tomllib.loads(JOB), "job"), Path(), 1, said.append)
    assert [cost.name for cost in found] == said
    assert found[0].name == "plain PyTorch" and found[0].bytes == 0
    by_name = {cost.name: cost for cost in found[1:]}
    assert len(by_name) == 5 and not any(cost.why for cost in found) and min(cost.seconds for cost in found) > 0
    assert by_name['matmul = "chain"'].bytes < by_name['matmul = "logged"'].bytes
    assert by_name['matmul = "integer"'].bytes == by_name['matmul = "chain"'].bytes
    assert integer_note(found).startswith('matmul = "integer" multiplies by ') and integer_note(found[:3]) == ""
    assert [len(row) for row in table(found)] == [6] * 6
    chain = by_name['matmul = "chain"']
    assert list(chain.launches) == ["cpu"] and 0 < chain.launches["cpu"] < chain.operations
    assert table(found)[0][4:] == ["-", "-"]


def test_a_policy_that_can_not_be_used_is_told() -> None:
    row = table([Cost({}, 1.0), Cost({"matmul": "chain"}, why="not here")])[1]
    assert row == ['matmul = "chain"', "-", "-", "not here", "-", "-"]


def test_a_job_that_can_not_be_trained(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("def make():\n    raise ValueError('in make')\n")
    text = JOB.replace("vtrain.programs.mlp:perceptron", "p.py:make").replace(
        "config = { inputs = 192, hidden = 16 }", ""
    )
    with pytest.raises(ProgramError, match=r"ValueError: in make \(.*p.py:2 in make"):
        measure_costs(parse(tomllib.loads(text), "job"), tmp_path, 1, lambda text: None)


def test_the_quickest_is_chosen_and_of_the_quick_the_one_that_logs_least() -> None:
    logged, chain = {"matmul": "logged"}, {"matmul": "chain"}
    assert choice([Cost({}, 0.1), Cost(logged, 1.0, 9), Cost(chain, 1.04, 0)]).policy == chain
    assert choice([Cost({}, 0.1), Cost(logged, 1.0, 9), Cost(chain, 1.5, 0)]).policy == logged
    assert choice([Cost({}, 0.1), Cost(logged, why="no"), Cost(chain, 9.0, 0)]).policy == chain


WRITES = {
    "no table": ("", '[policy]\nmatmul = "chain"\n'),
    "a table": ('[policy]  # mine\nscalar_ulps = 2\n', '[policy]  # mine\nmatmul = "chain"\nscalar_ulps = 2\n'),
    "the key": (
        '[policy]\nmatmul = "logged"  # slow\nscalar_ulps = 2\n', '[policy]\nmatmul = "chain"\nscalar_ulps = 2\n'
    ),
    "a table in the middle": (
        '[policy]\n[policy.calibration]\n"mm:2^3:float32" = "0x1p-24"\n[schedule]\nname = "cosine"\n',
        '[policy]\nmatmul = "chain"\n[policy.calibration]\n"mm:2^3:float32" = "0x1p-24"\n[schedule]\nname = "cosine"\n',
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITES)
def test_the_choice_is_written_and_nothing_else_changed(tmp_path: Path, case: str) -> None:
    before, after = WRITES[case]
    path = tmp_path / "job.toml"
    path.write_text(JOB + before)
    write_choice(path, {"matmul": "chain"})
    assert path.read_text() == JOB + after
    assert load(path).policy.matmul == "chain"


@pytest.mark.parametrize(
    "policy", ["policy = { scalar_ulps = 2 }\n", "policy.scalar_ulps = 2\n", 'policy.matmul = "logged"\n']
)
def test_a_policy_written_otherwise_is_left_alone(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(policy + JOB)
    with pytest.raises(JobError, match='write there yourself: matmul = "chain"'):
        write_choice(path, {"matmul": "chain"})
    assert path.read_text() == policy + JOB
