"""Addresses: what is a path, what is a URL, what is refused; and no message says a secret."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from remote_helpers import S3Process, left, url_of

from vtrain.errors import StorageError, UnsupportedError, UsageError, VtrainError
from vtrain.store.address import Url, place
from vtrain.store.objects import inside, open_store, write
from vtrain.store.publish import publishing
from vtrain.store.remote import local_copy

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "path"),
    [("runs/mine", "runs/mine"), ("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("local:///a/b/", "/a/b"),
     ("s3:/a", "s3:/a"), ("a::b", "a::b"), ("FILE:///a", "/a")],
)  # fmt: skip
def test_paths(text: str, path: str) -> None:
    assert place(text) == Path(path)


@pytest.mark.parametrize(
    "text", ["s3://b/run", "S3://b/run/", "memory://run", "gs://b/r", "sftp://host/a/b", "memory:///a"]
)
def test_urls(text: str) -> None:
    found = place(text)
    assert isinstance(found, Url)
    assert found.scheme == text.split(":")[0].lower()


@pytest.mark.parametrize(
    "text",
    ["C:\\runs\\mine", "c:/runs", "C://runs/mine", "what://b/run", "zip://a::s3://b/x", "s3://b/simplecache::x",
     "reference://x", "s3://", "s3://b//run", "s3://b/../run", "s3://b/./run", "s3://b/a*b",
     "s3://b/a\\b", "s3://b/a\0b", "s3://b/a\nb", "s3://b/run?versionId=1", "s3://b/run#x", "s3://b/x@y/run",
     "file://host/a", "github://o:r@x/y", "data://x"],
)  # fmt: skip
def test_addresses_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected") as caught:
        place(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [f"ftp://me:{SECRET}@host/run", f"ftp://me:{SECRET}/x@host/run", f"ftp://me:a?{SECRET}@host/run",
     f"ftp://me:#{SECRET}@host//run", f"s3://b/run?token={SECRET}", f"s3://b//run?token={SECRET}", f"s3://k:{SECRET}@b/run",
     f"what://me:{SECRET}@host/run", f"s3://b/run#{SECRET}"],
)  # fmt: skip
def test_no_secret_of_an_address_is_shown(text: str) -> None:
    try:
        found = place(text)
    except UsageError as error:
        assert SECRET not in str(error)
    else:
        assert SECRET not in f"{found} {found!r} {[found]}"


def said(error: BaseException) -> str:
    return f"{error} {error!r}"


def test_denied_missing_and_unreachable(
    s3: S3Process, monkeypatch: pytest.MonkeyPatch, surroundings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is a StorageError with exit code 3 that names the URL, and neither key nor secret."""
    caplog.set_level(logging.INFO)
    cases: dict[str, dict[str, str]] = {
        "no such bucket": {},
        "the store failed": {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        "found no credentials": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    }
    for match, settings in cases.items():
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value) if value else patch.delenv(name)
            for attempt in (
                local_copy(url_of("s3://missing-bucket/run")),
                publishing(url_of("s3://missing-bucket/run")),
            ):
                with pytest.raises(StorageError, match=match) as caught, attempt:
                    pytest.fail("let in")
                assert caught.value.exit_code == 3
                assert "s3://missing-bucket/run" in said(caught.value)
                assert "very-secret-text" not in said(caught.value) + caplog.text
                assert "AKIATESTKEY" not in said(caught.value)
    assert left(surroundings) == []


def test_nothing_there(url: Url) -> None:
    with pytest.raises(UsageError, match="no such run: nothing is there"), local_copy(url):
        pytest.fail("let in")


def test_a_store_whose_words_are_secret(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(f"GET https://x/?X-Amz-Signature={SECRET} \x1b[31m failed")

    monkeypatch.setattr(MemoryFileSystem, "ls", fails)
    with (
        pytest.raises(StorageError, match="the store failed: RuntimeError") as caught,
        local_copy(url_of(f"{memory}/run")),
    ):
        pytest.fail("let in")
    assert SECRET not in said(caught.value)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = importlib.import_module("fsspec.registry")  # the package has a variable of this name
    for name in ("_registry", "registry"):
        monkeypatch.setattr(known, name, {})
    with pytest.raises(UnsupportedError, match=r"vtrain\[s3\]") as caught:
        open_store(url_of("s3://b/run"))
    assert caught.value.exit_code == 4


def test_inside(tmp_path: Path, memory: str) -> None:
    a = url_of("s3://b/run")
    assert inside(a, a)
    assert inside(url_of("s3a://b/run/x"), a)
    assert not inside(url_of("s3://b/run-verdicts/x"), a)
    assert not inside(url_of("s3://b"), a)
    assert not inside(url_of("memory://b/run/x"), a)
    assert inside(tmp_path / "x", tmp_path)
    assert not inside(tmp_path, tmp_path / "x")
    assert not inside(tmp_path, a)


def test_written_to_both(tmp_path: Path, url: Url) -> None:
    for where in (tmp_path / "verdict.json", url):
        write(where, b"one")
        write(where, b"two")
    assert (tmp_path / "verdict.json").read_bytes() == b"two"
    assert open_store(url).read("", 3) == b"two"
    with pytest.raises(VtrainError, match="more than 2 bytes"):
        open_store(url).read("", 2)
    other = open_store(url_of(f"{url.secret}-other"))
    assert other.read("none", 2) is None
    other.delete("none")


def test_fsspec_is_imported_for_urls_only() -> None:
    code = "import sys; from vtrain.console import *; from vtrain.store import remote, publish; place('runs/x')"
    done = subprocess.run([sys.executable, "-c", f"{code}; print('fsspec' in sys.modules, 'torch' in sys.modules)"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_large_objects_go_and_come_in_parts(s3: S3Process, tmp_path: Path) -> None:
    """More than one part of an upload, and of a download."""
    store = open_store(url_of(f"{s3.bucket()}/run"))
    data = bytes(range(256)) * (45 << 12)
    (tmp_path / "large").write_bytes(data)
    store.upload(tmp_path / "large", "checkpoints/000002/model.safetensors")
    (found,) = store.walk(10)
    assert found.size == len(data)
    parts = list(store.chunks(found))
    assert max(map(len, parts)) <= 1 << 20
    assert b"".join(parts) == data
