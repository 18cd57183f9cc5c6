"""A store says and sends what it likes: each lie is a typed error, nothing is written elsewhere, nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_helpers import Entry, Hostile, left, put, url_of
from run_helpers import evidence_bytes, honest, tree_bytes

from vtrain.errors import PathError, StorageError, VtrainError
from vtrain.store import remote
from vtrain.store.objects import Store, open_store
from vtrain.store.remote import local_copy, max_bytes
from vtrain.store.writer import MAX_PROGRAM_BYTES

RUN = "s3://bucket/run"
Start = Callable[..., Hostile]


def files() -> dict[str, bytes]:
    """The honest run, by key."""
    return {f"run/{name}": data for name, data in evidence_bytes(honest()).items() if not name.endswith("/")}


def refused(text: str, error: type[VtrainError], match: str, temporary: Path, bound: int = 1 << 30) -> None:
    before = sorted(p for p in temporary.parent.rglob("*") if "temporary" not in p.parts)
    with pytest.raises(error, match=match) as caught, local_copy(url_of(text), bound):
        pytest.fail("fetched")
    assert caught.value.exit_code == 3
    assert left(temporary) == []
    assert sorted(p for p in temporary.parent.rglob("*") if "temporary" not in p.parts) == before


def test_an_honest_server(hostile: Start, surroundings: Path) -> None:
    """What the lies below depart from."""
    hostile(files=files())
    with local_copy(url_of(RUN)) as path:
        assert evidence_bytes(path) == evidence_bytes(honest())
    assert left(surroundings) == []


NAMES = [
    "../../escaped", "../job.json", "checkpoints/../../escaped", "checkpoints/000002/../../../../escaped",
    "/etc/passwd", "//job.json", "checkpoints//000002/model.safetensors", "checkpoints\\000002\\meta.json",
    "job.json\n", "job\u202e.json", "JOB.JSON", "notes.txt", "programs/x.json", "programs/" + "a" * 64 + ".json/more",
    "checkpoints/2/model.safetensors", "checkpoints/٠٠٠٠٠٢/meta.json",
    "checkpoints/0000002/meta.json", "checkpoints/000002/Model.safetensors", "checkpoints/000002/model.pkl",
    "checkpoints/000002/sub/meta.json", "log.zarr/000002/gaps/c/00", "log.zarr/000002/gaps/c/0/0",
    "log.zarr/000002/offsets/c/0", "log.zarr/000002/other/zarr.json", "log.zarr/000002/gaps/c/٣", "log.zarr/.zattrs",
    "checkpoints", "x" * 900, ".ssh/authorized_keys", "job.json/", "..", ".",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_run_has(hostile: Start, surroundings: Path, name: str) -> None:
    assert max_bytes(name) is None
    there = {**files(), f"run/{name}": b"x"}
    hostile(files=there)
    refused(RUN, PathError, "unexpected name|not below it", surroundings)


@pytest.mark.parametrize(
    "name", ["../../escaped", "notes.txt", "checkpoints/../../e", "deep/" * 20 + "x", "a\\b", ".."]
)
def test_names_in_another_store(memory: str, surroundings: Path, name: str) -> None:
    put(honest(), url_of(f"{memory}/run"))
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    MemoryFileSystem.store[f"/bucket/run/{name}"] = MemoryFile(None, "", b"x")
    refused(f"{memory}/run", PathError, "unexpected", surroundings)


@pytest.mark.parametrize("name", ["notes/x", "../x", "checkpoints/../x", "checkpoints/" + "a/" * 9 + "x"])
def test_directories_that_no_run_has_are_not_even_listed(
    memory: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    listed: list[str] = []
    ls = MemoryFileSystem.ls

    def noted(self: Any, path: str, detail: bool = True, **more: Any) -> Any:
        listed.append(path)
        return ls(self, path, detail=detail, **more)

    monkeypatch.setattr(MemoryFileSystem, "ls", noted)
    MemoryFileSystem.store[f"/bucket/run/{name}"] = MemoryFile(None, "", b"x")
    refused(f"{memory}/run", PathError, "unexpected directory", surroundings)
    assert f"/bucket/run/{name}".rpartition("/")[0] not in listed


def test_each_name_of_a_run_is_known() -> None:
    bounds = {n: max_bytes(n) for n in evidence_bytes(honest()) if not n.endswith("/")}
    assert all(bound is not None and bound >= (honest() / n).stat().st_size for n, bound in bounds.items())
    assert max_bytes(".lock") is None
    assert max_bytes(f"programs/{'0' * 64}.json") == MAX_PROGRAM_BYTES


def test_marks_of_directories_and_what_killed_writers_left_are_passed_over(hostile: Start) -> None:
    marks = {f"run/{n}": b"" for n in ("", "checkpoints/", "log.zarr/000002/gaps/", "programs/")}
    hostile(files={**files(), **marks, "run/job.json.tmp-1-aa": b"half", "run/.lock": b"0"})
    with local_copy(url_of(RUN)) as path:
        assert evidence_bytes(path) == evidence_bytes(honest())


def test_keys_that_are_not_below_the_run(hostile: Start, surroundings: Path) -> None:
    for key in ("elsewhere/job.json", "runs/job.json", "run"):
        hostile(listing=lambda key=key: iter([[(key, 1, '"t"')]]), files={key: b"x"})
        refused(RUN, PathError, "not below it", surroundings)


def test_a_name_twice(hostile: Start, surroundings: Path) -> None:
    entry = ("run/job.json", len(files()["run/job.json"]), "")
    hostile(files=files(), listing=lambda: iter([[entry], [entry]]))
    refused(RUN, PathError, "unexpected name 'job.json'", surroundings)


# ---- listings without an end -----------------------------------------------------------------------------------------
def endless(page: Callable[[int], list[Entry]]) -> Callable[[], Iterator[list[Entry]]]:
    def pages() -> Iterator[list[Entry]]:
        for number in range(1000):  # so that a test without the bound fails, and does not hang
            yield page(number)

    return pages


def test_a_million_keys(hostile: Start, surroundings: Path) -> None:
    """Known names, tiny: it is their number that is refused, before the listing ends."""
    server = hostile(
        listing=endless(lambda n: [(f"run/checkpoints/{n * 1000 + i:06d}/meta.json", 1, "") for i in range(1000)])
    )
    refused(RUN, PathError, f"more than {remote.MAX_OBJECTS} objects", surroundings)
    assert server.pages_sent == remote.MAX_OBJECTS // 1000 + 1


def test_pages_that_say_nothing(hostile: Start, surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_OBJECTS", 50)
    server = hostile(listing=endless(lambda n: []))
    refused(RUN, PathError, "more than 50 objects", surroundings)
    assert server.pages_sent == 51


def test_many_names_in_another_store(memory: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(honest(), url_of(f"{memory}/run"))
    monkeypatch.setattr(remote, "MAX_OBJECTS", 20)
    refused(f"{memory}/run", PathError, "more than 20 objects", surroundings)


# ---- sizes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["job.json", "trainer.pub", "attestation.json", "transcript.jsonl", "metrics.jsonl", "log.zarr/zarr.json",
             "log.zarr/000002/gaps/c/0", "checkpoints/000002/meta.json", "checkpoints/000002/model.safetensors"],
)  # fmt: skip
def test_oversized(hostile: Start, surroundings: Path, name: str) -> None:
    bound = max_bytes(name)
    assert bound is not None
    server = hostile(
        listing=lambda: iter([[(f"run/{name}", bound + 1, "")]]), on_get=lambda key: pytest.fail("was fetched")
    )
    refused(RUN, PathError, f"{bound + 1} bytes; expected at most {bound}", surroundings, 1 << 60)
    assert server.pages_sent == 1


def test_all_together_too_large(hostile: Start, surroundings: Path) -> None:
    there = files()
    total = sum(map(len, there.values()))
    server = hostile(files=there)
    server.on_get = lambda key: pytest.fail("was fetched")
    refused(RUN, PathError, f"more than {total - 1} bytes; --max-download", surroundings, total - 1)


def test_more_than_the_disk_holds(hostile: Start, surroundings: Path) -> None:
    hostile(listing=lambda: iter([[("run/checkpoints/000002/model.safetensors", 1 << 43, "")]]))
    refused(RUN, StorageError, "has room for", surroundings, 1 << 60)


@pytest.mark.parametrize("size", ["-1", "1.5", "many", ""])
def test_sizes_that_are_no_numbers(hostile: Start, surroundings: Path, size: Any) -> None:
    hostile(listing=lambda: iter([[("run/job.json", size, "")]]), files=files())
    refused(RUN, StorageError, "a size of|the store failed", surroundings)


BIG = "run/checkpoints/000002/model.safetensors"


def test_more_is_sent_than_was_listed(hostile: Start, surroundings: Path) -> None:
    """Far more: it is cut off, not written."""
    there = files()
    server = hostile(files=there, sends=lambda key: there[key] + (bytes(64 << 20) if key == BIG else b""))
    started = time.monotonic()
    refused(RUN, StorageError, "more than the .* bytes that the store listed", surroundings)
    assert time.monotonic() - started < 20
    server.sends = lambda key: there[key] + (b"x" if key == BIG else b"")
    refused(RUN, StorageError, "more than the .* bytes that the store listed", surroundings)


def test_less_is_sent_than_was_listed(hostile: Start, surroundings: Path) -> None:
    there = files()
    hostile(files=there, sends=lambda key: there[key][:-1] if key == BIG else there[key])
    refused(RUN, StorageError, "the store listed", surroundings)


# ---- changes --------------------------------------------------------------------------------------------------------
def test_replaced_between_listing_and_reading(hostile: Start, surroundings: Path) -> None:
    there = files()
    server = hostile(files=dict(there))

    def replace(key: str) -> None:
        if key == BIG:
            server.files[BIG] = bytes(len(there[BIG]))

    server.on_get = replace
    refused(RUN, StorageError, "changed while it was read", surroundings)


def test_removed_between_listing_and_reading(hostile: Start, surroundings: Path) -> None:
    server = hostile(files=files())
    server.on_get = lambda key: server.files.pop(BIG, None)
    refused(RUN, StorageError, "no such bucket or object", surroundings)


def test_replaced_in_another_store(memory: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(honest(), url_of(f"{memory}/run"))
    chunks = Store.chunks

    def replaced(self: Store, found: Any) -> Iterator[bytes]:
        if found.name == "transcript.jsonl":
            time.sleep(0.01)
            open_store(url).write(found.name, bytes(found.size))
        yield from chunks(self, found)

    monkeypatch.setattr(Store, "chunks", replaced)
    refused(f"{memory}/run", StorageError, "changed while it was read", surroundings)


def test_lies_about_sizes_in_another_store(memory: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    put(honest(), url_of(f"{memory}/run"))
    ls = MemoryFileSystem.ls
    for change, match in ((-1, "more than the"), (1, "the store listed")):

        def lies(self: Any, path: str, detail: bool = True, change: int = change, **more: Any) -> Any:
            listed = ls(self, path, detail=True, **more)
            return [{**i, "size": i["size"] + change * i["name"].endswith("job.json")} for i in listed]

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "ls", lies)
            refused(f"{memory}/run", StorageError, match, surroundings)


def test_a_run_that_was_fetched_is_plain_files(hostile: Start) -> None:
    hostile(files=files())
    with local_copy(url_of(RUN)) as path:
        assert not any(p.is_symlink() or (p.is_file() and p.stat().st_nlink != 1) for p in path.rglob("*"))
        assert {n for n in tree_bytes(path) if ".tmp-" in n} == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_a_server_stalls(hostile: Start, surroundings: Path, number: signal.Signals) -> None:
    """The command ends, and what was fetched is removed."""
    go_on = threading.Event()
    server = hostile(files=files(), on_get=lambda key: go_on.wait(60) if key == BIG else None)
    command = [sys.executable, "-m", "vtrain", "verify", RUN]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "AWS_ENDPOINT_URL": server.endpoint}
    )
    try:
        until = time.monotonic() + 60
        while not any(surroundings.rglob("meta.json")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        started = time.monotonic()
        errors = process.communicate(timeout=60)[1]
    finally:
        go_on.set()
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert left(surroundings) == []
    assert time.monotonic() - started < 40
