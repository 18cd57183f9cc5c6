"""What the tests of stores share: objects by name, servers, runs put on a store."""

from __future__ import annotations

import contextlib
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from vtrain.store.address import Url, place
from vtrain.store.objects import Store, open_store

_NUMBERS = count()


@dataclass
class S3Process:
    """A local S3-compatible server."""

    endpoint: str

    def bucket(self) -> str:
        """A new, empty bucket, as a URL."""
        import s3fs

        name = f"bucket-{next(_NUMBERS)}"
        s3fs.S3FileSystem(skip_instance_cache=True, endpoint_url=self.endpoint).mkdir(name)
        return f"s3://{name}"


def url_of(text: str) -> Url:
    """A URL, parsed."""
    found = place(text)
    assert isinstance(found, Url)
    return found


def names(url: Url) -> list[str]:
    """The names of all objects below a URL."""
    return sorted(found.name for found in open_store(url).walk(10_000))


def objects(url: Url) -> dict[str, bytes]:
    """Every object below a URL, but what is no evidence."""
    store = open_store(url)
    kept = [name for name in names(url) if name not in ("metrics.jsonl", ".lock")]
    return {name: store.read(name, 1 << 30) or b"" for name in kept}


def left(temporary: Path) -> list[str]:
    """What was left of this project's temporary directories; torch has some of its own."""
    return [path.name for path in temporary.iterdir() if path.name.startswith("vtrain-")]


def put(run: Path, url: Url) -> Url:
    """Copy a run to a store, file by file."""
    store: Store = open_store(url)
    for path in sorted(run.rglob("*")):
        if path.is_file():
            store.write(path.relative_to(run).as_posix(), path.read_bytes())
    return url


Entry = tuple[str, int, str]


@dataclass
class Hostile:
    """An HTTP server that answers as S3 does, but says what the test wants.

    Attributes:
        files: content by key.
        listing: the pages of entries (key, size, tag) to list; by default one, of all files, as they are.
        on_get: called before an object is given out, with its key.
        sends: what is sent for a key, if it is not what is there.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    listing: Callable[[], Iterator[list[Entry]]] | None = None
    on_get: Callable[[str], Any] = lambda key: None
    sends: Callable[[str], bytes] | None = None
    pages_sent: int = 0

    def __post_init__(self) -> None:
        self._pages: Iterator[list[Entry]] = iter(())
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def tag(self, key: str) -> str:
        return f'"{hash(self.files[key]) & 0xFFFFFFFF:08x}"'

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        parameters = urllib.parse.parse_qs(query)
        if "list-type" in parameters:
            return self._list(handler, "continuation-token" not in parameters)
        key = urllib.parse.unquote(path).removeprefix("/bucket/")
        self.on_get(key)
        if key not in self.files:
            return _send(handler, 404, b"<Error><Code>NoSuchKey</Code></Error>", {})
        if handler.headers.get("If-Match", self.tag(key)) != self.tag(key):
            return _send(handler, 412, b"<Error><Code>PreconditionFailed</Code></Error>", {})
        data = self.files[key] if self.sends is None else self.sends(key)
        return _send(handler, 200, data, {"ETag": self.tag(key)})

    def _list(self, handler: BaseHTTPRequestHandler, first: bool) -> None:
        if first:
            pages = self.listing or (lambda: iter([[(k, len(d), self.tag(k)) for k, d in self.files.items()]]))
            self._pages = pages()
        entries = next(self._pages, None)
        more = entries is not None and self.listing is not None
        self.pages_sent += 1
        text = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{s}</Size><ETag>{escape(t)}</ETag></Contents>"
            for k, s, t in entries or []
        )
        token = "<NextContinuationToken>next</NextContinuationToken>" if more else ""
        state = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        _send(handler, 200, f"<ListBucketResult>{state}{text}</ListBucketResult>".encode(), {})


def _send(handler: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):  # who has heard enough hangs up
        handler.wfile.write(data)
