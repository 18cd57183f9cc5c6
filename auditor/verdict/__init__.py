"""What an audit found: how its segments were drawn, what it counted, its signed statement. Imports no torch."""

from auditor.verdict.verdict import Verdict

__all__ = ["Verdict"]
