"""One offline page about a run and a verdict on it. Imports no torch."""

from auditor.report.page import make_report

__all__ = ["make_report"]
