"""Experiments are found by their folders, have jobs that vtrain takes, and figures with sources."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from experiments import FOLDER, load, names
from experiments.paper_scale.experiment import JOBS, job_text
from vtrain import children
from vtrain.job import parse

ROOT = Path(__file__).parents[2]


def test_every_folder_is_an_experiment() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {*names()} and folders


@pytest.mark.parametrize("name", names())
def test_what_an_experiment_says(name: str) -> None:
    experiment = load(name)
    assert experiment.title and callable(experiment.main)
    for figure in experiment.figures:
        assert figure.name and figure.value and figure.source and figure.differs
    for path in (FOLDER / name).glob("*.toml"):
        if path.name != "expected.toml":
            parse(tomllib.loads(path.read_text()), path.name)


def ran(*arguments: str) -> tuple[int, str]:
    done = children.run("-m", "experiments", *arguments, folder=ROOT, capture_output=True)
    return done.returncode, done.stdout + done.stderr


def test_the_list() -> None:
    code, said = ran()
    assert code == 0 and [line.split()[0] for line in said.splitlines()] == names()
    code, said = ran("nothing")
    assert code == 1 and "no experiment 'nothing'; there are" in said


@pytest.mark.parametrize("name", JOBS)
def test_jobs_of_the_paper_s_scale(name: str) -> None:
    job = parse(tomllib.loads(job_text(name, 7, "off")), "job")
    assert (job.train.steps, job.policy.threshold) == (7, "off")
    assert parse(tomllib.loads(job_text(name, 20, "certified")), "job").train.checkpoint_every == 10
