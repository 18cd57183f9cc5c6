"""What a run is, apart from what it was ordered to do: ``run.json``, whose SHA-256 every head names (protocol §1, §5).

A job says what to train, and two trainings of one job by one key are two runs. So each has a nonce of 16 random bytes.
A run recorded around somebody's own loop has a job that says next to nothing; there ``run.json`` also fixes the classes
of the model's modules, the optimizer's class, the digest of the initial state (names, shapes, dtypes and values of all
tensors), and the source files beside the script. It is written once, before the first head is signed. The first batch
is not in it, as the first head comes before that; the leaf of step 1 has its digest, and every later head covers it.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from vtrain.errors import MalformedRunError, UsageError, VersionError
from vtrain.store import canonical

RUN_FORMAT = "vtrain-run-v1"
MAX_BYTES = 16 << 20
MAX_ENTRIES = 100_000
_NONCE = re.compile(r"[0-9a-f]{32}")
_HEX = re.compile(r"[0-9a-f]{64}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,1000}")


@dataclass(frozen=True)
class LoopFacts:
    """What a recorded loop was begun with.

    Attributes:
        modules: name of each module's class, by the module's path in the model; the model itself is ``""``.
        optimizer: name of the optimizer's class; empty for none.
        state: state digest of step 0, as its leaf has it.
        sources: SHA-256 of the script and of the modules imported from its folder, hex, by path in that folder; as the
            files were when the recording began. Empty where no script runs, as in a notebook.
    """

    modules: Mapping[str, str]
    optimizer: str
    state: str
    sources: Mapping[str, str] = field(default_factory=dict)

    def unlike(self, other: LoopFacts) -> list[str]:
        """How the model's and optimizer's classes differ from another's, a line each; names are hostile in a run."""
        pairs = [(f"module {path!r}", *two) for path, *two in _differing(self.modules, other.modules)]
        if self.optimizer != other.optimizer:
            pairs.append(("the optimizer", self.optimizer, other.optimizer))
        return [f"{what} is {mine or 'missing'!r}, was {theirs or 'missing'!r}" for what, mine, theirs in pairs]

    def other_sources(self, other: LoopFacts) -> list[str]:
        """Paths of the source files that are not the same in both."""
        return [path for path, _, _ in _differing(self.sources, other.sources)]


def _differing(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[tuple[str, str, str]]:
    names = sorted({*mine, *theirs})
    return [(n, mine.get(n, ""), theirs.get(n, "")) for n in names if mine.get(n) != theirs.get(n)]


@dataclass(frozen=True)
class Identity:
    """What ``run.json`` says.

    Attributes:
        job: the job's digest, as text.
        nonce: 16 random bytes of this run, hex.
        loop: for a run recorded around a loop what it began with; None for the run of a job file, whose job says it.
    """

    job: str
    nonce: str
    loop: LoopFacts | None = None

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the file's bytes, 32 bytes: what heads name."""
        return hashlib.sha256(self.encode()).digest()

    def encode(self) -> bytes:
        """The file's bytes, canonical JSON.

        Raises:
            UsageError: names that ``parse_identity`` would refuse, or too many.
        """
        data = canonical.dumps({"format": RUN_FORMAT, **asdict(self)})
        try:
            parse_identity(data, self.job)
        except MalformedRunError as error:
            raise UsageError(str(error)) from error
        return data


def parse_identity(data: bytes, job: str) -> Identity:
    """Parse ``run.json``; hostile input.

    Args:
        data: the file's bytes.
        job: the digest of the run's job, as text, which it must name.

    What is not checked: that it describes a loop exactly where the job is a loop's.

    Raises:
        MalformedRunError: not canonical, other fields, values of the wrong form, or of another job.
        VersionError: of another version.
    """
    if len(data) > MAX_BYTES:
        raise MalformedRunError(f"run.json: {len(data)} bytes; expected at most {MAX_BYTES}")
    value = canonical.loads(data, where="run.json")
    if value.get("format") != RUN_FORMAT:
        raise VersionError(f"run.json: format {str(value.get('format'))[:64]!r}; this release reads {RUN_FORMAT}")
    _check_fields(value, {"format", "job", "nonce", "loop"}, "run.json")
    if value["job"] != job:
        raise MalformedRunError(f"run.json: is of job {str(value['job'])[:100]!r}; the run's is {job}")
    if not isinstance(value["nonce"], str) or not _NONCE.fullmatch(value["nonce"]):
        raise MalformedRunError(f"run.json: nonce {str(value['nonce'])[:64]!r}; expected 16 bytes in hex")
    return Identity(job, value["nonce"], None if value["loop"] is None else _loop(value["loop"]))


def _loop(value: Any) -> LoopFacts:
    _check_fields(value, {"modules", "optimizer", "state", "sources"}, "run.json: loop")
    for name, form in (("modules", _TEXT), ("sources", _HEX)):
        found = value[name]
        if not isinstance(found, dict) or len(found) > MAX_ENTRIES:
            raise MalformedRunError(f"run.json: {name} is no map of at most {MAX_ENTRIES} entries")
        for key, text in found.items():
            if not _TEXT.fullmatch(key) or not isinstance(text, str) or not form.fullmatch(text):
                raise MalformedRunError(f"run.json: {name}: bad entry {key[:60]!r}")
    if not all(isinstance(value[n], str) and _TEXT.fullmatch(value[n]) for n in ("optimizer", "state")):
        raise MalformedRunError("run.json: optimizer or state is no text of one line")
    return LoopFacts(**value)


def _check_fields(value: Any, wanted: set[str], where: str) -> None:
    if not isinstance(value, dict) or value.keys() != wanted:
        found = sorted(value)[:12] if isinstance(value, dict) else type(value).__name__
        raise MalformedRunError(f"{where}: fields {found}; expected {sorted(wanted)}"[:500])
