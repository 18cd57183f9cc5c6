"""Stores for the tests: a local S3-compatible server, a server that is hostile, and fsspec's memory."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "attacks"))
sys.path.append(str(Path(__file__).parents[1] / "faults"))

from remote_helpers import Hostile, S3Process
from run_helpers import honest

from vtrain.store import publish
from vtrain.store.address import Url, place


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No settings of whoever runs the tests; temporary files where the test sees them; short patience."""
    honest()  # has its own temporary directory
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIATESTKEY",
        "AWS_SECRET_ACCESS_KEY": "very-secret-text",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(publish, "RENEW", 0.05)
    monkeypatch.setattr(publish, "PATIENCE", 0.3)
    return temporary


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Process]:
    """moto's server, in a process of its own."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed; it is a part of vtrain[dev]")
    pytest.importorskip("s3fs", reason="s3fs is not installed; it is a part of vtrain[s3]")
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, "moto's server does not start"
                time.sleep(0.1)
        yield S3Process(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def s3(s3_process: S3Process, monkeypatch: pytest.MonkeyPatch) -> S3Process:
    """An S3-compatible server that this process is set to use."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_process.endpoint)
    return s3_process


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty ``memory://`` store."""
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    yield "memory://bucket"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> Url:
    """Where nothing is yet, on a store of each kind."""
    base = request.getfixturevalue("memory") if request.param == "memory" else request.getfixturevalue("s3").bucket()
    found = place(f"{base}/runs/mine")
    assert isinstance(found, Url)
    return found


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hostile]]:
    """Makes servers that speak S3 and say what they like."""
    pytest.importorskip("s3fs", reason="s3fs is not installed; it is a part of vtrain[s3]")
    started: list[Hostile] = []

    def start(**behaviour: object) -> Hostile:
        server = Hostile(**behaviour)  # type: ignore[arg-type]
        started.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        return server

    yield start
    for server in started:
        server.close()
