"""The job: everything that decides the bits, parsed once and frozen (protocol §1)."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import rfc8785
from pydantic import Field, ValidationError, field_validator, model_validator

from vtrain.errors import JobError, MalformedRunError, VersionError
from vtrain.policy import Frozen, Policy, explain

FORMAT = 1
JOB_DIGEST = "vtrain-job-v1-sha256"
MAX_BYTES = 1 << 20
MOST_FILES, MOST_PATH = 1000, 500
_SHA256 = re.compile("[0-9a-f]{64}|")
Config = dict[str, str | int | float | bool | list[int] | list[float] | list[str]]


class ProgramSpec(Frozen):
    """Where the model and its loss come from.

    Attributes:
        entry: ``package.module:function`` or ``path/to/file.py:function`` (relative to the job file).
        sha256: of the source file; filled in when a run starts, checked where it is given.
        files: SHA-256 of each other source file that it imports from its own folder, by path from there; empty where
            it is open. Filled in when a run starts, checked where it is given.
        weights: SHA-256 of each file that it reads its initial weights from, by path from that folder; empty where it
            is open. Only those listed are hashed; filled in when a run starts, checked where it is given.
        distribution: name and version of the installed distribution that it is of, if any; filled in when a run starts.
        config: keyword arguments of the function.
    """

    entry: str
    sha256: str = ""
    files: dict[str, str] = Field(default_factory=dict, max_length=MOST_FILES)
    weights: dict[str, str] = Field(default_factory=dict, max_length=MOST_FILES)
    distribution: str = ""
    config: Config = Field(default_factory=dict)

    @field_validator("entry")
    @classmethod
    def _two_parts(cls, value: str) -> str:
        left, _, right = value.rpartition(":")
        if not left or not right.isidentifier():
            raise ValueError("want 'module:function' or 'file.py:function'")
        return value

    @field_validator("files")
    @classmethod
    def _source_files(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            parts = path.removesuffix(".py").split("/")
            if not path.endswith(".py") or not all(part.isidentifier() for part in parts) or len(path) > MOST_PATH:
                raise ValueError(
                    f"{path[:200]!r}: want a module's file below the program's folder, such as models/net.py"
                )
        return value

    @field_validator("weights")
    @classmethod
    def _weight_files(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            hidden = {"", ".", ".."} & {*path.split("/")}
            if hidden or not path.isprintable() or "\\" in path or len(path) > MOST_PATH:
                raise ValueError(
                    f"{path[:200]!r}: want a file below the program's folder, such as base/model.safetensors"
                )
        return value

    @field_validator("files", "weights")
    @classmethod
    def _digests(cls, value: dict[str, str]) -> dict[str, str]:
        for path, digest in value.items():
            if not _SHA256.fullmatch(digest):
                raise ValueError(f"{path}: want a SHA-256 of 64 lower-case hex digits, or nothing")
        return value


class DataSpec(Frozen):
    """Data set by name, built in or the program's own (``program``).

    Attributes:
        name: ``topics``, ``digits``, ``random-tokens``, ``random-images`` or ``program``.
        config: keyword arguments of a built-in data set.
        digest: content digest (protocol §2); filled in when a run starts, checked where it is given.
    """

    name: str
    config: Config = Field(default_factory=dict)
    digest: str = ""


class OptimizerSpec(Frozen):
    """torch.optim's SGD, Adam or AdamW."""

    name: Literal["sgd", "adam", "adamw"]
    lr: float = Field(gt=0, allow_inf_nan=False)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    betas: list[float] = Field(default_factory=lambda: [0.9, 0.999], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    foreach: bool = False


class ScheduleSpec(Frozen):
    """Factor on the learning rate: linear warm-up, then constant, cosine or linear to ``final``."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(0, ge=0)
    final: float = Field(0.0, ge=0, allow_inf_nan=False)


class TrainSpec(Frozen):
    """How long and in what portions.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step; divided by ``accumulate``.
        seed: decimal, below 2^128; of initial weights, order and dropout.
        checkpoint_every: steps between checkpoints.
        accumulate: micro-batches a step.
        clip_norm: gradient norm to clip to; 0 for none.
        autocast: ``bfloat16`` for torch.autocast around the forward pass.
    """

    steps: int = Field(gt=0, le=10**9)
    batch_size: int = Field(gt=0)
    seed: str = "0"
    checkpoint_every: int = Field(10, gt=0)
    accumulate: int = Field(1, gt=0)
    clip_norm: float = Field(0.0, ge=0, allow_inf_nan=False)
    autocast: Literal["", "bfloat16"] = ""

    @field_validator("seed", mode="before")
    @classmethod
    def _seed(cls, value: Any) -> str:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or not text.isdecimal() or int(text) >= 2**128:
            raise ValueError("want an integer in [0, 2^128)")
        return str(int(text))

    @model_validator(mode="after")
    def _divides(self) -> TrainSpec:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self


class Job(Frozen):
    """A training job.

    Attributes:
        format: version of this format.
        optable: digest of the operation table; filled in when a run starts.
    """

    format: int = FORMAT
    program: ProgramSpec
    data: DataSpec
    train: TrainSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    policy: Policy = Field(default_factory=Policy)
    optable: str = ""

    @field_validator("policy", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        return Policy.from_canonical(value) if isinstance(value, dict) else value

    def canonical(self) -> bytes:
        """RFC 8785 bytes: the job's identity. What is empty of a program's files has no key."""
        values = self.model_dump()
        for key in ("files", "weights", "distribution"):
            if not values["program"][key]:
                del values["program"][key]
        return rfc8785.dumps({**values, "policy": self.policy.canonical(), "kind": "job"})


class LoopJob(Frozen):
    """The identity of a run recorded around somebody's own loop: what vtrain knows of it.

    The model, the data and the loop are the caller's; the auditor brings the same ones.
    """

    format: int = FORMAT
    seed: str
    policy: Policy
    checkpoint_every: int
    optable: str

    @field_validator("policy", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        return Policy.from_canonical(value) if isinstance(value, dict) else value

    def canonical(self) -> bytes:
        """RFC 8785 bytes: the job's identity."""
        return rfc8785.dumps({**self.model_dump(), "policy": self.policy.canonical(), "kind": "loop"})


def job_digest(canonical: bytes) -> bytes:
    """SHA-256 of the canonical bytes: the run's identity (protocol §1)."""
    return hashlib.sha256(canonical).digest()


def parse(values: dict[str, Any], where: str) -> Job:
    """A job from plain values.

    Raises:
        JobError: one line for each unknown key, wrong type or impossible value.
        VersionError: a job of a newer format.
    """
    _check_version(values.get("format", FORMAT), where)
    try:
        return Job(**values)
    except ValidationError as error:
        raise explain(error, where) from error
    except JobError as error:
        raise JobError(f"{where}: {error}") from error


def _check_version(version: object, where: str) -> None:
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        raise VersionError(f"{where}: format {version}; this release reads {FORMAT}")
    if version != FORMAT or isinstance(version, bool):
        raise JobError(f"{where}: format: want {FORMAT} (found {version!r})")


def load(path: Path) -> Job:
    """A job from a TOML file.

    Raises:
        JobError: no such file, not TOML, or as ``parse``.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise JobError(f"{path}: {len(text)} bytes, want at most {MAX_BYTES}")
    try:
        values = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: not TOML: {error}") from error
    return parse(values, str(path))


def parse_canonical(data: bytes, values: dict[str, Any], where: str) -> Job | LoopJob:
    """The job of a run from its parsed ``job.json``; hostile input.

    Args:
        data: the file's bytes, which must be the canonical ones.
        values: what they parse to.

    Raises:
        MalformedRunError: not a job, or not its canonical bytes.
        VersionError: a newer format.
    """
    values = dict(values)
    kind = values.pop("kind", None)
    try:
        _check_version(values.get("format"), where)
        job: Job | LoopJob
        if kind == "job":
            job = Job(**values)
        elif kind == "loop":
            job = LoopJob(**values)
        else:
            raise MalformedRunError(f"{where}: kind is {str(kind)[:32]!r}, want 'job' or 'loop'")
    except ValidationError as error:
        raise MalformedRunError(str(explain(error, where))) from error
    except JobError as error:
        raise MalformedRunError(f"{where}: {error}") from error
    if job.canonical() != data:
        raise MalformedRunError(f"{where}: not the canonical bytes of a job (RFC 8785)")
    return job
