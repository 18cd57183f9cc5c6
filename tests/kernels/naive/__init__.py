"""Twins of the canonical kernels, written from the definitions beside them: slow, obviously right."""

from naive.products import *  # noqa: F403
