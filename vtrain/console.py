"""What commands share: the profile option, runs on stores, progress on stderr, tables on stdout."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import click

from vtrain.children import replace
from vtrain.errors import UsageError
from vtrain.profiles import DEVICE, PROFILES, profile
from vtrain.store.address import Url, place


def _enter_profile(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and value != profile() and not ctx.resilient_parsing:
        replace("-m", "vtrain", *sys.argv[1:], profile=value)


def _choose_device(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        os.environ[DEVICE] = value  # for the processes that this one starts, too


_profile_option = click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    callback=_enter_profile,
    expose_value=False,
    is_eager=True,
    help="Run under this arithmetic (instruction sets of torch's kernels), in a new process.",
)
_device_option = click.option(
    "--device",
    callback=_choose_device,
    expose_value=False,
    is_eager=True,
    help="Where jobs run, such as cuda or cuda:1; cpu if not given. The bits are the same.",
)


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--profile`` and ``--device``: what computes, which no bit depends on."""
    return _profile_option(_device_option(command))


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


def check_output(path: Path | Url | None) -> None:
    """Refuse a file that can't be written, before anything that takes long is done for it.

    Raises:
        UsageError: it is a directory, or is to lie in what is none.
    """
    if isinstance(path, Path):
        if path.is_dir():
            raise UsageError(f"{path}: is a directory; want a file's name")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no directory {path.parent}")


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
        UsageError: no such run.
        VtrainError: see ``vtrain.store.remote.local_copy``.
    """
    from vtrain.store.layout import require_run
    from vtrain.store.remote import local_copy

    if isinstance(run, Path):
        require_run(run)
    return click.get_current_context().with_resource(local_copy(run, max_download()))


class Update(Protocol):
    """What a bar hears."""

    def __call__(self, done: int, note: str = "", total: int | None = None) -> None:
        """So much is done; what is to be said beside it; of how much, once that is known."""


@contextlib.contextmanager
def progress(label: str, total: int | None = None, tenths: bool = False) -> Iterator[Update]:
    """A bar on stderr, and where that is no terminal a line now and then (``Lines``)."""
    if not sys.stderr.isatty():
        yield Lines(label, total, tenths)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, note="")

        def update(done: int, note: str = "", total: int | None = None) -> None:
            if total is not None:
                bar.update(task, total=total)
            bar.update(task, completed=done, note=note)

        yield update


class Lines:
    """Progress in a file, such as a batch job's log: ``auditing 12/25, step 11, 0:00:07 left``.

    A line after every 30 s at least; of training and audits also at each tenth of the way, at most one a second, and
    one at the end.

    Args:
        label: what is being done.
        total: of how much; None until an update says so.
        tenths: whether each tenth of the way is told.
        clock: the time in seconds.
    """

    _LEAST, _MOST = 1.0, 30.0

    def __init__(
        self, label: str, total: int | None, tenths: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._label, self._total, self._told, self._clock = label, total, tenths, clock
        self._begun = self._said = clock()
        self._first: int | None = None  # what was done when the first update came: a resumed run begins in the middle
        self._tenths = 0

    def __call__(self, done: int, note: str = "", total: int | None = None) -> None:
        """See ``Update``."""
        self._total = self._total if total is None else total
        if self._first is None and done:
            self._first = done - 1
        now, tenths = self._clock(), 10 * done // self._total if self._total else 0
        further = self._told and tenths > self._tenths and now - self._said >= self._LEAST
        if done and (further or now - self._said >= self._MOST or (self._told and done == self._total)):
            self._said, self._tenths = now, tenths
            parts = [f"{self._label} {done}/{self._total or '?'}", note, self._left(done, now)]
            click.echo(", ".join(part for part in parts if part), err=True)

    def _left(self, done: int, now: float) -> str:
        if self._first is None or not self._total or not self._first < done < self._total:
            return ""
        seconds = (now - self._begun) / (done - self._first) * (self._total - done)
        return f"{datetime.timedelta(seconds=round(seconds))} left"


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
