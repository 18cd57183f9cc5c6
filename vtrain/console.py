"""What commands share: the profile option, runs on stores, progress on stderr, tables on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from vtrain.children import replace
from vtrain.profiles import PROFILES, profile
from vtrain.store.address import Url, place


def _enter_profile(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and value != profile() and not ctx.resilient_parsing:
        replace("-m", "vtrain", *sys.argv[1:], profile=value)


profile_option = click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    callback=_enter_profile,
    expose_value=False,
    is_eager=True,
    help="Run under this arithmetic (instruction sets of torch's kernels), in a new process.",
)


class RunPath(click.ParamType):
    """A run or file: a local path, or a URL of any store that fsspec knows; becomes a ``Path`` or a ``Url``."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | Url:
        """See ``vtrain.store.address.place``."""
        return place(value) if isinstance(value, str) else value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Local paths; a store is not asked."""
        return click.Path().shell_complete(ctx, param, incomplete)


_DOWNLOAD = "vtrain.max_download"


def _keep_bound(ctx: click.Context, parameter: click.Parameter, value: int) -> None:
    ctx.meta[_DOWNLOAD] = value << 30


download_option = click.option(
    "--max-download",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="GIB",
    callback=_keep_bound,
    expose_value=False,
    help="Of a run at a URL, fetch at most this.",
)


def max_download() -> int:
    """What ``download_option`` was given, in bytes."""
    return int(click.get_current_context().meta[_DOWNLOAD])


def fetched(run: Path | Url) -> Path:
    """The directory of a run: itself, or for a URL a private copy that is removed when the command ends.

    Raises:
        VtrainError: see ``vtrain.store.remote.local_copy``.
    """
    from vtrain.store.remote import local_copy

    return click.get_current_context().with_resource(local_copy(run, max_download()))


@contextlib.contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr where that is a terminal; yields ``update(done, note)``."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, note="")

        def update(done: int, note: str) -> None:
            bar.update(task, completed=done, note=note)

        yield update


def _silent(done: int, note: str) -> None:
    """Nobody looks."""


def print_table(columns: list[tuple[str, bool]], rows: list[list[str]]) -> None:
    """A table on stdout; ``columns`` are (title, whether numbers)."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, number in columns:
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # not a terminal: as wide as it needs, so that every row is one line
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def printable(text: str, most: int = 4000) -> str:
    """Text for a terminal: what a run's author wrote into it must not move the cursor or colour lines."""
    kept = text if len(text) <= most else f"{text[:most]} ..."
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in kept)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import json

    click.echo(json.dumps(value, indent=2, sort_keys=True))
