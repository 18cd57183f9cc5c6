"""The kernels' sources: levels that include lower ones, and one header that knows host from device."""

from __future__ import annotations

import functools
import graphlib
import posixpath
import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "vtrain" / "kernels"
# Rooms and files of the C++ sources, the lowest first; a header includes its own level and lower ones.
LEVELS = ("config.hpp", "tile", "math", "reductions", "families", "entries.hpp", "device.cu")
BODIES = ("host", "device")  # a header and its bodies, which it includes by VT_BODY, share a level
CPP = sorted(p.relative_to(KERNELS).as_posix() for p in KERNELS.rglob("*") if p.suffix in (".hpp", ".cpp", ".cu"))
BODY = re.compile(r"^[ \t]*#[ \t]*include[ \t]+VT_BODY\((\w+)\)", re.MULTILINE)
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*\"([^\"\n]+)\"", re.MULTILINE)


def cpp(name: str) -> str:
    return (KERNELS / name).read_text(encoding="utf-8")


def room(name: str) -> str:
    return name.split("/")[0]


def written_includes(name: str) -> list[str]:
    """Paths from the kernels' folder of what a file includes by name."""
    return [posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in INCLUDE.findall(cpp(name))]


def includes(name: str) -> list[str]:
    """As ``written_includes``, with the bodies for both targets."""
    bodies = [f"{target}/{part}.hpp" for part in BODY.findall(cpp(name)) for target in BODIES]
    return written_includes(name) + bodies


@functools.cache
def level(name: str) -> int:
    """Place in LEVELS; of what lies in host/ or device/, that of the highest header that it needs."""
    return LEVELS.index(room(name)) if room(name) not in BODIES else max(map(level, includes(name)), default=0)


def test_kernels_include_no_circle() -> None:
    graph = {name: includes(name) for name in CPP}
    assert {path for paths in graph.values() for path in paths} <= set(CPP)
    graphlib.TopologicalSorter(graph).prepare()


def test_kernels_include_lower_levels() -> None:
    assert {room(name) for name in CPP} == {*LEVELS, *BODIES}
    edges = [(name, path) for name in CPP if room(name) not in BODIES for path in includes(name)]
    assert [(name, path) for name, path in edges if level(path) > level(name)] == []
    assert [(name, path) for name, path in edges if room(name) == room(path) == "families"] == []
    stated = re.findall(r"^//   ([a-z]+(?:\.\w+)?)/?,? ", cpp("config.hpp"), re.MULTILINE)
    assert stated == list(LEVELS)


def test_bodies_for_a_target_are_included_by_the_switch_alone() -> None:
    parts = [(part, name) for name in CPP for part in BODY.findall(cpp(name))]
    assert sorted(f"device/{part}.hpp" for part, _ in parts) == [name for name in CPP if room(name) == "device"]
    assert all(posixpath.basename(name) == f"{part}.hpp" and f"host/{part}.hpp" in CPP for part, name in parts)
    assert [name for name in CPP for path in written_includes(name) if room(path) in BODIES and room(name) != room(path)
            ] == []  # fmt: skip


WORDS = {  # of a target -> where they may stand, besides the header that knows it
    r"__CUDA|__NVCC__|VT_DEVICE|VT_HOST": (),
    r"__(device|shared|sync|shfl|ballot)|\b(thread|block)(Idx|Dim)\b|\bgridDim\b": ("device",),
    r"#\s*include\s*<|#\s*pragma\s+omp|\bstd::|__AVX|__FMA": ("host",),
}


@pytest.mark.parametrize("words", WORDS)
def test_only_one_header_knows_host_from_device(words: str) -> None:
    found = [name for name in CPP if re.search(words, cpp(name)) and room(name) not in WORDS[words]]
    assert found == ["config.hpp"]


def test_a_family_has_a_header_and_a_module() -> None:
    headers = {Path(name).stem for name in CPP if room(name) == "families"}
    modules = {path.stem for path in (KERNELS / "canonical").glob("*.py")} - {"__init__", "checks"}
    assert headers == modules
