"""A run published to a store while it is trained (protocol §3).

The run is written to a private spool directory, as any run, and published whenever its writer has acknowledged
something: the job at first, then log segments, checkpoints, programs, and last the transcript, whose signed head
acknowledges; the statement in the end. Only what is new or changed goes over the wire, each object as a whole. So
whatever a kill leaves on the store, its transcript is of things that are there, and ``vtrain resume`` goes on from it;
what lies beyond is removed then, and done again with the same bits.

On stores without atomic replacement (``ftp://``, ``sftp://``) a kill may tear the transcript; the run then goes on from
an earlier checkpoint, or from the start.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from vtrain.errors import BusyError, RunExistsError, StorageError, UsageError, VtrainError
from vtrain.store.address import Url
from vtrain.store.atomic import TEMPORARY, storage_errors
from vtrain.store.objects import Store, open_store
from vtrain.store.remote import MAX_DOWNLOAD, MAX_OBJECTS, THREADS, fetch, private_directory

# Seconds between a writer's signs of life, and without one after which it is taken for dead.
RENEW = 5.0
PATIENCE = 30.0
_LOCK = ".lock"
_MAX_LOCK_BYTES = 1024
# What is uploaded together, in this order. Before the last two the lock is checked.
_PHASES = (
    ("trainer.pub",), ("job.json",), ("run.json",), ("log.zarr",), ("checkpoints",), ("programs",), ("metrics.jsonl",),
    ("transcript.jsonl",), ("attestation.json",),
)  # fmt: skip
_ACKNOWLEDGE = ("transcript.jsonl", "attestation.json")

Stamp = tuple[int, int, int]


class StoreLock:
    """Keeps a second writer from a URL, as well as a store allows: an object with a random token, renewed by a thread.

    A writer that finds a lock waits :data:`PATIENCE` seconds. A lock that changes meanwhile is alive; one that does not
    was left by a killed writer, and is taken over. Each writer looks for its own token before it acknowledges.

    Not guaranteed: a writer that is suspended for longer than that, and goes on between its look at the lock and its
    upload, writes beside another one. Both then write the same job, but a store may end up with parts of both.
    ``vtrain verify`` tells. Where a store can't create an object only if there is none, two may begin at once.

    Args:
        store: where the run is.
        say: told that there is something to wait for.

    Raises:
        BusyError: on entry: somebody else writes this run.
        StorageError: on entry: the store refuses.
    """

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        self._store = store
        self._say = say
        self._token = secrets.token_hex(16).encode()
        self._count = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="vtrain-lock", daemon=True)

    def __enter__(self) -> StoreLock:
        there = self._store.read(_LOCK, _MAX_LOCK_BYTES)
        if there is not None:
            self._outwait(there)
        self._write(create=there is None)
        self.check()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        with suppress(VtrainError):  # one that stays is outwaited
            if self._mine():
                self._store.delete(_LOCK)

    def check(self) -> None:
        """Look whether the lock is still this writer's.

        Raises:
            BusyError: it is not.
        """
        if not self._mine():
            raise BusyError(f"{self._store.url}: another process has taken over this run; nothing more is written")

    def _mine(self) -> bool:
        return (self._store.read(_LOCK, _MAX_LOCK_BYTES) or b"").startswith(self._token)

    def _outwait(self, there: bytes) -> None:
        """Return when the lock's owner has been silent for long enough."""
        self._say(f"{self._store.url}: locked; waiting {PATIENCE:.0f} s for a sign of life of whoever writes there")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(min(RENEW, PATIENCE))
            now = self._store.read(_LOCK, _MAX_LOCK_BYTES)
            if now is None:
                return
            if now != there:
                raise BusyError(f"{self._store.url}: another process is writing this run")

    def _write(self, *, create: bool) -> None:
        self._count += 1
        self._store.write(_LOCK, b"%s %d\n" % (self._token, self._count), create=create)

    def _renew(self) -> None:
        while not self._end.wait(RENEW):
            with suppress(StorageError):  # the next one may get through; uploads fail loudly by themselves
                if not self._mine():
                    return
                self._write(create=False)


class Publisher:
    """Brings a store up to date with a spool directory, when called.

    Args:
        store: where to.
        spool: the run that is being written.
        lock: of this writer.
        there: names of the objects that the store has and the spool was copied from.
    """

    def __init__(self, store: Store, spool: Path, lock: StoreLock, there: list[str]) -> None:
        self._store = store
        self._spool = spool
        self._lock = lock
        now = _stamps(spool)
        # What is on the store: a file as it was then, or None where the spool's is another.
        self._published: dict[str, Stamp | None] = {name: now.get(name) for name in there}

    def __call__(self) -> None:
        """Upload what is new or changed; when it returns, the store holds what the spool's writer acknowledged.

        Raises:
            BusyError: another writer has taken over.
            StorageError: the store refuses; what it acknowledged before stays valid.
        """
        now = _stamps(self._spool)
        self._remove([name for name in self._published if name not in now])
        for phase in _PHASES:
            names = [n for n, stamp in now.items() if n.split("/")[0] in phase and self._published.get(n) != stamp]
            if not names:
                continue
            if phase[0] in _ACKNOWLEDGE:
                self._lock.check()
            self._each(lambda name: self._store.upload(self._spool / name, name), sorted(names))
            self._published |= {name: now[name] for name in names}

    def _remove(self, names: list[str]) -> None:
        """Remove what resuming has dropped."""
        if names:
            self._lock.check()
            self._each(self._store.delete, names)
        for name in names:
            del self._published[name]

    def _each(self, work: Callable[[str], None], names: list[str]) -> None:
        with ThreadPoolExecutor(min(THREADS, len(names)), thread_name_prefix="vtrain-publish") as pool:
            try:
                for _ in pool.map(work, names):
                    pass
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _stamps(spool: Path) -> dict[str, Stamp]:
    """Each file of the run by name, and what changes when it is written anew."""
    found: dict[str, Stamp] = {}
    for directory, _, files in os.walk(spool):
        for file in files:
            path = Path(directory, file)
            name = path.relative_to(spool).as_posix()
            if name == _LOCK or TEMPORARY in name:
                continue
            with storage_errors(path):
                status = path.stat()
            found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@contextmanager
def publishing(
    run: Path | Url,
    *,
    resume: bool = False,
    max_download: int = MAX_DOWNLOAD,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Where to write a run, and what to call after each acknowledgement; a local path is written to directly.

    Args:
        run: where the run is to be, or with ``resume`` is.
        resume: whether to go on with it.
        max_download: bound on the copy that is gone on from, in bytes.
        say: told that there is something to wait for.

    Raises:
        BusyError: another process writes there.
        RunExistsError: without ``resume``: something is there.
        UsageError: with ``resume``: no run is there.
        StorageError: the store refuses; or it is no run that :func:`vtrain.store.remote.fetch` takes.
        PathError: as that.
    """
    if isinstance(run, Path):
        yield run, _nothing
        return
    store = open_store(run)
    with StoreLock(store, say) as lock, private_directory() as directory:
        spool = directory / "run"
        names = _begun(store) if resume else _free(store)
        if resume:
            names = fetch(store, spool, max_download)
        yield spool, Publisher(store, spool, lock, names)


def _nothing() -> None:
    """A run on a local path is where it belongs."""


def _free(store: Store) -> list[str]:
    """What a writer that was stopped before it wrote the job may have left; nothing else is overwritten."""
    names = [found.name for found in store.walk(MAX_OBJECTS) if found.name != _LOCK]
    if names and names != ["trainer.pub"]:
        raise RunExistsError(f"{store.url}: exists; `vtrain resume` goes on with a run")
    return names


def _begun(store: Store) -> list[str]:
    names = [found.name for found in store.walk(MAX_OBJECTS)]
    if "job.json" not in names:
        raise UsageError(f"{store.url}: no run to resume")
    return names
