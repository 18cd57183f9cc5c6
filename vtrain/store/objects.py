"""Stores of objects behind URLs (``s3://bucket/run``, through fsspec): the few operations that a run needs of one.

What a store says is hostile input: names, sizes and content are bounded by whoever asks, and messages carry neither a
store's words nor credentials. Nothing here is imported from fsspec until a URL is opened.

Limits: S3 is asked page by page and streamed. Other stores list a directory at once and in memory, as fsspec does, and
their reads are as large as their library makes them. No library bounds a single HTTP response's headers or page.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtrain.errors import BusyError, PathError, StorageError, UnsupportedError, UsageError, VtrainError
from vtrain.store.address import Url
from vtrain.store.atomic import write_bytes
from vtrain.store.layout import TOP_LEVEL

CHUNK = 1 << 20
# Have real directories, which must be there before a file.
_DIRECTORIES = {"arrow_hdfs", "dbfs", "ftp", "hdfs", "sftp", "smb", "ssh", "webdav", "webhdfs"}
# What tells one content of a name from another, where a store gives it.
_TAGS = ("ETag", "etag", "md5", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
_CODE = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)
_MAX_DEPTH = 6
_PART = 16 << 20
_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Found:
    """An object that a store lists.

    Attributes:
        name: below the run, with ``/``.
        size: bytes, as the store says.
        tag: what changes with the content, as far as the store tells.
    """

    name: str
    size: int
    tag: dict[str, Any] = field(default_factory=dict)


class Store:
    """What lies under one URL, through fsspec's general interface.

    Args:
        url: the address.
        fs: the fsspec file system.
        root: the address within it.

    Attributes:
        stop: when set, reads in other threads end with an error; at once on S3, elsewhere when the library lets them.
    """

    def __init__(self, url: Url, fs: Any, root: str) -> None:
        self.url = url
        self._fs = fs
        self._root = root
        self.stop = threading.Event()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def errors(self, name: str = "") -> Iterator[None]:
        """Turn whatever a store's library raises into a :class:`StorageError` that names the object."""
        where = f"{self.url}/{name}" if name else f"{self.url}"
        try:
            yield
        except VtrainError:
            raise
        except FileNotFoundError as error:
            raise StorageError(f"{where}: there is no such bucket or object") from error
        except Exception as error:  # each store's library has its own
            raise StorageError(f"{where}: {_reason(error)}; what was acknowledged before stays valid") from error

    def walk(self, limit: int) -> Iterator[Found]:
        """All objects below the URL, in no order.

        Raises:
            PathError: more than ``limit`` of them, or a name that can't be in a run.
            StorageError: the store refuses, or says nonsense.
        """
        seen, pending = 0, [(self._root, 0)]
        while pending:
            directory, depth = pending.pop()
            for info in self._list(directory):
                seen += 1
                self._bounded(seen, limit)
                name = self._below(info.get("name"))
                if info.get("type") != "directory":
                    yield self._found(name, info.get("size"), info)
                    continue
                parts = name.rstrip("/").split("/")
                if depth == _MAX_DEPTH or not TOP_LEVEL.get(parts[0], False) or parts[-1] in ("", ".", ".."):
                    raise PathError(f"{self.url}: unexpected directory {name[:200]!r} in a run")
                pending.append((self._path("/".join(parts)), depth + 1))

    def _list(self, directory: str) -> list[dict[str, Any]]:
        with self.errors():
            try:
                listed = self._fs.ls(directory, detail=True)
            except FileNotFoundError:
                return []
            # some stores list the mark of a directory within itself
            return [info for info in listed if str(info.get("name")).rstrip("/") != directory.rstrip("/")]

    def _bounded(self, seen: int, limit: int) -> None:
        if seen > limit:
            raise PathError(f"{self.url}: more than {limit} objects")

    def _below(self, name: Any) -> str:
        prefix = f"{self._root}/"
        if not isinstance(name, str) or not name.startswith(prefix):
            raise PathError(f"{self.url}: lists {str(name)[:200]!r}, which is not below it")
        return name[len(prefix) :]

    def _found(self, name: str, size: Any, info: dict[str, Any]) -> Found:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise StorageError(f"{self.url}/{name[:200]}: a size of {str(size)[:40]!r}; expected a number of bytes")
        return Found(name, size, {key: _plain(info[key]) for key in _TAGS if info.get(key) is not None})

    def chunks(self, found: Found) -> Generator[bytes]:
        """The content of a listed object, in parts of at most 1 MiB; the caller counts.

        Raises:
            StorageError: it has changed since it was listed, or the store fails.
        """
        path = self._path(found.name)
        with self.errors(found.name):
            with self._fs.open(path, "rb", block_size=CHUNK, cache_type="readahead") as handle:
                while data := handle.read(CHUNK):
                    yield data
            now = {key: _plain(value) for key, value in self._fs.info(path).items()}
        if any(now[key] != value for key, value in found.tag.items() if now.get(key) is not None):
            raise changed(self.url, found.name)

    def read(self, name: str, limit: int) -> bytes | None:
        """An object of at most ``limit`` bytes; None if there is none.

        Raises:
            PathError: it is larger.
            StorageError: the store fails.
        """
        taken = bytearray()
        try:
            for part in self._parts(name):
                taken += part
                if len(taken) > limit:
                    raise PathError(f"{self.url}/{name}: more than {limit} bytes")
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return bytes(taken)

    def _parts(self, name: str) -> Generator[bytes]:
        with self.errors(name), self._fs.open(self._path(name), "rb", block_size=CHUNK, cache_type="none") as handle:
            while data := handle.read(CHUNK):
                yield data

    def write(self, name: str, data: bytes, *, create: bool = False) -> None:
        """Replace an object, whole; with ``create`` only where there is none, as far as the store can tell.

        Raises:
            BusyError: with ``create``: there is one.
            StorageError: the store refuses.
        """
        with self.errors(name):
            self._make_parent(name)
            if create and self._fs.exists(self._path(name)):
                raise self._taken(name)
            self._fs.pipe_file(self._path(name), data)

    def _taken(self, name: str) -> BusyError:
        return BusyError(f"{self.url}/{name}: is there; another process is writing this run")

    def upload(self, source: Path, name: str) -> None:
        """Replace an object by a file.

        Raises:
            StorageError: the store refuses.
        """
        with self.errors(name):
            self._make_parent(name)
            self._fs.put_file(str(source), self._path(name))

    def _make_parent(self, name: str) -> None:
        if self.url.scheme in _DIRECTORIES:
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def delete(self, name: str) -> None:
        """Remove an object; harmless where there is none.

        Raises:
            StorageError: the store refuses.
        """
        with self.errors(name), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def holds(self, other: Store) -> bool:
        """Whether the other's URL is this one or lies below it."""
        return type(self._fs) is type(other._fs) and f"{other._root}/".startswith(f"{self._root}/")


class S3Store(Store):
    """S3 and what speaks like it: pages and streams, so that nothing that a server sends has to fit into memory."""

    def walk(self, limit: int) -> Iterator[Found]:
        """See :meth:`Store.walk`."""
        bucket, key, _ = self._fs.split_path(self._root)
        prefix = f"{key}/" if key else ""
        request, seen = {"Bucket": bucket, "Prefix": prefix}, 0
        while True:
            with self.errors():
                page = self._fs.call_s3("list_objects_v2", **request)
            entries = page.get("Contents") or []
            seen += max(1, len(entries))  # empty pages count, or they would never end
            self._bounded(seen, limit)
            for entry in entries:
                name = self._below(f"{bucket}/{entry.get('Key')}")
                if not (name == "" and entry.get("Size") == 0):  # the run's own mark
                    yield self._found(name, entry.get("Size"), {"ETag": entry.get("ETag")})
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page.get("NextContinuationToken") or ""

    def chunks(self, found: Found) -> Generator[bytes]:
        """See :meth:`Store.chunks`."""
        wanted = {"IfMatch": found.tag["ETag"]} if found.tag.get("ETag") else {}
        try:
            yield from self._parts(found.name, **wanted)
        except StorageError as error:
            if _code(error.__cause__) in ("PreconditionFailed", "412"):
                raise changed(self.url, found.name) from error
            raise

    def _parts(self, name: str, **wanted: str) -> Generator[bytes]:
        bucket, key, _ = self._fs.split_path(self._path(name))
        with self.errors(name):
            body = self._wait(self._fs._call_s3("get_object", Bucket=bucket, Key=key, **wanted))["Body"]
            try:
                while data := self._wait(body.read(CHUNK)):
                    yield data
            finally:
                self._fs.loop.call_soon_threadsafe(body.close)

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result; a server that stalls doesn't keep an interrupted command from its end."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop)
        while not wait([future], _POLL).done:
            if self.stop.is_set():
                future.cancel()
                raise StorageError(f"{self.url}: reading was stopped")
        return future.result()

    def write(self, name: str, data: bytes, *, create: bool = False) -> None:
        """See :meth:`Store.write`; S3 itself sees to ``create``."""
        with self.errors(name):
            if create:
                try:
                    self._fs.pipe_file(self._path(name), data, mode="create")
                    return
                except Exception as error:
                    if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                        raise self._taken(name) from error
                    if _code(error) != "NotImplemented":
                        raise
            self._fs.pipe_file(self._path(name), data)

    def upload(self, source: Path, name: str) -> None:
        """See :meth:`Store.upload`; in parts, of which S3 takes 10,000, so that not too much is in memory."""
        with self.errors(name):
            part = max(_PART, -(-source.stat().st_size // 9_999))
            self._fs.put_file(str(source), self._path(name), chunksize=part, max_concurrency=4)


def open_store(url: Url) -> Store:
    """The store behind a URL; nothing is asked of it yet.

    Raises:
        UnsupportedError: the library for it is not installed.
        UsageError: the address or this machine's settings for it make no sense.
    """
    import fsspec

    try:
        # Fresh: no listing that another use of this process has kept.
        fs, root = fsspec.core.url_to_fs(url.secret, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        extra = "; pip install 'vtrain[s3]'" if url.scheme in ("s3", "s3a") else ""
        raise UnsupportedError(f"{url.scheme}:// needs a library that is not installed here{extra}") from error
    except Exception as error:
        raise UsageError(f"{url}: {_reason(error)}; expected {url.scheme}://bucket/name") from error
    return (S3Store if hasattr(fs, "call_s3") else Store)(url, fs, root.rstrip("/"))


def write(where: Path | Url, data: bytes) -> None:
    """Replace a file or an object by ``data`` (bytes).

    Raises:
        StorageError: the disk or the store refuses.
    """
    if isinstance(where, Path):
        write_bytes(where, data)
    else:
        open_store(where).write("", data)


def inside(inner: Path | Url, outer: Path | Url) -> bool:
    """Whether ``inner`` is ``outer`` or lies below it."""
    if isinstance(inner, Url) and isinstance(outer, Url):
        return open_store(outer).holds(open_store(inner))
    if isinstance(inner, Path) and isinstance(outer, Path):
        there, here = (Path(os.path.realpath(path)) for path in (outer, inner))  # which bears a loop of links
        return there in (here, *here.parents)
    return False


def changed(url: Url, name: str) -> StorageError:
    """The error of an object that is not what was listed."""
    return StorageError(f"{url}/{name}: changed while it was read; try again when nobody writes there")


def _plain(value: Any) -> Any:
    """Times as numbers: some stores list them in another type than they tell them in."""
    return value.timestamp() if hasattr(value, "timestamp") else value


def _code(error: BaseException | None) -> str:
    """The code of an S3 error, from the exception or what it was made from; empty if there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        if isinstance(code, str) and _CODE.fullmatch(code):
            return code
        error = error.__cause__ or error.__context__
    return ""


def _reason(error: BaseException) -> str:
    """What went wrong, in words that are neither the store's nor secret."""
    if "Credential" in type(error).__name__:
        return "found no credentials for it, or not all (environment, ~/.aws or such)"
    if isinstance(error, PermissionError):
        return f"access denied ({_code(error) or type(error).__name__})"
    return f"the store failed: {_code(error) or type(error).__name__}"
