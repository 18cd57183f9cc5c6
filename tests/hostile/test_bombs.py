"""Little on the disk, GiBs in memory: each in a process that may map 1 GiB more than it begins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numcodecs
import pytest
from calling import limited, refused
from guard import GIB
from run_helpers import audited
from simulator import Enemy, shard

from vtrain.errors import LogError, PathError
from vtrain.store.logformat import COLUMN_SPECS

MIB = 1 << 20
SCALARS = "log.zarr/000004/scalars/c/0"


def frame(size: int, declared: int, window: int = 0x58) -> bytes:
    """A zstd frame of ``size`` zeros with a header that says what it likes (RFC 8878 §3.1.1.1).

    Args:
        size: bytes that its blocks hold.
        declared: content size in its header.
        window: the window's size, exponent and mantissa; 2 MiB by default.
    """
    made = numcodecs.Zstd(level=3, checksum=True).encode(bytes(size))
    assert made[4] >> 6 == 2, "four bytes of content size"
    blocks = made[9:] if made[4] & 0x20 else made[10:]
    return made[:4] + bytes([0x84, window]) + declared.to_bytes(4, "little") + blocks


CHUNK = COLUMN_SPECS["scalars"].chunk * 8
FRAMES: dict[str, tuple[bytes, str]] = {
    "of 4 GiB, and says so": (frame(MIB, 2**32 - 1), "holds 4294967295 bytes; expected 131072"),
    "of 256 MiB, and says less": (frame(256 * MIB, CHUNK), "corrupt"),
    "with a window of 3.75 TiB": (frame(256 * MIB, CHUNK, 0xFF), "corrupt"),
    "of no declared size": (b"\x28\xb5\x2f\xfd\x04\x58" + frame(MIB, 0)[10:], "holds None bytes"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_zstd_frame(run: Path, case: str) -> None:
    data, text = FRAMES[case]
    (run / SCALARS).write_bytes(shard(COLUMN_SPECS["scalars"], [data]))
    refused(run, LogError, text)
    limited("verify", run, code=3, text=text, memory=GIB // 4)


def test_two_frames_in_a_chunk(run: Path) -> None:
    """The second would be read where a decoder goes on to the next frame."""
    data = numcodecs.Zstd(level=3, checksum=True).encode(bytes(CHUNK)) + frame(64 * MIB, 64 * MIB)
    (run / SCALARS).write_bytes(shard(COLUMN_SPECS["scalars"], [data]))
    refused(run, LogError)
    limited("verify", run, code=3, memory=GIB // 4)


def test_scalars_without_end(run: Path) -> None:
    """2 GiB of host scalars in 300 KB of files, committed to and signed."""
    with Enemy(run) as enemy:
        enemy.zeros(4, 4, {"scalars": 1 << 28})
    refused(run, LogError, "expected at most")
    limited("verify", run, code=3, text="expected at most", memory=GIB // 4)


def test_scalars_of_one_step_in_a_long_segment(run: Path) -> None:
    """Within what all the segment's steps may have together, and too many for one."""
    with Enemy(run) as enemy:
        enemy.zeros(4, 4, {"scalars": (1 << 20) + 1000})
    refused(run, LogError, "step 4: scalars has .* elements; its sites allow 1048576")


def doubt(run: Path) -> None:
    """A result of 2^32 elements, half of them in doubt: 2.5 GiB of log, committed to and signed."""
    count = 1 << 31
    with Enemy(run) as enemy:
        enemy.sites(4, ["aten.mm.default bfloat16in32[65536, 65536]"])
        enemy.zeros(4, 4, {"gaps": count, "codes": count // 4}, (0, 1 << 32, 0, count, 0, count))


def hole(run: Path) -> None:
    """A tensor of 1.25 GiB of zeros, a hole in a file; committed to and signed."""
    with Enemy(run) as enemy:
        enemy.sparse(4, "optimizer", 1280 * MIB)


@pytest.mark.parametrize("spoil", [doubt, hole])
def test_well_formed_and_large(run: Path, spoil: Callable[[Path], None]) -> None:
    """Without repeating the steps nothing is wrong with it: ``verify`` reads it in parts."""
    spoil(run)
    limited("verify", run, code=0, text="well-formed", memory=GIB // 4)


@pytest.mark.slow
def test_audit_of_a_result_that_nobody_has(run: Path) -> None:
    """An audit needs a step's log in memory. Where there is not as much, it says so."""
    doubt(run)
    limited("audit", run, code=4, text="step 4: a log of 2684354608 bytes does not fit into memory")


@pytest.mark.slow
def test_audit_of_a_checkpoint_that_takes_no_room_on_the_disk(run: Path) -> None:
    """Refuted when the steps before it are repeated; too large for the job's model where they are not."""
    hole(run)
    limited("audit", run, code=1, text="first bad step 4: state", memory=GIB // 2)
    limited("audit", run, "--steps", "5:6", code=3, text="expected at most", memory=GIB // 2)


def test_checkpoint_too_large_for_the_model(run: Path) -> None:
    with Enemy(run) as enemy:
        enemy.sparse(4, "optimizer", 128 * MIB)
    with pytest.raises(PathError, match="expected at most"):
        audited(run, steps=(5, 6))


def test_limits_are_felt(run: Path) -> None:
    """A process under the limit that maps more fails: so what passes above took less."""
    from guard import peak

    assert peak() > 10 * MIB
    with pytest.raises(AssertionError):
        limited("verify", run, code=0, memory=1)
