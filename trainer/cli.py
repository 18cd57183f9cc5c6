"""The trainer's commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtrain.console import RunPath, download_option, max_download, profile_option, progress
from vtrain.store.address import Url

if TYPE_CHECKING:
    from vtrain.engine.loop import StepEnd

_file = click.Path(path_type=Path)


@click.command()
@click.argument("job", type=_file)
@click.option("--out", required=True, type=RunPath(), help="Run directory or URL; nothing may be there.")
@click.option("--key", type=_file, help="The trainer's private key; by default the user's own, made at the first run.")
@click.option("--rehearse", is_flag=True, help="Repeat the step behind each checkpoint from it, not only the first.")
@profile_option
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
    signer, folder = trainer_key(key), job.resolve().parent
    with publishing(out, say=_say) as (path, publish), progress("training", parsed.train.steps, tenths=True) as update:
        run(parsed, folder, path, signer, lambda done: update(done.step, _note(done.values)), publish, rehearse)
    click.echo(f"trained {parsed.train.steps} steps: {out}")


@click.command()
@click.argument("run", type=RunPath())
@click.option("--program-dir", type=_file, default=Path(), help="What the program's path is relative to.")
@click.option("--key", type=_file, help="The key that the run was begun with.")
@download_option
@profile_option
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
@click.option("--steps", type=click.IntRange(1, 1000), default=2, show_default=True, help="First steps to compare.")
@profile_option
def calibrate(job: Path, steps: int) -> None:
    """Measure, for the job in JOB, how far instruction sets and thread counts make results differ.

    Prints a TOML table for the job file: with it, adaptive thresholds are part of the job.

    \b
    Example:
      vtrain calibrate job.toml >> job.toml
    """
    from trainer.measure import measure

    found = measure(job, steps, lambda text: click.echo(text, err=True))
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
