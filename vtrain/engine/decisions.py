"""Settling by a log: what every replaying listener does with a result (numerics §5)."""

from __future__ import annotations

import numpy as np
import torch

from vtrain import kernels
from vtrain.engine.listener import ScaleFn, Site, round_result
from vtrain.engine.workspace import result
from vtrain.rounding import generic
from vtrain.rounding.bounds import eta_certified, tau_certified
from vtrain.store.steplog import StepLog

FAULTS = {
    1: "a distance between entries is zero, so that one is repeated, or is no number",
    2: "an entry's index is repeated or beyond the result",
    3: "its entries are not as many as it says",
    4: "an entry is no value next to the auditor's own",
    5: "a ternary byte is above 242",
    6: "a logged value lies outside the certified bound",
}
OUTSIDE = 6
# Of each byte of a ternary code, which of its five digits name a decision.
_DIGITS = (np.arange(256)[:, None] // 3 ** np.arange(5) % 3) != 1


NO_LOG = StepLog(
    np.empty((0, 6), "<u8"), np.empty(0, np.uint8), np.empty(0, np.uint8), np.empty(0, "<u4"), np.empty(0, "<u8")
)


class Decisions:
    """One step's log, taken site by site.

    Args:
        log: the step's; its columns must be as many as its sites say (``check_step``).
    """

    def __init__(self, log: StepLog) -> None:
        self._log = log
        self._last: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._rows: dict[int, tuple[int, int, int, int]] = {}  # seq -> row, offsets into gaps, codes, values
        gaps = codes = values = 0
        for row, (seq, numel, encoding, narrow, wide, gap_bytes) in enumerate(log.sites.tolist()):
            self._rows[seq] = (row, gaps, codes, values)
            gaps += gap_bytes
            codes += _code_bytes(numel, encoding, narrow)
            values += wide

    @property
    def left(self) -> list[int]:
        """Sites whose entries nobody has taken, ascending."""
        return sorted(self._rows)

    @classmethod
    def empty(cls) -> Decisions:
        """No decisions: every result is rounded as it is computed."""
        return cls(NO_LOG)

    def columns(self, seq: int) -> dict[str, bytes] | None:
        """A site's part of the log, as it is stored; None where it has none."""
        found = self._rows.get(seq)
        if found is None:
            return None
        row, g, c, v = found
        _, numel, encoding, narrow, wide, gap_bytes = self._log.sites[row].tolist()
        return {
            "row": self._log.sites[row].tobytes(),
            "gaps": self._log.gaps[g : g + gap_bytes].tobytes(),
            "codes": self._log.codes[c : c + _code_bytes(numel, encoding, narrow)].tobytes(),
            "values": self._log.values[v : v + wide].tobytes(),
        }

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn) -> tuple[torch.Tensor, kernels.Replayed | None, int]:
        """Round y, taking the site's decisions, each checked against the certified half-width.

        Returns:
            The rounded result; what the log's replay found, None where the site has no entries; number of entries.
        """
        columns, found = self.columns(site.seq), self._rows.pop(site.seq, None)
        if columns is None or found is None:
            return round_result(y, site.fmt, site.signed), None, 0
        self._last = found
        _, numel, encoding, narrow, wide, _ = self._log.sites[found[0]].tolist()
        device, s = y.device, scale()
        if device.type != "cpu":
            y, s = y.cpu(), s.cpu()
        key = kernels.scale_key(s, tau_certified(s.kappa, s.compute), eta_certified(s.kappa, s.compute))
        out = result(y.shape, generic.container(site.fmt))
        geometry = kernels.geometry(y, out, s.shape, site.signed)
        row = (numel, encoding, narrow, wide)
        replayed = kernels.replay(geometry, site.fmt, key, row, *_bytes(columns))
        if s.empty is not None and not replayed.fault and bool((y.reshape(-1)[self.taken()] == 0).any()):
            # Sums of zeros are zero on any hardware: their scale is 0, whatever the norms say.
            s = s.refined(y)
            key = kernels.scale_key(s, tau_certified(s.kappa, s.compute), eta_certified(s.kappa, s.compute))
            replayed = kernels.replay(geometry, site.fmt, key, row, *_bytes(columns))
        return out if device.type == "cpu" else out.to(device), replayed, narrow + wide

    def taken(self) -> np.ndarray:
        """Flat indices, int64, of the entries that ``settle`` took last, if it found no fault; in no order."""
        row, g, c, _ = self._last
        _, numel, encoding, narrow, _whole, gap_bytes = self._log.sites[row].tolist()
        distances = _numbers(self._log.gaps[g : g + gap_bytes])
        if not encoding:
            short, whole = distances[:narrow], distances[narrow:]
            return np.concatenate([np.cumsum(short, dtype=np.int64), np.cumsum(whole, dtype=np.int64)]) - 1
        codes = self._log.codes[c : c + _code_bytes(numel, encoding, narrow)]
        return np.concatenate([np.flatnonzero(_DIGITS[codes]), np.cumsum(distances, dtype=np.int64) - 1])


def _numbers(data: np.ndarray) -> np.ndarray:
    """LEB128 numbers below 2^63, written without a fault."""
    if not data.size or data.max() < 0x80:
        return data
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(data.size) - np.repeat(starts, ends - starts + 1)
    return np.add.reduceat((data & 0x7F).astype(np.int64) << (7 * place), starts)


def _bytes(columns: dict[str, bytes]) -> tuple[bytes, bytes, bytes]:
    return columns["gaps"], columns["codes"], columns["values"]


def _code_bytes(numel: int, encoding: int, narrow: int) -> int:
    return (numel + 4) // 5 if encoding else (narrow + 3) // 4
