"""A run on a store, fetched for those who read runs in directories (protocol §3, §7.1).

Everything that a store sends is hostile. In this order:

1. The listing is bounded, and each name must be one that a run has: no other name is ever written here.
2. Each size must be within the bound for its name, their sum within the caller's bound and the free disk.
3. Each object is read up to the listed size. More, fewer, or other content than was listed is an error.
4. It gets its name when it is whole, in a private temporary directory, which is removed in the end.

Not checked: what the objects hold; the readers of a run in a directory do that.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path

from vtrain.commit.keys import MAX_KEY_FILE_BYTES
from vtrain.errors import PathError, StorageError, UsageError
from vtrain.store.address import Url
from vtrain.store.atomic import TEMPORARY, storage_errors, temporary
from vtrain.store.checkpoint import MAX_FILE_BYTES, MAX_META_BYTES
from vtrain.store.identity import MAX_BYTES as MAX_IDENTITY_BYTES
from vtrain.store.layout import parse_step
from vtrain.store.logformat import SPECS
from vtrain.store.objects import Found, Store, open_store
from vtrain.store.transcript import MAX_FILE_BYTES as MAX_TRANSCRIPT_BYTES

MAX_DOWNLOAD = 64 << 30
MAX_OBJECTS = 100_000
THREADS = 8
_MEBI = 1 << 20
# Those without an entry (the lock) are never fetched.
_TOP = {
    "job.json": _MEBI, "run.json": MAX_IDENTITY_BYTES, "attestation.json": _MEBI, "trainer.pub": MAX_KEY_FILE_BYTES,
    "metrics.jsonl": 256 * _MEBI, "transcript.jsonl": MAX_TRANSCRIPT_BYTES,
}  # fmt: skip
_PROGRAM = re.compile(r"[0-9a-f]{64}\.json", re.ASCII)
_MAX_PROGRAM_BYTES = 16 * _MEBI  # the writer's bound; its module imports zarr
_TENSORS = re.compile(r"[a-z][a-z0-9_]{0,63}\.safetensors", re.ASCII)
_SHARD = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_MAX_ZARR_BYTES = 16 * 1024
_MARK = re.compile(r"(programs|(log\.zarr|checkpoints)(/[0-9]{6,15}(/[a-z]{1,16}(/c)?)?)?)/", re.ASCII)


def max_bytes(name: str) -> int | None:
    """How large (bytes) the object with this name may be in a run; None for a name that no run has."""
    match name.split("/"):
        case [top]:
            return _TOP.get(top)
        case ["programs", file] if _PROGRAM.fullmatch(file):
            return _MAX_PROGRAM_BYTES
        case ["checkpoints", step, file] if parse_step(step) is not None:
            if file == "meta.json":
                return MAX_META_BYTES
            return MAX_FILE_BYTES if _TENSORS.fullmatch(file) else None
        case ["log.zarr", "zarr.json"]:
            return _MAX_ZARR_BYTES
        case ["log.zarr", step, *below] if parse_step(step) is not None:
            return _max_log_bytes(below)
    return None


def _max_log_bytes(below: list[str]) -> int | None:
    """The bound for a name within a segment of the log."""
    match below:
        case ["zarr.json"]:
            return _MAX_ZARR_BYTES
        case [array, "zarr.json"] if array in SPECS:
            return _MAX_ZARR_BYTES
        case [array, "c", number, *rest] if array in SPECS and _SHARD.fullmatch(number):
            spec = SPECS[array]
            return spec.max_shard_bytes if spec.shard_key(int(number)) == "/".join(["c", number, *rest]) else None
    return None


@contextmanager
def private_directory() -> Iterator[Path]:
    """A temporary directory of this user alone, removed in the end, also on an interrupt (not on ``kill -9``)."""
    made = Path(tempfile.mkdtemp(prefix="vtrain-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def local_copy(run: Path | Url, max_download: int = MAX_DOWNLOAD) -> Iterator[Path]:
    """The directory of a run: itself, where it is a local path; else a copy that lives as long as the body.

    Args:
        run: the run.
        max_download: bound on the copy, in bytes.

    Raises:
        PathError: a name that no run has, too many names, or a size beyond its bound.
        UsageError: no such run.
        StorageError: access denied, a store that fails, lies about a size, or changes meanwhile.
        UnsupportedError: the library for this kind of store is not installed.
    """
    if isinstance(run, Path):
        yield run
        return
    with private_directory() as directory:
        path = directory / "run"
        fetch(open_store(run), path, max_download)
        yield path


def fetch(store: Store, path: Path, max_download: int) -> list[str]:
    """Copy a run from a store into the new directory ``path``; the names of its objects.

    Raises:
        PathError, StorageError: as :func:`local_copy`.
    """
    wanted = _listed(store, max_download)
    if not wanted:
        raise UsageError(f"{store.url}: no such run: nothing is there")
    with storage_errors(path):
        free = shutil.disk_usage(path.parent).free
        total = sum(found.size for found in wanted)
        if total > free:
            raise StorageError(f"{store.url}: {total} bytes; {path.parent} has room for {free} (see TMPDIR)")
        for name in ("log.zarr", "checkpoints", "programs"):
            (path / name).mkdir(parents=True)
        for found in wanted:
            (path / found.name).parent.mkdir(parents=True, exist_ok=True)
    _download_all(store, wanted, path)
    return [found.name for found in wanted]


def _listed(store: Store, max_download: int) -> list[Found]:
    """The objects to fetch, whose names and sizes are those of a run."""
    wanted: dict[str, Found] = {}
    total = 0
    for found in store.walk(MAX_OBJECTS):
        if _passed_over(found):
            continue
        bound = max_bytes(found.name)
        if bound is None or found.name in wanted:
            raise PathError(f"{store.url}: unexpected name {found.name[:200]!r} in a run")
        if found.size > bound:
            raise PathError(f"{store.url}/{found.name}: {found.size} bytes; expected at most {bound}")
        total += found.size
        if total > max_download:
            raise PathError(f"{store.url}: more than {max_download} bytes; --max-download sets the bound")
        wanted[found.name] = found
    return list(wanted.values())


def _passed_over(found: Found) -> bool:
    """Whether it is no part of the run: the lock, what a killed writer left, or the empty mark of a directory."""
    if found.name == ".lock" or TEMPORARY in found.name:
        return True
    return found.size == 0 and _MARK.fullmatch(found.name) is not None


def _download_all(store: Store, wanted: list[Found], path: Path) -> None:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="vtrain-fetch") as pool:
        try:
            tasks = [pool.submit(_download, store, found, path / found.name) for found in wanted]
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:  # an error or an interrupt: the others have nothing to go on for
            store.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            store.stop.clear()


def _download(store: Store, found: Found, path: Path) -> None:
    """One object, of exactly the listed size."""
    scratch = temporary(path)
    size = 0
    with storage_errors(path), open(scratch, "xb") as handle, closing(store.chunks(found)) as parts:
        for data in parts:
            size += len(data)
            if size > found.size:
                raise StorageError(f"{store.url}/{found.name}: more than the {found.size} bytes that the store listed")
            if store.stop.is_set():
                raise StorageError(f"{store.url}: reading was stopped")  # another object's error is the one to tell
            handle.write(data)
    if size != found.size:
        raise StorageError(f"{store.url}/{found.name}: {size} bytes; the store listed {found.size}")
    os.replace(scratch, path)
