"""``vtrain report``: a page for people about a run, and about a verdict on it."""

from __future__ import annotations

from pathlib import Path

import click

from auditor.options import file_path
from vtrain.console import RunPath, check_output, download_option, fetched, progress
from vtrain.errors import UsageError
from vtrain.store.address import Url


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--verdict", type=RunPath(), help="A signed verdict on this run, as `vtrain audit --verdict` writes it.")
@click.option("--out", type=file_path, default=Path("report.html"), show_default=True, help="Write the page here.")
@click.option("--trainer-key", type=file_path, help="The trainer's public key, if you know it.")
@click.option("--auditor-key", type=file_path, help="The public key that must have signed the verdict.")
def report(
    run: Path | Url, verdict: Path | Url | None, out: Path, trainer_key: Path | None, auditor_key: Path | None
) -> None:
    """Check RUN as `vtrain verify` does, and write one offline HTML page about it. Needs no torch.

    \b
    Examples:
      vtrain report runs/mine --trainer-key trainer.key.pub
      vtrain report runs/mine --verdict verdict.json --auditor-key auditor.key.pub --out mine.html
    """
    if auditor_key is not None and verdict is None:
        raise UsageError("--auditor-key says who signed the --verdict; there is none")
    from auditor.report.page import make_report
    from vtrain.commit import keys
    from vtrain.store.atomic import write_bytes
    from vtrain.store.objects import inside

    if inside(out, run):
        raise UsageError(f"{out}: is inside the run, which is never modified")
    check_output(out)
    theirs, auditors = (None if k is None else keys.load_public(k) for k in (trainer_key, auditor_key))
    with progress("reading") as update:
        page = make_report(fetched(run), verdict, theirs, auditors, lambda step, last: update(step, "", last))
    write_bytes(out, page.encode())
    click.echo(f"wrote {out}")
