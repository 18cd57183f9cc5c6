"""``vtrain demo``: the whole path on this machine, each step a process of its own."""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import click

from vtrain import children
from vtrain.errors import UsageError


def _call(*arguments: str) -> int:
    click.echo(f"\n$ vtrain {' '.join(arguments)}")
    sys.stdout.flush()
    return children.run("-m", "vtrain", *arguments).returncode


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Work here, and keep it.")
def demo(folder: Path | None) -> None:
    """Train a language model, audit it under other arithmetic, change one thing, and audit again.

    \b
    Example:
      vtrain demo --dir /tmp/demo
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="vtrain-demo-") as made:
            sys.exit(_demo(Path(made)))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is no empty directory")
    folder.mkdir(parents=True, exist_ok=True)
    sys.exit(_demo(folder))


def _demo(folder: Path) -> int:
    job, key, run, copy = (folder / name for name in ("job.toml", "trainer.key", "run", "forged"))
    job.write_text(files("vtrain.demo").joinpath("job.toml").read_text(encoding="utf-8"), encoding="utf-8")
    if _call("keygen", str(key)) or _call("train", str(job), "--out", str(run), "--key", str(key)):
        return 1
    pinned = ["--job", str(job), "--trainer-key", f"{key}.pub", "--profile", "baseline"]
    if _call("audit", str(run), *pinned):
        return 1
    click.echo(
        "\nNow the trainer moves one weight of the last checkpoint by one unit in the last place, and signs again."
    )
    _forge(run, copy, key)
    if _call("verify", str(copy), "--trainer-key", f"{key}.pub"):
        return 1
    caught = _call("audit", str(copy), *pinned) == 1
    click.echo("\nThe audit caught it." if caught else "\nThe audit did NOT catch it.")
    return 0 if caught else 1


def _forge(run: Path, copy: Path, key: Path) -> None:
    from vtrain.commit import keys
    from vtrain.demo.forger import Files, Forger, one_ulp

    shutil.copytree(run, copy)
    forger = Forger(copy, keys.load_private(key))

    def nudge(tensors: Files) -> None:
        name = next(iter(sorted(tensors["model"])))
        tensors["model"][name] = one_ulp(tensors["model"][name])

    forger.change_checkpoint(len(forger.leaves) - 1, nudge)
    forger.sign()
