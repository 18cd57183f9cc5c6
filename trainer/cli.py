"""The trainer's commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtrain.console import RunPath, download_option, machine_options, max_download, print_table, progress
from vtrain.errors import UsageError
from vtrain.store.address import Url

if TYPE_CHECKING:
    from vtrain.engine.loops.loop import StepEnd

_file = click.Path(path_type=Path)


@click.command()
@click.argument("job", type=_file)
@click.option("--out", required=True, type=RunPath(), help="Run directory or URL; nothing may be there.")
@click.option("--key", type=_file, help="The trainer's private key; by default the user's own, made at the first run.")
@click.option("--rehearse", is_flag=True, help="Repeat the step behind each checkpoint from it, not only the first.")
@machine_options
def train(job: Path, out: Path | Url, key: Path | None, rehearse: bool) -> None:
    """Train the job in the TOML file JOB and record the run.

    A run at a URL is written to a temporary directory and published at each checkpoint.

    \b
    Examples:
      vtrain train job.toml --out runs/mine
      vtrain train job.toml --out s3://bucket/mine
    """
    from trainer.keys import trainer_key
    from trainer.train import train as run
    from vtrain.job import load
    from vtrain.store.publish import publishing

    parsed = load(job)
    signer, folder, notes = trainer_key(key), job.resolve().parent, list[str]()
    with publishing(out, say=_say) as (path, publish), progress("training", parsed.train.steps, tenths=True) as update:
        run(
            parsed,
            folder,
            path,
            signer,
            lambda done: update(done.step, _note(done.values)),
            publish,
            rehearse,
            notes.append,
        )
    click.echo(f"trained {parsed.train.steps} steps: {out}")
    for note in notes:
        click.echo(f"note: {note}", err=True)


@click.command()
@click.argument("run", type=RunPath())
@click.option("--program-dir", type=_file, default=Path(), help="What the program's path is relative to.")
@click.option("--key", type=_file, help="The key that the run was begun with.")
@download_option
@machine_options
def resume(run: Path | Url, program_dir: Path, key: Path | None) -> None:
    """Go on with RUN from its last complete checkpoint, to the same bits as if it had never stopped.

    \b
    Example:
      vtrain resume runs/mine
    """
    from trainer.keys import trainer_key
    from trainer.train import resume as go_on
    from vtrain.store.publish import publishing

    signer = trainer_key(key)
    going_on = publishing(run, resume=True, max_download=max_download(), say=_say)
    with going_on as (path, publish), progress("training", tenths=True) as update:

        def on_step(done: StepEnd) -> None:
            update(done.step, _note(done.values))

        go_on(path, program_dir, signer, on_step, publish, lambda steps: update(0, "", steps))
    click.echo(f"finished: {run}")


@click.command()
@click.argument("job", type=_file)
@click.option(
    "--steps", type=click.IntRange(1, 1000), default=2, show_default=True, help="Steps to measure or compare."
)
@click.option("--write", is_flag=True, help="Write the cheapest policy into JOB.")
@click.option("--thresholds", is_flag=True, help="Print adaptive thresholds for JOB instead of costs.")
@machine_options
def calibrate(job: Path, steps: int, write: bool, thresholds: bool) -> None:
    """Train the first steps of the job in JOB under each policy, and say what each costs on this machine.

    With --thresholds, measure how far instruction sets and thread counts make its results differ, and print a TOML
    table for the job file: with it, adaptive thresholds are part of the job.

    \b
    Examples:
      vtrain calibrate job.toml
      vtrain calibrate job.toml --write
      vtrain calibrate job.toml --thresholds >> job.toml
    """
    if write and thresholds:
        raise UsageError("--write writes a policy, and --thresholds prints a table: want one of them")
    if thresholds:
        _print_thresholds(job, steps)
        return
    from trainer import costs
    from vtrain.job import load

    found = costs.measure_costs(load(job), job.resolve().parent, steps, lambda text: _say(f"measuring {text}"))
    click.echo(f"a step on {costs.threads()}; bytes of log before compression")
    print_table(
        [
            ("policy", False),
            ("seconds", True),
            ("times plain", True),
            ("log", True),
            ("operations", True),
            ("kernels", True),
        ],
        costs.table(found),
    )
    if note := costs.integer_note(found):
        click.echo(note)
    chosen = costs.choice(found)
    if write:
        costs.write_choice(job, chosen.policy)
        click.echo(f"wrote into {job}: {chosen.name}")
    else:
        click.echo(f"cheapest: {chosen.name}; --write writes it into {job}")


def _print_thresholds(job: Path, steps: int) -> None:
    from trainer.measure import measure

    found = measure(job, steps, _say)
    click.echo("[policy.calibration]")
    for name, value in found.items():
        click.echo(f'"{name}" = "{value.hex()}"')


@click.command()
@click.argument("path", type=_file)
def keygen(path: Path) -> None:
    """Make an Ed25519 key: PATH (private, readable by its owner only) and PATH.pub.

    \b
    Example:
      vtrain keygen trainer.key
    """
    from vtrain.commit import keys
    from vtrain.errors import KeyFileError
    from vtrain.store.atomic import write_bytes

    public = path.with_name(f"{path.name}.pub")
    if public.exists():
        raise KeyFileError(f"{public} exists and is not overwritten")
    key = keys.generate()
    keys.save_private(path, key)
    write_bytes(public, keys.public_text(key).encode())
    click.echo(f"{path} and {public}: key {keys.key_id(key.public_key())}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _note(values: dict[str, float]) -> str:
    return f"loss {values['loss']:.4f}" if "loss" in values else ""
