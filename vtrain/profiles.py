"""One CPU as several kinds of hardware: environments that change torch's arithmetic. Imports no torch.

The variables are read once, when a process starts; so a profile means a new process.
"""

from __future__ import annotations

import os

# MKL heeds MKL_ENABLE_INSTRUCTIONS on Intel's processors only; MKL_CBWR=COMPATIBLE takes its oldest code path on all.
PROFILES: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
DEVICE = "VTRAIN_DEVICE"  # where a process's jobs run, as torch names it
PROFILE_VARIABLES = tuple(PROFILES["baseline"])


def profile_environment(name: str) -> dict[str, str]:
    """This process's environment with another arithmetic."""
    env = {k: v for k, v in os.environ.items() if k not in PROFILE_VARIABLES}
    return {**env, **PROFILES[name]}


def profile() -> str:
    """Name of the profile that this process runs under, or ``custom``."""
    here = {k: os.environ[k] for k in PROFILE_VARIABLES if k in os.environ}
    return next((name for name, env in PROFILES.items() if env == here), "custom")
