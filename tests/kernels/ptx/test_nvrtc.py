"""Compilation of the kernels: what goes into the digests, what errors say, what the cache holds."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from ptx_helpers import require_nvrtc

from vtrain.errors import BackendError, StorageError
from vtrain.kernels import nvrtc

require_nvrtc()

ARCH = "sm_80"
KERNEL = b'#include "part/inner.hpp"\n#include "outer.hpp"\nextern "C" __global__ void k(int* x) { x[0] = inner(); }\n'
INNER = b'#pragma once\n#include "../outer.hpp"\ninline int inner() { return outer() + 1; }\n'
OUTER = b"#pragma once\ninline int outer() { return 41; }\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of our own, with includes between folders, and an empty cache."""
    root = tmp_path / "kernels"
    files = {"device.cu": KERNEL, "part/inner.hpp": INNER, "outer.hpp": OUTER, "host/outer.hpp": b"#error host\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    monkeypatch.setattr(nvrtc, "_ROOT", root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_sources_leave_out_the_host(tree: Path) -> None:
    assert list(nvrtc.sources()) == ["device.cu", "outer.hpp", "part/inner.hpp"]


def test_headers_are_found_from_their_own_folder(tree: Path) -> None:
    ptx = nvrtc.compile(ARCH, "ptx").decode()
    assert ".entry k(" in ptx and "42" in ptx
    assert nvrtc.compile(ARCH, "cubin")[:4] == b"\x7fELF"


def test_the_digest_covers_names_and_contents(tree: Path) -> None:
    before = nvrtc.source_digest()
    assert before.startswith("sha256:") and before == nvrtc.source_digest()
    (tree / "host" / "outer.hpp").write_bytes(b"")
    assert nvrtc.source_digest() == before
    (tree / "outer.hpp").rename(tree / "other.hpp")
    renamed = nvrtc.source_digest()
    (tree / "other.hpp").write_bytes(OUTER + b"\n")
    assert len({before, renamed, nvrtc.source_digest()}) == 3


def test_the_digest_covers_flags(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = nvrtc.source_digest()
    monkeypatch.setattr(nvrtc, "FLAGS", (*nvrtc.FLAGS, "--use_fast_math"))
    assert nvrtc.source_digest() != before


def test_the_cache_is_used_and_follows_the_sources(tree: Path) -> None:
    path = nvrtc.cached(ARCH)
    assert path.read_bytes() == nvrtc.compile(ARCH, "cubin")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(list(path.parent.iterdir())) == 1
    path.write_bytes(b"kept")
    assert nvrtc.cached(ARCH) == path and path.read_bytes() == b"kept"
    (tree / "outer.hpp").write_bytes(OUTER.replace(b"41", b"51"))
    assert nvrtc.cached(ARCH) != path


def test_a_relative_cache_folder_is_ignored(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert nvrtc.cached(ARCH).is_relative_to(tmp_path / "home" / ".cache" / "vtrain" / "kernels")


def test_a_cache_that_cannot_be_written_is_an_error(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="can't be stored"):
        nvrtc.cached(ARCH)


def test_errors_hold_the_log(tree: Path) -> None:
    with pytest.raises(BackendError, match='identifier "missing" is undefined'):
        nvrtc.compile_source("__global__ void k() { missing(); }", ARCH, "ptx")
    with pytest.raises(BackendError, match="sm_1"):
        nvrtc.compile_source("", "sm_1", "ptx")
    (tree / "device.cu").unlink()
    with pytest.raises(BackendError, match=r"device\.cu is missing"):
        nvrtc.compile(ARCH, "ptx")


def test_headers_of_the_working_directory_are_not_seen(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stray.hpp").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=r"stray\.hpp"):
        nvrtc.compile_source('#include "stray.hpp"\n', ARCH, "ptx")


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", None)
    with pytest.raises(BackendError, match=r"vtrain\[cuda\]"):
        nvrtc.version()
