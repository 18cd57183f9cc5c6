"""Where a run or a file is: a path of this machine, or the address of something on a store (``s3://bucket/run``)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LOCAL = ("file", "local")
# Wrap other stores, or are none: what they would do is better asked of the store itself.
_NO_STORES = {
    "async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "filecache",
    "generic", "gist", "git", "github", "jlab", "jupyter", "libarchive", "pyscript", "reference",
    "simplecache", "tar", "zip",
}  # fmt: skip


@dataclass(frozen=True)
class Url:
    """The address of a run or file on a store; as text it is without credentials.

    Attributes:
        scheme: the store's kind, lower case.
        secret: the whole address, for the store alone.
    """

    scheme: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        # After the last @, before any query: whatever else the text is, no password is in this.
        return f"{self.scheme}://" + re.split(r"[?#]", self.secret.partition("://")[2].rpartition("@")[2])[0]


def place(text: str) -> Path | Url:
    """Where a run or a file is: a local path, also written ``file:///...``, or an address on a store.

    Raises:
        UsageError: a scheme that fsspec does not know or that is no store, a Windows path, or an odd address.
    """
    found = _SCHEME.fullmatch(text)
    if found is None:
        if _DRIVE.match(text):
            raise UsageError(f"{text!r}: a Windows path; expected a path of this machine, or s3://bucket/run")
        return Path(text)
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    url = Url(scheme, f"{scheme}://{rest}")
    if "::" in rest or scheme in _NO_STORES or scheme not in _protocols():
        raise UsageError(f"{scheme}://: not a store that runs can be on; expected s3://, gs://, file:// or such")
    _check(url, rest)
    if scheme in _LOCAL:
        if not rest.startswith("/"):
            raise UsageError(f"{url}: a file on another host; expected file:///path")
        return Path(rest)
    return url


def _check(url: Url, rest: str) -> None:
    wanted = f"expected {url.scheme}://bucket/name"
    path = rest.partition("/")[2]
    if odd := (set(rest) & set("?#\\*[]")) or (set(path) & {"@"}) or {c for c in rest if not c.isprintable()}:
        raise UsageError(f"{str(url)[:200]!r}: {min(odd)!r} in an address; {wanted}")
    parts = rest.removeprefix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{str(url)[:200]!r}: an empty part, '.' or '..' in an address; {wanted}")


def _protocols() -> list[str]:
    import fsspec

    return fsspec.available_protocols()
