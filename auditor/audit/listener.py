"""The listener that makes an auditor: settles by the log, checks every entry, compares every leaf (numerics §5)."""

from __future__ import annotations

import ctypes
import functools
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from auditor.audit.statistics import DecisionStatistics
from auditor.evidence import Evidence
from auditor.evidence.decimal import metric
from auditor.verdict.counts import Counts
from vtrain import kernels
from vtrain.commit.digest import StateDigest
from vtrain.commit.leaf import Leaf
from vtrain.engine import state
from vtrain.engine.active import active_engine
from vtrain.engine.callsite import short_line
from vtrain.engine.decisions import FAULTS, OUTSIDE, Decisions
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.engine.loops.loop import StepEnd
from vtrain.errors import CheckpointError, Refuted

# Elements in which the run's value is taken, by step and number of the result: flat indices, and words of the result's
# container.
Repairs = Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]]


def _final(method: Callable[..., Any]) -> Callable[..., Any]:
    """A finding is final when it is made: whatever the program catches, every later call raises it again."""

    @functools.wraps(method)
    def run(self: Replayer, *args: Any, **kwargs: Any) -> Any:
        if self.finding is not None:
            raise self.finding.again()
        try:
            return method(self, *args, **kwargs)
        except Refuted as found:
            self.finding = found if self.judges else None
            raise

    return run


class Replayer:
    """Replays a run's steps against its evidence.

    Args:
        evidence: the opened run.
        scalar_ulps: by how much a recomputed operand of plain arithmetic may differ, in float64 ulps.
        repairs: where the run's value is taken although the auditor's rounding is another one: what disputes found to
            be benign.
        seed: decides which decisions are examined where there are too many; empty for one that nobody knows.

    Attributes:
        counts: so far.
        finding: the first difference, once there is one; whoever drives the replay must look here, as the program may
            have caught the error.
        judges: whether a difference is a finding.

    Raises:
        Refuted: by any method: the first difference, with step and what differs.
    """

    judges = True

    def __init__(self, evidence: Evidence, scalar_ulps: int, repairs: Repairs | None = None, seed: bytes = b"") -> None:
        self._evidence = evidence
        self._ulps = scalar_ulps
        self._repairs: Repairs = {} if repairs is None else repairs
        self._examiner = DecisionStatistics(seed)
        self.counts = Counts(freedom=self._examiner.freedom)
        self.finding: Refuted | None = None
        self._sites: list[str] = []
        self._decisions = Decisions.empty()
        self._scalars: list[float] = []
        self._used = 0

    # ---- steps ----------------------------------------------------------------------------------------------------
    def has(self, step: int, batch: Mapping[str, str]) -> bool:
        """Whether the run has this step with this batch; True once there is a finding, which ``begin_step`` repeats."""
        if self.finding is not None:
            return True
        return step <= self._evidence.last_step and self._leaf(step).batch == batch

    @_final
    def begin_step(self, step: int, batch: Mapping[str, str]) -> None:
        """Compare the batch, and open the step's log."""
        if step > self._evidence.last_step:
            raise Refuted(step, "steps", f"the run ends at step {self._evidence.last_step}")
        leaf = self._leaf(step)
        _same_map(step, "data", leaf.batch, batch, "the batch")
        log = self._evidence.log(step)
        self._sites = self._evidence.sites(step)
        self._decisions = Decisions(log)
        self._scalars, self._used = log.scalars.view("<f8").tolist(), 0

    @_final
    def end_step(self, done: StepEnd, files: Callable[[], state.Files]) -> None:
        """Compare what the step's leaf commits to."""
        leaf = self._leaf(done.step)
        self._examiner.flush()
        if done.sites != leaf.sites:
            have = len(json.loads(done.program)["sites"])
            left = f"; the run goes on with {self._sites[have]}" if have < len(self._sites) else ""
            why = f"the step ends after {have} results here, {len(self._sites)} in the run{left}"
            raise Refuted(done.step, "sites", why)
        if self._used != len(self._scalars):
            why = f"operations were given {self._used} numbers in the step here, {len(self._scalars)} in the run"
            raise Refuted(done.step, "scalars", why)
        if self._decisions.left:
            raise Refuted(done.step, "log", f"entries for site {self._decisions.left[0]}, which the step does not have")
        _same_map(done.step, "loss", leaf.metrics, done.metrics, "metrics", metric)
        if leaf.state:
            self._same_state(done.step, leaf, files)
        self.counts.steps += 1

    def _leaf(self, step: int) -> Leaf:
        return self._evidence.leaves[step]

    def _same_state(self, step: int, leaf: Leaf, files: Callable[[], state.Files]) -> None:
        mine = state.digest(files())
        if mine.text != leaf.state:
            raise Refuted(step, "state", self._what_differs(step, mine))

    def _what_differs(self, step: int, mine: StateDigest) -> str:
        """Names of the tensors that differ, if the run's checkpoint is what its leaf says."""
        try:
            theirs = self._evidence.state(step)
        except CheckpointError as error:
            return f"the state digest differs; which tensors, can't be said: {error}"
        names = sorted(set(mine.tensors) | set(theirs.tensors))
        differ = [n for n in names if mine.tensors.get(n) != theirs.tensors.get(n)]
        if not differ:
            return "the leaf's state digest is not that of the checkpoint, which is right"
        return (
            f"{len(differ)} of {len(names)} tensors differ: {', '.join(differ[:8])}{' ...' if len(differ) > 8 else ''}"
        )

    # ---- the listener ---------------------------------------------------------------------------------------------
    @_final
    def scalar(self, step: int, position: int, value: float, plain: bool = False) -> float:
        """The auditor's own host scalar, if the run has it too (numerics §2)."""
        if position >= len(self._scalars):
            raise Refuted(step, "scalars", f"{_operation()}: {value!r} here; no more numbers in the run")
        self._used = position + 1
        recorded = self._scalars[position]
        if not same_scalar(recorded, value, self._ulps if plain else 0):
            raise Refuted(step, "scalars", f"{_operation()}: {recorded!r} in the run, {value!r} here")
        return value

    @_final
    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        """Round y; where the log has entries, take them if they lie within the certified bound."""
        self._same_site(site)
        self.counts.freedom.settled += y.numel()
        once = functools.cache(scale)
        out, found, entries = self._decisions.settle(site, y, once)
        repair = self._repairs.get((site.step, site.seq))
        if found is not None and found.fault:
            if repair is None:
                self._refute(site, found)
            # a dispute found the run's values to be within the bound all the same
            out, found = Decisions.empty().settle(site, y, once)[0], None
        if repair is not None:
            out = self._repaired(site, out)
            self._examiner.repaired(site, y, out, once, repair[0])
        if found is not None:
            self.counts.decided(site.step, entries, found.corrections)
            self._examiner.examine(site, y, out, once, vary, self._decisions.taken)
        return out

    def _repaired(self, site: Site, out: torch.Tensor) -> torch.Tensor:
        found = self._repairs.get((site.step, site.seq))
        if found is None:
            return out
        words = out.cpu().reshape(-1).view(torch.uint8).numpy().view(f"<u{out.element_size()}")
        words[found[0]] = found[1]
        return out.copy_(torch.from_numpy(words.view(np.uint8)).view(out.dtype).view(out.shape))

    @_final
    def canonical(self, site: Site, out: torch.Tensor) -> None:
        """Compare the site: with the same sites and the same inputs, the bits are the same."""
        self._same_site(site)
        self.counts.canonical += math.prod(site.shape)

    def _same_site(self, site: Site) -> None:
        wanted = self._sites[site.seq] if site.seq < len(self._sites) else "no more results"
        if wanted != str(site):
            raise Refuted(site.step, "sites", f"result {site.seq}, at {short_line()}: {wanted} in the run, {site} here")

    def _refute(self, site: Site, found: kernels.Replayed) -> None:
        what = FAULTS.get(found.fault, f"fault {found.fault}")
        where = f"result {site.seq} ({site}), at {short_line()}, element {found.index}"
        if found.fault == OUTSIDE:
            what += f": logged {found.logged!r}, computed {found.y!r} +- {found.w:.3g}"
        raise Refuted(site.step, "log", f"{where}: {what}")


def _operation() -> str:
    """What is under way, and where it was called."""
    engine = active_engine()
    return f"{engine.op.removesuffix('.default') if engine else 'an operation'} at {short_line()}"


def _same_map(
    step: int, what: str, theirs: Mapping[str, str], mine: Mapping[str, str], label: str,
    shown: Callable[[str], str] = str,
) -> None:  # fmt: skip
    """Compare digests or bits by name; the first name that differs is named, and what ``shown`` makes of its values."""
    for name in sorted({*theirs, *mine}):
        if theirs.get(name) != mine.get(name):
            found, here = (shown(values.get(name, "nothing")) for values in (theirs, mine))
            raise Refuted(step, what, f"{label} differs in {name or 'its content'!r}: {found} in the run, {here} here")


def same_scalar(recorded: float, value: float, ulps: int) -> bool:
    """Whether two host scalars are one: in every bit, or within ``ulps`` and alike for whoever rounds them to float32.

    The second never tells a zero or an infinity from a number, or one sign from another: float32 could. NaN is NaN.
    """
    if recorded == value:
        return recorded != 0 or math.copysign(1, recorded) == math.copysign(1, value)
    if recorded != recorded or value != value:
        return recorded != recorded and value != value
    return (
        math.isfinite(recorded)
        and math.isfinite(value)
        and (recorded > 0) == (value > 0)
        and recorded != 0 != value
        and abs(_ordered(recorded) - _ordered(value)) <= ulps
        and ctypes.c_float(recorded).value == ctypes.c_float(value).value
    )


def _ordered(x: float) -> int:
    bits = struct.unpack("<q", struct.pack("<d", x))[0]
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF)
