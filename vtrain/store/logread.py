"""Reading the rounding log: Zarr v3 as hostile input, decoded a shard at a time from bytes that were checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from vtrain.errors import LogError, UsageError
from vtrain.store.logcheck import SegmentFiles, check_segment
from vtrain.store.logformat import OFFSETS, SPECS, ArraySpec, array_metadata, check_step, columns_digest
from vtrain.store.steplog import COLUMNS, SITE_COLUMNS, StepLog


class _ArrayReader:
    """Reads ranges of rows; keeps the last decoded shard, as steps are mostly read in order."""

    def __init__(self, files: SegmentFiles, spec: ArraySpec) -> None:
        self._files = files
        self._spec = spec
        self._number = -1
        self._shard = np.empty(0)

    def parts(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The rows, a shard's at a time."""
        size = self._spec.shard
        for number in range(start // size, self._spec.shards(stop)):
            yield self._decode(number)[max(start - number * size, 0) : stop - number * size]

    def read(self, start: int, stop: int) -> np.ndarray:
        parts = list(self.parts(start, stop))
        # A copy, so that a caller who keeps a step does not keep a shard.
        return np.concatenate(parts) if parts else np.empty(self._spec.extent(0), self._spec.dtype)

    def _decode(self, number: int) -> np.ndarray:
        if number == self._number:
            return self._shard
        name, rows = self._spec.name, self._files.shard_rows(self._spec.name, number)
        data = self._files.shard(name, number)
        # zarr sees our metadata and bytes that are checked, in memory: none of the trainer's metadata, paths or links.
        to_buffer = default_buffer_prototype().buffer.from_bytes
        metadata = json.dumps(array_metadata(self._spec, rows)).encode()
        store = MemoryStore({"zarr.json": to_buffer(metadata), self._spec.shard_key(0): to_buffer(data)})
        try:
            shard = np.asarray(zarr.open_array(store, mode="r")[:])
        except MemoryError:
            raise
        except Exception as error:  # zarr, numcodecs and crc32c each have their own
            where = self._files.where(f"{name}/{self._spec.shard_key(number)}")
            raise LogError(f"{where}: corrupt: {error}") from error
        self._shard, self._number = shard, number
        return shard


class SegmentLog:
    """A segment of the rounding log, checked; columns are decoded as steps are asked for. For use from one thread.

    Attributes:
        first: its first step.
        last: its last step, which names it.
    """

    def __init__(self, files: SegmentFiles) -> None:
        self.first, self.last = files.first, files.step
        self._where = files.where("")
        self._columns = {name: _ArrayReader(files, SPECS[name]) for name in COLUMNS}
        offsets = _ArrayReader(files, OFFSETS).read(0, files.rows[OFFSETS.name])
        if not np.array_equal(offsets[:, 0], np.arange(self.first, self.last + 1, dtype=np.uint64)):
            raise LogError(f"{self._where}: offsets are not of the steps {self.first} to {self.last}")
        self._ends = np.concatenate([np.zeros((1, len(COLUMNS)), np.uint64), offsets[:, 1:]])
        if np.any(self._ends[1:] < self._ends[:-1]) or np.any(self._ends[:, 0] % SITE_COLUMNS):
            raise LogError(f"{self._where}: offsets decrease, or divide a site")
        expected = [files.rows[name] for name in COLUMNS]
        if self._ends[-1].tolist() != expected:
            raise LogError(f"{self._where}: offsets end at {self._ends[-1].tolist()}; expected {expected}")

    def sizes(self, step: int) -> dict[str, int]:
        """Elements of each column of `step`, known without decoding any; ``sites`` has six a site.

        Raises:
            UsageError: `step` is not in the segment.
        """
        return {name: stop - start for name, (start, stop) in self._ranges(step).items()}

    def step(self, step: int) -> StepLog:
        """The log of `step`, in fresh arrays, whose memory :meth:`sizes` tells.

        Raises:
            UsageError: `step` is not in the segment.
            LogError: a shard is corrupt, or the step's columns contradict its sites.
            PathError: a shard became a link or special file.
            StorageError: the disk fails.
        """
        columns = {name: self._columns[name].read(*ends) for name, ends in self._ranges(step).items()}
        columns["sites"] = columns["sites"].reshape(-1, SITE_COLUMNS)
        log = StepLog(**columns)
        check_step(log, f"{self._where}: step {step}")
        return log

    def measure(self, step: int) -> tuple[bytes, int]:
        """The digest of `step` (as ``step_digest``) and its decisions, checked like :meth:`step`.

        Takes the memory of its sites and of a shard, whatever the sizes of its columns.

        Raises:
            UsageError, LogError, PathError, StorageError: as :meth:`step`.
        """
        ranges = self._ranges(step)
        sites = self._columns["sites"].read(*ranges["sites"]).reshape(-1, SITE_COLUMNS)
        # Only lengths are looked at in the other columns: one element stands for all.
        columns = {
            n: np.broadcast_to(np.zeros(1, COLUMNS[n]), (b - a,)) for n, (a, b) in ranges.items() if n != "sites"
        }
        check_step(StepLog(sites, **columns), f"{self._where}: step {step}")
        parts = {name: (part.tobytes() for part in self._columns[name].parts(*ends)) for name, ends in ranges.items()}
        digest = columns_digest((name, b - a, parts[name]) for name, (a, b) in ranges.items())
        return digest, int(sites[:, 3:5].sum())

    def _ranges(self, step: int) -> dict[str, tuple[int, int]]:
        if not self.first <= step <= self.last:
            raise UsageError(f"step {step}: the segment has {self.first} to {self.last}")
        starts, stops = (row.tolist() for row in self._ends[step - self.first :][:2])
        return {name: (start, stop) for name, start, stop in zip(COLUMNS, starts, stops, strict=True)}


def read_segment(root_dir: Path, step: int, *, max_bytes: int) -> SegmentLog:
    """Open the segment of the log `root_dir` that ends at `step`; hostile input, never modified.

    Args:
        root_dir: the log (``log.zarr``).
        step: the step that names the segment.
        max_bytes: bound on the segment before compression, in bytes; what the job implies.

    Raises:
        LogError: the segment is missing, incomplete, corrupt, larger than `max_bytes` or contradicts itself.
        VersionError: it has a version that this release does not read.
        PathError: a link, special or oversized file in it.
        StorageError: the disk fails.
    """
    return SegmentLog(check_segment(root_dir, step, max_bytes=max_bytes))
