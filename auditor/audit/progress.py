"""What an audit has found so far, in a file from which it goes on after being killed (protocol §7). Imports no torch.

JSON Lines, appended to and never changed: a header, then a line for each finished segment, in any order. Each line is
canonical JSON of ``value`` and the ``sha256`` of its canonical text, and durable before the audit goes on. A kill may
tear the last line; it is recognised by its missing newline or its digest, dropped, and the segment replayed again.

The header names the run (job digest, last head), the request (steps or sample, nonce, keys) and the auditor's
environment. What was found under another one is not taken over. The file decides the verdict, so it must be as safe
from the trainer as the auditor's key is; the digests find accidents, not forgery.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from auditor.evidence.segments import Segment
from auditor.verdict.freedom import Histogram, Tally
from vtrain.errors import BusyError, MalformedRunError, PathError, ProgressError, UsageError
from vtrain.store import canonical
from vtrain.store.atomic import fsync_dir, storage_errors
from vtrain.store.layout import safe_open

if TYPE_CHECKING:
    from auditor.audit.segment import Found

FORMAT = "vtrain-audit-progress-v3"
MAX_FILE_BYTES = 4 << 30
_BEGIN = b'{"sha256":"'


class Progress:
    """An open progress file, held by one audit at a time; a context manager.

    Args:
        path: the file, made where it is missing; its directory must exist.

    Attributes:
        header: what the file was begun for; None in a new one.
        found: what was found in each finished segment, as ``to_json`` gives it.

    Raises:
        ProgressError: a line that is no torn last one is damaged, or the file is no progress file.
        BusyError: another audit writes it.
        StorageError: the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: dict[str, Any] | None = None
        self.found: dict[Segment, dict[str, Any]] = {}
        with storage_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
        try:
            self._lock()
            self._size = self._read()
            with storage_errors(path):
                os.ftruncate(self._descriptor, self._size)  # a torn line must not become a part of the next one
        except BaseException:
            os.close(self._descriptor)
            raise

    def _lock(self) -> None:
        with storage_errors(self._path):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"{self._path}: another audit is writing this file") from error

    def _read(self) -> int:
        """Take in the whole lines; the bytes that they take."""
        try:
            opened = safe_open(self._path.parent, self._path.name, max_bytes=MAX_FILE_BYTES)
            with opened as handle, storage_errors(self._path):
                lines = handle.read().splitlines(keepends=True)
        except PathError as error:
            raise ProgressError(str(error)) from error
        size = 0
        for number, line in enumerate(lines, 1):
            try:
                self._parse(_opened(line))
            except (MalformedRunError, UsageError, KeyError, TypeError, ValueError) as error:
                if number == len(lines) and (number > 1 or _is_torn_header(line)):
                    break
                raise ProgressError(f"{self._path}: line {number}: damaged, or no progress of an audit") from error
            size += len(line)
        return size

    def _parse(self, value: dict[str, Any]) -> None:
        if self.header is None:
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']!r}; this release reads {FORMAT}")
            self.header = value
        else:
            start, first, last = (int(n) for n in value["segment"])
            self.found[Segment(start, first, last)] = value

    def begin(self, header: dict[str, Any]) -> None:
        """Write the header of a new file, or compare that of an old one.

        Raises:
            ProgressError: it is of another run, request or machine; says what differs.
            StorageError: the disk refuses.
        """
        header = {"format": FORMAT, **header}
        if self.header is None:
            self._append(header)
            fsync_dir(self._path.absolute().parent)
            self.header = header
            return
        differ = list(canonical.differences(self.header, header))
        if differ:
            what = "; ".join(
                f"{'.'.join(k)} was {a[:80] or 'missing'}, is {b[:80] or 'missing'}" for k, a, b in differ[:5]
            )
            raise ProgressError(f"{self._path}: was begun for another audit: {what}")

    def add(self, found: Found) -> None:
        """Append what was found in a segment; durable when this returns. A failed write leaves no part of it.

        Raises:
            StorageError: the disk is full, read-only or failing; the lines before stay valid.
        """
        value = to_json(found)
        self._append(value)
        self.found[found.segment] = value

    def _append(self, value: dict[str, Any]) -> None:
        line = _line(value)
        with storage_errors(self._path):
            try:
                view = memoryview(line)
                while view:  # a full disk first takes a part of the data without an error
                    view = view[os.write(self._descriptor, view) :]
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _is_torn_header(line: bytes) -> bool:
    """Whether a file of this one line was begun by an audit: a file of something else must not be emptied."""
    return b"\n" not in line and (line.startswith(_BEGIN) or _BEGIN.startswith(line) or not line.strip(b"\0"))


def _line(value: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(canonical.dumps(value)).hexdigest()
    return canonical.dumps({"sha256": digest, "value": value}) + b"\n"


def _opened(line: bytes) -> dict[str, Any]:
    value = canonical.loads(line[:-1], where="line")
    if line != _line(value["value"]):
        raise ValueError("another SHA-256, or no newline")
    return dict(value["value"])


def to_json(found: Found) -> dict[str, Any]:
    """What was found in a segment, as canonical JSON can hold it: integers, and the bits of floats."""
    counts = found.counts
    return {
        "segment": [found.segment.start, found.segment.first, found.segment.last],
        "counts": {
            "steps": counts.steps, "canonical": counts.canonical, "entries": counts.entries,
            "corrections": counts.corrections,
        },
        "bySteps": [[step, count] for step, count in sorted(counts.by_step.items())],
        "settled": counts.freedom.settled,
        "repaired": _sparse(counts.freedom.repaired),
        "freedom": {key: _tally_to_json(tally) for key, tally in counts.freedom.tallies.items()},
        "difference": None if found.difference is None else list(found.difference),
        "repairs": found.repairs,
        "dispute": found.dispute,
    }  # fmt: skip


def from_json(value: dict[str, Any]) -> Found:
    """The inverse of ``to_json``.

    Raises:
        ProgressError: it is no such value.
    """
    from auditor.audit.segment import Found
    from auditor.verdict.counts import Counts

    try:
        start, first, last = value["segment"]
        counts = Counts(**value["counts"])
        counts.by_step = {step: count for step, count in value["bySteps"]}
        counts.freedom.settled = value["settled"]
        _fill(counts.freedom.repaired, value["repaired"])
        counts.freedom.tallies = {key: _tally_from_json(tally) for key, tally in value["freedom"].items()}
        difference = None if value["difference"] is None else tuple(value["difference"])
        return Found(Segment(start, first, last), counts, difference, value["repairs"], value["dispute"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ProgressError(f"progress: a segment is not as this release writes it: {error}") from error


_HISTOGRAMS = ("sides", "extents", "differences")


def _tally_to_json(tally: Tally) -> dict[str, Any]:
    """Histograms as pairs (bin, count) of the bins that are not empty."""
    made: dict[str, Any] = {"entries": tally.entries, "departures": tally.departures, "unit": tally.unit.hex()}
    return {**made, **{name: _sparse(getattr(tally, name)) for name in _HISTOGRAMS}}


def _tally_from_json(value: dict[str, Any]) -> Tally:
    tally = Tally(entries=value["entries"], departures=value["departures"], unit=float.fromhex(value["unit"]))
    for name in _HISTOGRAMS:
        _fill(getattr(tally, name), value[name])
    return tally


def _sparse(counted: Histogram) -> list[list[int]]:
    return [[int(i), int(counted[i])] for i in counted.nonzero()[0]]


def _fill(counted: Histogram, pairs: list[list[int]]) -> None:
    for place, count in pairs:
        counted[place] = count
