"""Every error that vtrain raises on purpose, and the exit code that each one means (protocol §7.4).

The message of each says what was found and what was wanted. ``exit_code`` is what the command line returns:
1 refuted, 2 usage, 3 the run is incomplete or malformed, 4 unsupported on this machine.
"""

from __future__ import annotations


class VtrainError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 2


class UsageError(VtrainError):
    """The caller asked for something that makes no sense; nothing was written."""


class JobError(UsageError):
    """A job file or policy has an unknown key, a wrong type or an impossible value."""


class ProgramError(UsageError):
    """The job's program is missing, is not what its digest says, or does not fulfil its interface."""


class BatchError(UsageError):
    """A batch can't be trained on or committed to: a NaN, an unknown container, an unsupported dtype."""


class StateError(UsageError):
    """Model or optimizer state changed where it must not, or can't be committed to."""


class KeyFileError(UsageError):
    """A key file is missing, unreadable or not an Ed25519 key."""


class RunExistsError(UsageError):
    """The run directory exists and is not to be overwritten."""


class BusyError(UsageError):
    """Another process is writing this run."""


class ProgressError(UsageError):
    """The file of an audit's progress is of another run, request or machine, or damaged."""


class StorageError(VtrainError):
    """The disk is full, read-only or failing; what was acknowledged before stays valid."""

    exit_code = 3


class MalformedRunError(VtrainError):
    """The run is incomplete or malformed: no verdict about the training can be given."""

    exit_code = 3


class VersionError(MalformedRunError):
    """A format version that this release does not read."""


class IncompleteRunError(MalformedRunError):
    """The run ends before its job does."""


class PathError(MalformedRunError):
    """A path leaves the run, or is a link or a special file."""


class LogError(MalformedRunError):
    """The rounding log is truncated, corrupt, oversized or out of order."""


class CheckpointError(MalformedRunError):
    """A checkpoint is missing, truncated, corrupt, or does not have its committed digest."""


class TranscriptError(MalformedRunError):
    """The transcript has a bad line, a gap, or values out of range."""


class ProofError(MalformedRunError):
    """An inclusion or consistency proof does not hold."""


class SignatureError(MalformedRunError):
    """A signature is missing, by another key, or over other bytes."""


class EquivocationError(MalformedRunError):
    """Two signed heads can't belong to one append-only log."""


class Refuted(VtrainError):
    """The auditor obtained something else than the run commits to.

    Args:
        step: the first bad step (0 is the initialisation), in steps.
        what: what differs: ``data``, ``scalars``, ``log``, ``loss``, ``state``, ``sites`` or ``steps``.
        detail: one line for people.
    """

    exit_code = 1

    def __init__(self, step: int, what: str, detail: str) -> None:
        super().__init__(f"step {step}: {what}: {detail}")
        self.step, self.what, self.detail = step, what, detail

    def again(self) -> Refuted:
        """The same finding, to be raised once more."""
        return Refuted(self.step, self.what, self.detail)


class UnsupportedError(VtrainError):
    """This machine or this release can't do it."""

    exit_code = 4


class WorkerError(UnsupportedError):
    """Workers that replay segments die, or can't be had; no verdict."""


class UnsupportedOperation(UnsupportedError):
    """An operation that the table does not know or forbids (numerics §2, class 6)."""


class DeviceMemoryError(UnsupportedError, RuntimeError):
    """A device's memory, or the host's, is not enough; what was recorded before stays.

    What is raised is a ``torch.OutOfMemoryError`` too.
    """


class OperandError(UnsupportedError):
    """A kernel was given a tensor of a type, device or shape that it does not take."""


class BackendError(UnsupportedError):
    """This machine's arithmetic does not keep the contract (numerics §2, §7)."""
