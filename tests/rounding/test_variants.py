"""The instruction sets give the same bytes: one big mixed tensor through every kernel, in a process for each."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding_helpers import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    RESTRICTED,
    full_scale,
    hard_array,
    hard_widths,
    last_bit_scale,
    replay,
    settle,
)

from vtrain import kernels
from vtrain.rounding.scale import Scale

VARIANTS = ["generic", "avx2", "avx512"]


def digest_of_everything() -> list[str]:
    """Settled logs and values, replays, reductions: a digest of the bytes of each."""
    found = []

    def add(*parts: bytes) -> None:
        found.append(hashlib.sha256(b"".join(parts)).hexdigest())

    n = 4 * 97 * 129  # two threads, and no multiple of any vector
    for fmt in (FLOAT32, BFLOAT16, FLOAT16, RESTRICTED[7]):
        y = hard_array(fmt, n, seed=1)
        w = hard_widths(fmt, y, seed=2)
        rng = np.random.default_rng(3)
        row, col, bias = (torch.from_numpy(rng.uniform(0, 2.0**-fmt.p, k)) for k in (4 * 97, 4 * 129, 129))
        combined = Scale("test", 1, 1.0, (4, 97, 129), row=row, col=col, bias=bias)
        relative = Scale("test", 1, 1.0, (1, 1, n), relative=True)
        for t in (torch.from_numpy(y), torch.from_numpy(y).float()):
            for s, tau in ((full_scale(w), 1.0), (combined, 0.5), (relative, 2.0**-fmt.p)):
                log, out = settle(t, s, fmt, "auto", tau, 2.0**-140)
                add(repr(log).encode(), out.view(torch.uint8).numpy().tobytes())
                got = replay(torch.nextafter(t, torch.zeros_like(t)), s, fmt, log, tau, 2.0**-139)
                add(repr((got.fault, got.corrections, got.index)).encode(), got.out.view(torch.uint8).numpy().tobytes())
        add(repr(settle(*last_bit_scale(fmt, 67), fmt, "sparse")[0]).encode())
    x = torch.from_numpy(np.random.default_rng(4).standard_normal((3, 131, 257)) * 1e3)
    for t in (x, x.float(), x.bfloat16(), x.float().mT, x.mT, x[:, ::2, 1::3], x[0], x[:, :, :5]):
        add(*(r.numpy().tobytes() for r in (kernels.norms(t), *kernels.sums(t), kernels.squares(t))))
    return found


def in_process(variant: str) -> list[str]:
    """The digests as computed with one instruction set; skips if the processor lacks it."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", "import test_variants as t; print(t.kernels.variant(), *t.digest_of_everything())"],
        env={**os.environ, "VTRAIN_CPU": variant, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "which this processor lacks" in done.stderr:
        pytest.skip(f"this processor lacks {variant}")
    assert done.returncode == 0, done.stderr
    used, *digests = done.stdout.split()
    assert used == variant
    return digests


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_give_the_same_bytes(variant: str) -> None:
    if variant == kernels.variant():
        pytest.skip("the one that this process uses and the others are compared with")
    got, want = in_process(variant), digest_of_everything()
    assert [i for i, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1]] == []


def test_an_unknown_variant_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from vtrain.kernels import _host; _host.variant()"],
        env={**os.environ, "VTRAIN_CPU": "sse9", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "want generic, avx2 or avx512" in done.stderr


def test_the_number_of_threads_changes_nothing() -> None:
    before = torch.get_num_threads()
    digests = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            digests.append(digest_of_everything())
    finally:
        torch.set_num_threads(before)
    assert digests[0] == digests[1] == digests[2]
