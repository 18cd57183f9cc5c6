"""A step's rounding log as lists of entries, and back (numerics §4; layout: vtrain/kernels/host/codes.hpp)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vtrain.rounding.naive import leb128
from vtrain.store.steplog import StepLog


@dataclass
class SiteLog:
    """The entries of one site in the sparse encoding.

    Attributes:
        seq: number of the settled result.
        numel: its elements.
        narrow: (flat index, 2-bit code).
        wide: (flat index, whole word).
    """

    seq: int
    numel: int
    narrow: list[tuple[int, int]] = field(default_factory=list)
    wide: list[tuple[int, int]] = field(default_factory=list)


def _indices(data: bytes, count: int) -> tuple[list[int], bytes]:
    found, at = [], -1
    for _ in range(count):
        gap = shift = 0
        while True:
            byte, data = data[0], data[1:]
            gap |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at += gap
        found.append(at)
    return found, data


def _gaps(indices: list[int]) -> bytes:
    return b"".join(leb128(b - a) for a, b in zip([-1, *indices], indices, strict=False))


def entries_of(log: StepLog) -> list[SiteLog]:
    """The sites of a sparse log."""
    sites, g, c, v = [], 0, 0, 0
    for seq, numel, encoding, narrow, wide, gap_bytes in log.sites.tolist():
        assert encoding == 0
        codes = log.codes[c : c + (narrow + 3) // 4].tolist()
        near, rest = _indices(log.gaps[g : g + gap_bytes].tobytes(), narrow)
        far, rest = _indices(rest, wide)
        assert not rest
        digits = [codes[i // 4] >> (2 * (i % 4)) & 3 for i in range(narrow)]
        words = log.values[v : v + wide].tolist()
        sites.append(SiteLog(seq, numel, list(zip(near, digits, strict=True)), list(zip(far, words, strict=True))))
        g, c, v = g + gap_bytes, c + len(codes), v + wide
    return sites


def log_of(sites: list[SiteLog], scalars: np.ndarray) -> StepLog:
    """The inverse of ``entries_of``; a site without entries gets no row."""
    rows, gaps, codes, values = [], b"", [], []
    for s in sites:
        if not s.narrow and not s.wide:
            continue
        own = _gaps([i for i, _ in s.narrow]) + _gaps([i for i, _ in s.wide])
        rows.append((s.seq, s.numel, 0, len(s.narrow), len(s.wide), len(own)))
        gaps += own
        packed = [0] * ((len(s.narrow) + 3) // 4)
        for i, (_, code) in enumerate(s.narrow):
            packed[i // 4] |= code << (2 * (i % 4))
        codes += packed
        values += [word for _, word in s.wide]
    return StepLog(
        np.array(rows, "<u8").reshape(-1, 6), np.frombuffer(gaps, np.uint8), np.array(codes, np.uint8),
        np.array(values, "<u4"), scalars,
    )  # fmt: skip
