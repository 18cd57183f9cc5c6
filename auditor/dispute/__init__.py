"""Disputes: a difference is narrowed down to one operation and judged (protocol §8)."""
