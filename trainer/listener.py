"""The listener that makes a trainer: settles, and logs what was in doubt (numerics §3, §4)."""

from __future__ import annotations

import numpy as np
import torch

from trainer.calibration import Calibration, thresholds
from vtrain import kernels
from vtrain.engine.listener import ScaleFn, Site, Vary, round_result
from vtrain.engine.workspace import result
from vtrain.errors import UnsupportedOperation
from vtrain.kernels import canonical
from vtrain.kernels.device import has_kernels
from vtrain.policy import Policy
from vtrain.rounding import generic
from vtrain.rounding.scale import Scale
from vtrain.rounding.threshold import ADAPTING, Threshold
from vtrain.store.steplog import SITE_COLUMNS, StepLog


def _check_found(site: Site, found: int) -> None:
    """Refuse a result of which an auditor could accept no value, or would have to accept any."""
    if found == kernels.ENDLESS:
        raise UnsupportedOperation(f"{site.name}: the error bound of a finite value is infinite")


class Recorder:
    """Logs one run's rounding decisions, a step at a time.

    Args:
        policy: threshold and encoding.

    Attributes:
        calibration: what adaptive thresholds are being made of; None once they are, and under other policies.
        values: settled since the last ``take``.
    """

    def __init__(self, policy: Policy) -> None:
        self.threshold = policy.parsed_threshold
        self.calibration: Calibration | None = None
        if self.threshold.kind in ADAPTING:
            if policy.calibration:
                self.calibrated(policy.differences)
            else:
                self.calibration = Calibration()
        self._sink = kernels.Sink(kernels.ENCODINGS[policy.encoding])
        self._scalars: list[float] = []
        self.values = 0

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Round y and log the elements in doubt."""
        if self.threshold.kind == "off":
            return round_result(y, site.fmt, site.signed)
        s = scale()
        width = self.threshold.width(s.kind, s.length, s.kappa, s.compute, site.fmt.container)
        assert width is not None
        self.values += y.numel()
        if self.calibration is not None and vary is not None and self.threshold.adapts(site.fmt.container):
            # y may live in scratch memory that `vary` uses too
            y = y.clone()
            self.calibration.observe(s, y, vary())
        if y.device.type != "cpu":
            return self._settle_elsewhere(site, y, s, *width)
        out = result(y.shape, generic.container(site.fmt))
        geometry = kernels.geometry(y, out, s.shape, site.signed)
        key = kernels.scale_key(s, *width)
        found = self._sink.settle(site.seq, geometry, site.fmt.key, key, s.empty is not None)
        if found == kernels.ZEROS:
            s = s.refined(y)
            found = self._sink.settle(site.seq, geometry, site.fmt.key, kernels.scale_key(s, *width), False)
        _check_found(site, found)
        return out

    def _settle_elsewhere(self, site: Site, y: torch.Tensor, s: Scale, tau: float, eta: float) -> torch.Tensor:
        find = canonical.in_doubt if has_kernels(y.device) else generic.in_doubt
        found = find(y, s, tau, eta, site.fmt, site.signed)
        if s.empty is not None and int((found[1] == 0).sum()) > kernels.FEW_ZEROS:
            found = find(y, s.refined(y), tau, eta, site.fmt, site.signed)
        index, values, w = (t.cpu().numpy() for t in found)
        entries = index.tobytes(), values.tobytes(), w.tobytes()
        _check_found(site, self._sink.add(site.seq, y.numel(), site.fmt.key, *entries))
        return round_result(y, site.fmt, site.signed)

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """Nothing to log."""

    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """Record a host scalar."""
        self._scalars.append(value)
        return value

    def take(self) -> StepLog:
        """The finished step's log; recording starts anew."""
        sites, gaps, codes, values = self._sink.take()
        scalars = np.array(self._scalars, dtype="<f8").view("<u8")
        self._scalars, self.values = [], 0
        return StepLog(
            sites=np.frombuffer(sites, "<u8").reshape(-1, SITE_COLUMNS),
            gaps=np.frombuffer(gaps, np.uint8),
            codes=np.frombuffer(codes, np.uint8),
            values=np.frombuffer(values, "<u4"),
            scalars=scalars,
        )

    def calibrated(self, differences: dict[str, float]) -> None:
        """Use calibrated thresholds from the next step on."""
        self.threshold = Threshold(self.threshold.kind, table=thresholds(differences))
        self.calibration = None
