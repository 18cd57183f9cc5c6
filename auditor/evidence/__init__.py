"""What a run holds, read as hostile input, and whether it holds together. Imports no torch."""

from auditor.evidence.opening import open_run
from auditor.evidence.run import Evidence

__all__ = ["Evidence", "open_run"]
