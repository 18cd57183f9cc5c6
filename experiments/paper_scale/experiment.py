"""The sizes of Srivastava, Arora and Boneh (NeurIPS 2024), trained here, audited under another profile.

ResNet-50 on 3x32x32 images (batch 64) and GPT-2 of 117 million parameters (batch 8 of 64 tokens), float32 target,
certified thresholds. Images are random and tokens are Python's help texts: the paper's data can't be downloaded here.
Beside it: the same training without a log (threshold off), and plain PyTorch in float64, each under both arithmetics.
``python -m experiments paper_scale [--steps N] [resnet50] [gpt2]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import load
from vtrain import children

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = load("paper_scale")
JOBS = ("resnet50", "gpt2")

AUDITOR = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "VTRAIN_CPU": "generic"}


def job_text(name: str, steps: int, threshold: str) -> str:
    """The job file, of so many steps under this threshold."""
    text = EXPERIMENT.job(name).read_text(encoding="utf-8")
    return text.replace("steps = 20", f"steps = {steps}").replace('"certified"', json.dumps(threshold))


def vtrain(profile: str, variables: dict[str, str], *arguments: str) -> tuple[float, str]:
    """Seconds and stdout of a command, which may end with 0 or 1."""
    start = time.perf_counter()
    done = children.run("-m", "vtrain", *arguments, profile=profile, variables=variables, capture_output=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr[-3000:])
    return time.perf_counter() - start, done.stdout


def both(folder: Path, name: str, steps: int, threshold: str) -> dict[str, Any]:
    """Train under ``native``, audit under ``baseline`` with other kernels and threads."""
    job, run = folder / "job.toml", folder / f"run-{threshold}"
    job.write_text(job_text(name, steps, threshold))
    trained, _ = vtrain("native", {}, "train", str(job), "--out", str(run))
    audited, out = vtrain("baseline", AUDITOR, "audit", str(run), "--json")
    verdict = json.loads(out)
    size = sum(f.stat().st_size for f in (run / "log.zarr").rglob("*") if f.is_file())
    keys = ("result", "firstBadStep", "what", "settled", "entries", "corrections", "violations")
    return {k: verdict[k] for k in keys} | {"train_s": trained, "audit_s": audited, "log_bytes": size}


def plain(text: str, steps: int) -> None:
    """Train a job in plain float64 and print digests of the weights after each step; a process of its own."""
    import torch

    from vtrain.engine.jobs.task import Task
    from vtrain.engine.seeded import seeded
    from vtrain.job import parse

    job = parse(tomllib.loads(text), "job")
    task = Task(job, Path())
    with seeded(0):
        model = task.model()
    model, device = model.double(), next(model.parameters()).device
    optimizer = task.optimizer(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # torch's own generator would differ too
    for step in range(1, steps + 1):
        batch, _ = task.batch(step)
        wide = {k: v.to(device, torch.float64 if v.is_floating_point() else v.dtype) for k, v in batch.items()}
        task.program.loss(model, wide).backward()
        optimizer.step()
        optimizer.zero_grad()
        digest = hashlib.sha256()
        for p in model.parameters():
            digest.update(p.detach().float().cpu().numpy().tobytes())
        print(digest.hexdigest(), flush=True)


def plain_differs(name: str, steps: int) -> int | None:
    """First step after which plain float64 training differs between the profiles, in weights rounded to float32."""
    found = []
    for profile in ("native", "baseline"):
        arguments = ("-m", "experiments", "paper_scale", "--plain", "--steps", str(steps), name)
        done = children.run(*arguments, profile=profile, folder=ROOT, capture_output=True, check=True)
        found.append(done.stdout.split())
    return next((i for i, (a, b) in enumerate(zip(*found, strict=True), 1) if a != b), None)


def measure(name: str, steps: int) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory(prefix="vtrain-paper-") as folder:
        logged = both(Path(folder), name, steps, "certified")
        off = both(Path(folder), name, steps, "off")
    return {"certified": logged, "off": off, "plain_float64_differs_at": plain_differs(name, steps)}


def table(name: str, steps: int, found: dict[str, Any]) -> str:
    """For people."""
    c, off = found["certified"], found["off"]
    first = found["plain_float64_differs_at"]
    return "\n".join(
        [
            f"{name}, {steps} steps, trained under native, audited under baseline",
            f"  certified: {c['result']}, {c['settled'] / (steps + 1):,.0f} values settled a step, "
            f"{c['entries'] / steps:,.0f} decisions, {c['log_bytes'] / steps / 1e3:,.1f} kB of log, "
            f"{c['corrections']} corrections, {c['violations']} violations in all; "
            f"training {c['train_s']:.0f} s, audit {c['audit_s']:.0f} s",
            f"  without a log: {off['result']}"
            + ("" if off["firstBadStep"] is None else f" at step {off['firstBadStep']} ({off['what']})"),
            "  plain float64: " + ("equal" if first is None else f"the weights, as float32, differ after step {first}"),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m experiments paper_scale", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name in given.models or JOBS:
        if given.plain:
            plain(job_text(name, given.steps, "off"), given.steps)
        else:
            print(table(name, given.steps, measure(name, given.steps)), flush=True)
