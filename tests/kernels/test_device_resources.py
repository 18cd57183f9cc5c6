"""Registers, shared memory and stack of each kernel, from its machine code; a table keeps them from growing unnoticed.

``python tests/kernels/test_device_resources.py`` writes the table anew, for a change that is meant.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtrain.errors import BackendError
from vtrain.kernels import nvrtc
from vtrain.kernels.launch import SIGNATURES

TABLE = Path(__file__).with_name("device_resources.json")
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
REGISTERS, FRAME = 0x2F, 0x11  # attributes of .nv.info: (symbol, count), (symbol, bytes)
FIELDS = ("registers", "shared bytes", "stack bytes")
Resources = dict[str, list[int]]


def sections(elf: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, size and content of each section of a 64-bit ELF file."""
    start, = struct.unpack_from("<Q", elf, 0x28)  # fmt: skip
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, start + i * size) for i in range(count)]
    texts = elf[headers[names][4] :]
    for h in headers:
        name = texts[h[0] : texts.index(b"\0", h[0])].decode()
        yield name, h[5], b"" if h[1] == 8 else elf[h[4] : h[4] + h[5]]  # type 8 takes no space in the file


def symbols(table: bytes, names: bytes) -> list[str]:
    """Names of a symbol table's entries, in order."""
    starts = [struct.unpack_from("<I", table, at)[0] for at in range(0, len(table), 24)]
    return [names[s : names.index(b"\0", s)].decode() for s in starts]


def attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each attribute of a .nv.info section; short ones have none."""
    at = 0
    while at < len(info):
        shape, kind, value = struct.unpack_from("<BBH", info, at)
        at += 4
        if shape == 4:  # sized
            yield kind, info[at : at + value]
            at += value


def resources(arch: str) -> Resources:
    """FIELDS of each kernel."""
    found: dict[str, bytes] = {}
    shared: dict[str, int] = {}
    for name, size, content in sections(nvrtc.compile(arch, "cubin")):
        found[name] = content
        if name.startswith(".nv.shared.vt_"):
            shared[name.removeprefix(".nv.shared.")] = size
    names = symbols(found[".symtab"], found[".strtab"])
    values: dict[int, dict[str, int]] = {REGISTERS: {}, FRAME: {}}
    for kind, payload in attributes(found[".nv.info"]):
        if kind in values:
            symbol, value = struct.unpack("<II", payload[:8])
            values[kind][names[symbol]] = value
    kernels = sorted(f"vt_{name}" for name in SIGNATURES)
    return {k: [values[REGISTERS][k], shared.get(k, 0), values[FRAME].get(k, 0)] for k in kernels}


def growth(table: Resources, found: Resources) -> list[str]:
    """What a kernel needs beyond the table."""
    lines = [f"{kernel} is not in the table" for kernel in found if kernel not in table]
    for kernel in found.keys() & table.keys():
        for field, now, before in zip(FIELDS, found[kernel], table[kernel], strict=True):
            if now > before:
                lines.append(f"{kernel}: {now} {field}, {before} in the table")
    return sorted(lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=() if a == "sm_120" else pytest.mark.slow) for a in ARCHITECTURES]
)
def test_resources_do_not_grow(arch: str) -> None:
    try:
        found = resources(arch)
    except BackendError as missing:
        if "NVRTC, CUDA's" not in str(missing):
            raise
        pytest.skip(str(missing))
    table = json.loads(TABLE.read_text())
    if table["nvrtc"] != list(nvrtc.version()):
        pytest.skip(f"the table was made by NVRTC {table['nvrtc']}, this is {nvrtc.version()}")
    assert growth(table[arch], found) == []
    assert max(r[0] for r in found.values()) > 32


def test_growth_is_seen() -> None:
    assert growth({"a": [32, 0, 0]}, {"a": [33, 0, 8], "b": [1, 0, 0]}) == [
        "a: 33 registers, 32 in the table", "a: 8 stack bytes, 0 in the table", "b is not in the table",
    ]  # fmt: skip


if __name__ == "__main__":
    everything = {"nvrtc": list(nvrtc.version()), **{arch: resources(arch) for arch in ARCHITECTURES}}
    lines = json.dumps(everything, indent=1, sort_keys=True).replace("\n   ", " ").replace("\n  ]", " ]")
    TABLE.write_text(lines + "\n")
