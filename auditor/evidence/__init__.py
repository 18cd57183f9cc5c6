"""What a run holds, read as hostile input, and whether it holds together. Imports no torch."""

from auditor.evidence.run import Evidence, open_run

__all__ = ["Evidence", "open_run"]
