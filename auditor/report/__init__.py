"""One offline page about a run and a verdict on it. Imports no torch."""
