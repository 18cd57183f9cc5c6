"""``make bench``: our step against plain PyTorch's on this machine, in one run, as ratios of medians.

Each round takes one step of each kind, one after the other, so that a slow moment of the machine hits all of them.
``python -m benchmarks.bench [--rounds N] [--json] [MODEL ...]``
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import BENCHES, Bench, optimizer, quiet, train_step
from vtrain import children
from vtrain.policy import Policy

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("plain float32", "plain float64", "record", "replay")


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def recorded_steps(bench: Bench, path: Path, steps: int, **policy: Any) -> dict[str, int]:
    """Record a run; bytes of its log on disk and values settled, per step after calibration."""
    from auditor.evidence import open_run
    from auditor.evidence.sites import numel
    from trainer import record

    torch.manual_seed(0)
    batch, wanted = bench.batch(), Policy(**{**bench.policy, **policy})
    # a segment a step: what one step takes on disk is then to be seen
    with record(path, model=bench.model(), optimizer=optimizer, policy=wanted, checkpoint_every=1) as run:
        for _ in range(steps):
            with run.step(batch):
                run.metric(loss=train_step(bench, run.model, run.optimizer, batch))
    last = path / "log.zarr" / f"{steps:06d}"
    evidence = open_run(path)
    log = evidence.log(steps)
    return {
        "log_bytes_on_disk": sum(f.stat().st_size for f in last.rglob("*") if f.is_file()),
        "log_bytes_raw": sum(getattr(log, c).nbytes for c in ("sites", "gaps", "codes", "values", "scalars")),
        "decisions": int(log.sites[:, 3:5].sum()),
        "settled": sum(map(numel, evidence.sites(steps))),
    }


def times(bench: Bench, folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each kind."""
    from auditor import replay
    from trainer import record

    warm, batch, policy = 3, bench.batch(), Policy(**bench.policy)
    total = warm + rounds

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        return bench.model()

    with record(folder / "a", model=fresh(), optimizer=optimizer, policy=policy, checkpoint_every=10**6) as run:
        for _ in range(total):
            with run.step(batch):
                train_step(bench, run.model, run.optimizer, batch)
    plain = {"plain float32": fresh(), "plain float64": fresh().double()}
    optimizers = {kind: optimizer(model) for kind, model in plain.items()}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    recording = record(folder / "b", model=fresh(), optimizer=optimizer, policy=policy, checkpoint_every=10**6)
    with recording as mine, replay(folder / "a", model=fresh(), optimizer=optimizer) as theirs:

        def ours(run: Any) -> None:
            with run.step(batch):
                train_step(bench, run.model, run.optimizer, batch)

        for i in range(total):
            for kind in KINDS:
                if kind in plain:
                    seconds = timed(lambda k=kind: train_step(bench, plain[k], optimizers[k], batch))  # type: ignore[misc]
                else:
                    seconds = timed(lambda k=kind: ours(mine if k == "record" else theirs))  # type: ignore[misc]
                if i >= warm:
                    found[kind].append(seconds)
    assert theirs.verdict.verified, theirs.verdict
    return {kind: statistics.median(values) for kind, values in found.items()}


def peak_memory(name: str, kind: str) -> dict[str, float]:
    """MiB of a process that takes four steps: at its peak, and before the first step."""
    arguments = ("-m", "benchmarks.bench", "--memory", kind, name)
    done = children.run(*arguments, folder=ROOT, capture_output=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def high_water() -> float:
    """MiB of memory that this process has held at its peak (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status")


def measure_memory(bench: Bench, kind: str) -> None:
    """Print this process's memory as JSON; run in a process of its own."""
    from trainer import record

    batch, model = bench.batch(), bench.model()
    before = high_water()
    if kind == "plain":
        opt = optimizer(model)
        for _ in range(4):
            train_step(bench, model, opt, batch)
    else:
        with tempfile.TemporaryDirectory() as folder:
            policy = Policy(**bench.policy)
            with record(Path(folder, "r"), model=model, optimizer=optimizer, policy=policy, checkpoint_every=99) as run:
                for _ in range(4):
                    with run.step(batch):
                        train_step(bench, run.model, run.optimizer, batch)
    print(json.dumps({"before": before, "peak": high_water()}))


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory(prefix="vtrain-bench-") as folder:
        seconds = times(bench, Path(folder), rounds)
        steps = 4
        logs = {
            encoding: recorded_steps(bench, Path(folder, encoding), steps, encoding=encoding)
            for encoding in ("sparse", "ternary", "auto")
        }
    plain, ours = (peak_memory(bench.name, kind) for kind in ("plain", "record"))
    return {
        "seconds": seconds,
        "over_float32": {k: seconds[k] / seconds["plain float32"] for k in KINDS},
        "over_float64": {k: seconds[k] / seconds["plain float64"] for k in KINDS},
        "replay_over_record": seconds["replay"] / seconds["record"],
        "log": logs,
        "paper_dense_bytes": -(-logs["auto"]["settled"] // 5),
        "memory": {"plain": plain, "record": ours, "ratio": ours["peak"] / plain["peak"]},
    }


def table(name: str, found: dict[str, Any]) -> str:
    """The figures for people."""
    log, memory = found["log"], found["memory"]
    lines = [name]
    for kind in KINDS:
        ratios = (
            f"{found['over_float32'][kind]:6.2f} x plain float32 {found['over_float64'][kind]:6.2f} x plain float64"
        )
        lines.append(f"  {kind:14} {found['seconds'][kind] * 1e3:8.1f} ms {ratios}")
    lines.append(f"  an audit costs {found['replay_over_record']:.2f} x the recording")
    auto = log["auto"]
    share = auto["decisions"] / auto["settled"]
    lines.append(f"  values settled a step {auto['settled']:,}, in doubt {auto['decisions']:,} ({share:.4%})")
    sizes = ", ".join(f"{e} {log[e]['log_bytes_raw'] / 1e3:.1f} kB" for e in ("sparse", "ternary", "auto"))
    lines.append(f"  log a step: {sizes}; on disk {auto['log_bytes_on_disk'] / 1e3:.1f} kB")
    lines.append(f"  a dense ternary log of every value would take {found['paper_dense_bytes'] / 1e3:,.0f} kB")
    lines.append(
        f"  peak memory {memory['record']['peak']:.0f} MiB, plain float32 {memory['plain']['peak']:.0f} MiB "
        f"({memory['ratio']:.2f} x; {memory['plain']['before']:.0f} MiB before the first step)"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", choices=("plain", "record"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet()
    names = arguments.models or list(BENCHES)
    if arguments.memory:
        measure_memory(BENCHES[names[0]], arguments.memory)
        return
    everything = {}
    for name in names:
        everything[name] = measure(BENCHES[name], arguments.rounds)
        if not arguments.json:
            print(table(name, everything[name]), flush=True)
    if arguments.json:
        print(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()
