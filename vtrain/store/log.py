"""The rounding log as Zarr v3: written in the background while training goes on. Reading is ``logread``'s.

The format is in :mod:`vtrain.store.logformat`. Each array is written once, in whole shards, by one thread; a segment is
built under a temporary name and renamed when it is durable, so that what has a segment's name is complete.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from vtrain.errors import StorageError, UsageError, VtrainError
from vtrain.store.atomic import commit_dir, remove_tree, storage_errors, temporary, write_bytes
from vtrain.store.layout import step_name
from vtrain.store.logcheck import discard_after, segments
from vtrain.store.logformat import OFFSETS, SPECS, ZSTD_LEVEL, ArraySpec, check_step, group_metadata, step_digest
from vtrain.store.logread import SegmentLog, read_segment
from vtrain.store.steplog import COLUMNS, StepLog

__all__ = ["LogWriter", "SegmentLog", "discard_after", "read_segment", "segments", "step_digest"]

_ROOT_METADATA = {"zarr_format": 3, "node_type": "group", "attributes": {}}


class _ArrayWriter:
    """Collects one array's bytes and writes them in whole shards."""

    def __init__(self, store: LocalStore, spec: ArraySpec) -> None:
        self._spec = spec
        self._pending = bytearray()
        self._rows = 0
        self._array = zarr.create_array(
            store,
            name=spec.name,
            shape=spec.extent(0),
            dtype=spec.dtype,
            chunks=spec.extent(spec.chunk),
            shards=spec.extent(spec.shard),
            filters=None,
            compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
            fill_value=0,
            # Otherwise a chunk of zeros looks like one that was deleted.
            config={"write_empty_chunks": True},
        )

    @property
    def rows(self) -> int:
        """Rows taken so far, written or not."""
        return self._rows + len(self._pending) // self._spec.row_bytes

    def add(self, data: bytes) -> None:
        """Take the next rows' little-endian bytes."""
        self._pending += data
        while len(self._pending) >= self._spec.shard * self._spec.row_bytes:
            self._write(self._spec.shard)

    def finish(self) -> None:
        """Write what is left, as the last shard."""
        if self._pending:
            self._write(len(self._pending) // self._spec.row_bytes)

    def _write(self, rows: int) -> None:
        size = rows * self._spec.row_bytes
        block = np.frombuffer(bytes(self._pending[:size]), self._spec.dtype).reshape(self._spec.extent(rows))
        del self._pending[:size]
        self._array.resize(self._spec.extent(self._rows + rows))
        self._array[self._rows : self._rows + rows] = block
        self._rows += rows


class _SegmentWriter:
    """Builds one segment under a temporary name."""

    def __init__(self, root_dir: Path, first: int) -> None:
        self._root = root_dir
        self._first = first
        self._scratch = temporary(root_dir / step_name(first))
        self._scratch.mkdir()
        store = LocalStore(self._scratch)
        try:
            self._arrays = {name: _ArrayWriter(store, spec) for name, spec in SPECS.items()}
        except BaseException:
            self.discard()
            raise

    def add(self, step: int, columns: dict[str, bytes]) -> None:
        for name, data in columns.items():
            self._arrays[name].add(data)
        ends = [self._arrays[name].rows for name in columns]
        self._arrays[OFFSETS.name].add(np.array([step, *ends], "<u8").tobytes())

    def discard(self) -> None:
        """Remove what was written; what can't be removed is left for :func:`discard_after`."""
        with suppress(VtrainError):
            remove_tree(self._scratch)

    def commit(self, last: int) -> None:
        for array in self._arrays.values():
            array.finish()
        write_bytes(self._scratch / "zarr.json", json.dumps(group_metadata(self._first, last)).encode())
        commit_dir(self._scratch, self._root / step_name(last))


@dataclass(frozen=True)
class _Step:
    number: int
    columns: dict[str, bytes]
    size: int


@dataclass(frozen=True)
class _End:
    number: int


class LogWriter:
    """Writes the rounding log of a run; one writer a run (:class:`vtrain.store.layout.WriterLock`).

    Steps follow each other without a gap; a segment ends at its last step. :meth:`append` hands over to a background
    thread; only :meth:`end_segment` acknowledges. Steps that no :meth:`end_segment` acknowledged are gone after a kill
    or an exit, as are the steps of the training itself since its last checkpoint. For use from one thread.

    Args:
        root_dir: the log (``log.zarr``); made where it is missing. Must have no incomplete segments
            (:func:`discard_after` removes them).
        max_bytes: bound on the bytes that wait for the background thread; beyond it :meth:`append` blocks.

    Raises:
        StorageError: the disk refuses.
    """

    def __init__(self, root_dir: Path, *, max_bytes: int = 256 * 1024 * 1024) -> None:
        self._root = root_dir
        self._max_bytes = max_bytes
        with storage_errors(root_dir):
            root_dir.mkdir(exist_ok=True)
            if not (root_dir / "zarr.json").exists():
                write_bytes(root_dir / "zarr.json", json.dumps(_ROOT_METADATA).encode())
        self._last: int | None = None
        self._open_steps = 0
        self._closed = False
        # Shared with the thread, under the condition's lock.
        self._changed = threading.Condition()
        self._items: deque[_Step | _End | None] = deque()
        self._waiting = 0
        self._ended = -1  # steps begin at 0
        self._error: StorageError | None = None
        self._segment: _SegmentWriter | None = None  # the thread's alone while it lives
        self._thread = threading.Thread(target=self._run, name="vtrain-log", daemon=True)
        self._thread.start()

    def append(self, step: int, log: StepLog) -> None:
        """Hand over the log of `step`; copies it, so that its arrays can be reused at once.

        Blocks only while more than ``max_bytes`` wait (a single larger step waits for an empty queue).

        Raises:
            UsageError: `step` does not follow the step before, or the writer is closed.
            LogError: `log` contradicts itself.
            StorageError: an earlier write failed: the disk is full, read-only or failing.
        """
        self._check_usable()
        if step < 0 or (self._last is not None and step != self._last + 1):
            raise UsageError(f"step {step}: expected {0 if self._last is None else self._last + 1}")
        check_step(log, f"step {step}")
        columns = {name: getattr(log, name).tobytes() for name in COLUMNS}
        size = sum(map(len, columns.values())) + OFFSETS.row_bytes
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._waiting or self._waiting + size <= self._max_bytes)
            self._raise_error()
            self._waiting += size
            self._items.append(_Step(step, columns, size))
            self._changed.notify_all()
        self._last = step
        self._open_steps += 1

    def end_segment(self, step: int) -> None:
        """End the segment at `step`, the last one appended; returns when the segment is durable.

        Raises:
            UsageError: `step` is not the last step appended, nothing was appended, or the writer is closed.
            StorageError: the disk is full, read-only or failing; earlier segments stay valid, this one does not exist.
        """
        self._check_usable()
        if step != self._last or not self._open_steps:
            raise UsageError(f"segment ends at step {step}; the last step appended is {self._last}")
        with self._changed:
            self._items.append(_End(step))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or self._ended == step)
            self._raise_error()
        self._open_steps = 0

    def close(self) -> None:
        """Stop the background thread. Harmless when closed before.

        Raises:
            UsageError: steps were appended that no :meth:`end_segment` acknowledged; :meth:`abort` gives them up.
            StorageError: an earlier write failed.
        """
        if self._closed:
            return
        if self._open_steps and self._error is None:
            raise UsageError(f"{self._open_steps} steps up to {self._last} are in no segment: end it or abort")
        error = self._error
        self.abort()
        if error is not None:
            raise error

    def abort(self) -> None:
        """Give up the steps since the last segment and stop; raises nothing. Harmless when closed before."""
        self._closed = True
        with self._changed:
            self._items.clear()
            self._items.append(None)
            self._changed.notify_all()
        self._thread.join()
        if self._segment is not None:
            self._segment.discard()
            self._segment = None

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _check_usable(self) -> None:
        if self._closed:
            raise UsageError(f"{self._root}: the log writer is closed")
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise StorageError(str(self._error)) from self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items)
                item = self._items.popleft()
            if item is None:
                return
            try:
                self._handle(item)
            except Exception as error:  # whatever it is, the training must learn of it
                with self._changed:
                    self._error = error if isinstance(error, StorageError) else StorageError(f"{self._root}: {error!r}")
                    self._error.__cause__ = error.__cause__ or error
                    self._changed.notify_all()
                return
            with self._changed:
                if isinstance(item, _Step):
                    self._waiting -= item.size
                else:
                    self._ended = item.number
                self._changed.notify_all()

    def _handle(self, item: _Step | _End) -> None:
        with storage_errors(self._root):
            if isinstance(item, _Step):
                if self._segment is None:
                    self._segment = _SegmentWriter(self._root, item.number)
                self._segment.add(item.number, item.columns)
            elif self._segment is not None:
                self._segment.commit(item.number)
                self._segment = None
